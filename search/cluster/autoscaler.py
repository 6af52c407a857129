"""Detect whether the connected cluster has an autoscaler."""

from __future__ import annotations

import re

from search.cluster.ray_adapter import first_autoscaler_types, second_autoscaler_types

# Node type names that Ray's monitor uses for nodes started by hand, without an autoscaler.
_BY_HAND = re.compile(r"node_[0-9a-f]{8,}|")


def autoscales() -> bool:
    """Return True if the cluster has an autoscaler (Ray's version 1 or 2)."""
    types = first_autoscaler_types() | second_autoscaler_types()
    return any(_BY_HAND.fullmatch(kind) is None for kind in types)
