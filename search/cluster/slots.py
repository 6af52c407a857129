"""Compute how many trials fit on the cluster's nodes at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import ray

from search.cluster.autoscaler import autoscales
from search.experiment.sections import Resources
from trainables.errors import InputError


def fits(resources: Resources, node: Mapping[str, float]) -> int:
    """Return how many trials fit at once on a node with these CPUs and GPUs."""
    wanted = {"CPU": resources.cpu, "GPU": resources.gpu}
    counts = [int(node.get(name, 0.0) / each + 1e-9) for name, each in wanted.items() if each > 0]
    return min(counts, default=1)


def slots(resources: Resources, node: Mapping[str, float] | None = None) -> int:
    """Return how many trials run at once.

    With an autoscaler the current nodes are no limit: `resources.concurrent` decides.

    Args:
        resources: CPUs and GPUs of one trial.
        node: "CPU" and "GPU" of this machine; None: use the nodes of the connected cluster.

    Raises:
        InputError: no node has, or will have, enough CPUs and GPUs for one trial.
    """
    nodes = [each["Resources"] for each in ray.nodes() if each["Alive"]] if node is None else [node]
    most = sum(fits(resources, each) for each in nodes)
    asked = resources.concurrent if isinstance(resources.concurrent, int) else None
    if asked is not None and asked <= most:
        return asked
    if node is None and autoscales():
        if asked is None and most == 0:
            raise InputError(
                "resources.concurrent: expected the number of trials to run at once, because the cluster "
                "starts workers on demand and has none now; got nothing"
            )
        return asked or most
    if most == 0:
        raise _too_much(resources, nodes)
    return most


def _too_much(resources: Resources, nodes: Sequence[Mapping[str, float]]) -> InputError:
    for name, key, wanted in (("CPU", "cpu", resources.cpu), ("GPU", "gpu", resources.gpu)):
        there = max((node.get(name, 0.0) for node in nodes), default=0.0)
        if there < wanted:
            where = " on the largest node" if len(nodes) > 1 and there else ""
            return InputError(
                f"resources.{key}: a trial needs {wanted:g} {name}s, but there are {there:g}{where}; "
                f"lower resources.{key} or use a cluster that has them (--address)"
            )
    return InputError(
        f"resources: a trial needs {resources.cpu:g} CPUs and {resources.gpu:g} GPUs, but no node has both"
    )
