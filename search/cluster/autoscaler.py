"""Detect whether the connected cluster has an autoscaler."""

from __future__ import annotations

import json
import re
from typing import Any

import ray

# Node type names that Ray's monitor uses for nodes started by hand, without an autoscaler.
_BY_HAND = re.compile(r"node_[0-9a-f]{8,}|")
_STATUS = "__autoscaling_status"  # key under which the version-1 monitor writes its report


def autoscales() -> bool:
    """Return True if the cluster has an autoscaler (Ray's version 1 or 2)."""
    types = _first_version_types() | _second_version_types()
    return any(_BY_HAND.fullmatch(kind) is None for kind in types)


def _first_version_types() -> set[str]:
    from ray.experimental.internal_kv import _internal_kv_get

    text = _internal_kv_get(_STATUS)
    report: dict[str, Any] = (json.loads(text).get("autoscaler_report") or {}) if text else {}
    return {str(kind) for kind in (report.get("node_type_mapping") or {}).values()}


def _second_version_types() -> set[str]:
    from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply

    reply = GetClusterStatusReply()
    reply.ParseFromString(ray._private.worker.global_worker.gcs_client.get_cluster_status(timeout_s=10))
    if reply.autoscaling_state.autoscaler_state_version == 0:  # no autoscaler has reported
        return set()
    return {node.ray_node_type_name for node in reply.cluster_resource_state.node_states}
