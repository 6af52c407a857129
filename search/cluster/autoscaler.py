"""Whether something starts workers for the cluster that this process is connected to."""

from __future__ import annotations

import re

from search.cluster.ray_adapter import first_autoscaler_types, second_autoscaler_types

# What Ray's monitor calls the type of a node where it only watches: the nodes were started by hand.
_BY_HAND = re.compile(r"node_[0-9a-f]{8,}|")


def autoscales() -> bool:
    """Whether the cluster has an autoscaler, of Ray's first or second version."""
    types = first_autoscaler_types() | second_autoscaler_types()
    return any(_BY_HAND.fullmatch(kind) is None for kind in types)
