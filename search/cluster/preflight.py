"""Check every node of the cluster before the first trial, and report all faults at once."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from sqlalchemy.engine import make_url

from analysis.errors import InputError as AnalysisInputError
from search.cluster import node_check as nodecheck
from search.cluster.slots import fits
from search.cluster.user_code import imports_of
from search.experiment.experiment import Experiment
from search.run_dir.folder import Folder
from trainables.errors import InputError

PATIENCE = 120.0  # seconds to wait for a node; another search may be using its CPUs or GPUs


def preflight(
    experiment: Experiment, folder: Folder, url: str | None = None, patience: float = PATIENCE
) -> None:
    """Check every node of the cluster that this process is connected to.

    Args:
        experiment: resources, device, teacher.
        folder: the run directory.
        url: URL of the study's database; None: do not check it.
        patience: seconds to wait for a node.

    Raises:
        InputError: at least one node has a fault; one line per fault, with the node's address.
    """
    place = folder.place if folder.remote else str(folder.path.absolute())
    token, name = secrets.token_hex(16), f".preflight-{secrets.token_hex(4)}"
    wanted = {
        "versions": nodecheck.found_versions(),
        "place": place,
        "name": name,
        "token": token,
        "database": _server(url) if url else None,  # without user and password
        "device": experiment.runtime.device,
        "gpu": experiment.resources.gpu,
        "imports": imports_of(experiment),
    }
    try:
        nodecheck.write(place, name, token)
    except (OSError, AnalysisInputError) as fault:
        raise InputError(f"run.dir: cannot write in {place}: {fault}") from None
    try:
        faults = _ask(experiment, wanted, patience)
    finally:
        nodecheck.delete(place, name)
    if faults:
        raise InputError("\n  ".join(["the cluster is not ready:", *faults]))


def _server(url: str) -> tuple[str, int] | None:
    """Return host and port of a network database; None for a local one."""
    parts = make_url(url)
    ports = {"postgresql": 5432, "mysql": 3306, "mariadb": 3306}
    if not parts.host:
        return None
    return parts.host, parts.port or ports.get(parts.get_backend_name(), 0)


def _ask(experiment: Experiment, wanted: dict[str, Any], patience: float) -> list[str]:
    """Run the check on all living nodes, and return their faults."""
    resources = experiment.resources
    running: dict[Any, dict[str, Any]] = {}
    ray.cloudpickle.register_pickle_by_value(nodecheck)
    try:
        for node in (node for node in ray.nodes() if node["Alive"]):
            trials = fits(resources, node["Resources"]) > 0
            task = ray.remote(nodecheck.look).options(
                num_cpus=resources.cpu if trials else 0,
                num_gpus=resources.gpu if trials else 0,
                max_retries=1,
                scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
            )
            running[task.remote(wanted, trials)] = node
    finally:
        ray.cloudpickle.unregister_pickle_by_value(nodecheck)
    ray.wait(list(running), num_returns=len(running), timeout=patience)
    faults = []
    for task, node in running.items():
        faults += [f"{_address(node)}: {fault}" for fault in _answer(task, node, patience)]
    return list(dict.fromkeys(faults))


def _address(node: dict[str, Any]) -> str:
    return f"{node['NodeManagerAddress']} (node {node['NodeID'][:8]})"


def _answer(task: Any, node: dict[str, Any], patience: float) -> Sequence[str]:
    ready, _ = ray.wait([task], timeout=0)
    try:
        if ready:
            return list(ray.get(task))
        ray.cancel(task, force=True)
        return [f"no answer within {patience:.0f} s; its CPUs or GPUs may be in use"]
    except RayError as fault:
        alive = {each["NodeID"] for each in ray.nodes() if each["Alive"]}
        if node["NodeID"] not in alive:
            return []  # the node was lost meanwhile, e.g. a spot instance
        lines = [line for line in str(fault).splitlines() if line.strip()] or [type(fault).__name__]
        return [f"the check itself failed: {lines[-1].strip()}"]
