"""Ray's private names: used here and nowhere else.

Tried with Ray 2.60; pyproject.toml bounds the next major version. When one of these names changes, this file
and its tests are all there is to look at. Ray is imported where a function needs it: `ama cluster check` of a
Kubernetes file needs none.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

WORKER_LOGGER = "ray._private.worker"
_STATUS = "__autoscaling_status"  # where the monitor of version 1 writes its report


def check_token(address: str) -> None:
    """Ask the cluster at `address` whether it takes this process's token, if it asks for one.

    Raises:
        AuthenticationError: Ray's: there is no token, or the cluster has another.
        OSError: no cluster was found.
    """
    from ray._private.authentication.authentication_token_setup import (
        ensure_token_if_auth_enabled,
        maybe_enable_token_auth_if_token_available,
    )
    from ray._private.services import canonicalize_bootstrap_address
    from ray._raylet import GcsClient  # type: ignore[attr-defined]

    maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
    ensure_token_if_auth_enabled(create_token_if_missing=False)
    if "://" not in address and (found := canonicalize_bootstrap_address(address)) is not None:
        GcsClient(address=found)


def first_autoscaler_types() -> set[str]:
    """Types of the nodes of which an autoscaler of Ray's first version reports."""
    from ray.experimental.internal_kv import _internal_kv_get

    text = _internal_kv_get(_STATUS)
    report: dict[str, Any] = (json.loads(text).get("autoscaler_report") or {}) if text else {}
    return {str(kind) for kind in (report.get("node_type_mapping") or {}).values()}


def second_autoscaler_types() -> set[str]:
    """Types of the nodes of which an autoscaler of Ray's second version reports."""
    import ray
    from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply

    reply = GetClusterStatusReply()
    reply.ParseFromString(ray._private.worker.global_worker.gcs_client.get_cluster_status(timeout_s=10))
    if reply.autoscaling_state.autoscaler_state_version == 0:  # no autoscaler has reported
        return set()
    return {node.ray_node_type_name for node in reply.cluster_resource_state.node_states}


def launcher_schema() -> dict[str, Any]:
    """The JSON schema of a file for Ray's cluster launcher."""
    import ray.autoscaler

    file = Path(ray.autoscaler.__file__).parent / "ray-schema.json"
    schema: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return schema


def check_launcher_file(config: dict[str, Any]) -> None:
    """Ray's own check of a cluster launcher's file; it needs no network and prints.

    Raises:
        Exception: of several types, assertions among them: what Ray refuses.
    """
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(copy.deepcopy(config)))
