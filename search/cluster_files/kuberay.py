"""Check a Kubernetes file for KubeRay: its schema, and rules beyond the schema."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from search.cluster_files.kuberay_schema import KINDS
from search.cluster_files.rules import count, image_fault, items, schema_faults, secret_faults, section
from search.experiment.yaml12 import describe_value


def kubernetes_faults(documents: list[dict[str, Any]]) -> list[str]:
    """Check Kubernetes resources; return one line per fault: kind, dotted key, expected, got.

    Args:
        documents: the file's documents, from YAML's safe loader. Kinds other than KubeRay's are only searched
            for secrets.
    """
    faults = []
    clusters = {section(d, "metadata").get("name") for d in documents if d.get("kind") == "RayCluster"}
    for document in documents:
        kind, spec = str(document.get("kind")), section(document, "spec")
        lines = list(secret_faults(document))
        if kind in KINDS:
            lines += schema_faults(document, KINDS[kind], "KubeRay")
            lines += _cluster(spec, "spec") if kind == "RayCluster" else _job(spec, clusters)
        elif kind == "Secret":
            lines.append("kind: expected no Secret in the file (`kubectl create secret` makes it), got one")
        elif str(document.get("apiVersion")).startswith("ray.io/") or not document.get("kind"):
            lines.append(f"kind: expected RayCluster or RayJob, got {describe_value(document.get('kind'))}")
        faults += [f"{kind}: {line}" for line in lines]
    if not any(document.get("kind") in KINDS for document in documents):
        faults.append("the file: expected a RayCluster or a RayJob in it, got none")
    return faults


def _job(spec: dict[str, Any], clusters: set[Any]) -> Iterator[str]:
    selector, own = section(spec, "clusterSelector"), section(spec, "rayClusterSpec")
    if bool(selector) == bool(own):
        yield (
            "spec: expected either rayClusterSpec or clusterSelector, got " + ("both" if own else "neither")
        )
    name = selector.get("ray.io/cluster")
    if selector and not name:
        yield "spec.clusterSelector: expected ray.io/cluster with the cluster's name, got nothing"
    elif name and clusters and name not in clusters:
        yield (
            f"spec.clusterSelector.ray.io/cluster: expected a RayCluster of this file "
            f"({', '.join(sorted(map(str, clusters)))}), got {name!r}"
        )
    if spec.get("suspend") is True and (selector or not spec.get("shutdownAfterJobFinishes")):
        yield "spec.suspend: expected false with a selected or a lasting cluster, got true"
    if own:
        yield from _cluster(own, "spec.rayClusterSpec")


def _cluster(spec: dict[str, Any], path: str) -> Iterator[str]:
    head = section(spec, "headGroupSpec")
    cpus = section(head, "resources").get("CPU", section(head, "rayStartParams").get("num-cpus"))
    if str(cpus) != "0":
        yield (
            f'{path}.headGroupSpec.rayStartParams.num-cpus: expected "0", so that the head runs no trials, '
            f"got {describe_value(cpus)}"
        )
    if head.get("serviceType") in ("NodePort", "LoadBalancer"):
        yield (
            f"{path}.headGroupSpec.serviceType: expected ClusterIP (reached by `kubectl port-forward`), got "
            f"{head['serviceType']}, which opens the head's ports to the world"
        )
    if head.get("enableIngress") is True:
        yield f"{path}.headGroupSpec.enableIngress: expected false, got true, a dashboard open to the world"
    if section(spec, "authOptions").get("mode") != "token":
        mode = section(spec, "authOptions").get("mode")
        yield f"{path}.authOptions.mode: expected token, got {describe_value(mode)}"
    if not spec.get("rayVersion"):
        yield f"{path}.rayVersion: expected the image's version of Ray, got nothing"
    yield from _groups(items(spec.get("workerGroupSpecs")), f"{path}.workerGroupSpecs")
    yield from _containers(spec, path)


def _groups(groups: list[Any], path: str) -> Iterator[str]:
    seen = set()
    for index, group in enumerate(groups):
        group, key = section(group), f"{path}.{index}"
        low, now, high = (count(group.get(name)) for name in ("minReplicas", "replicas", "maxReplicas"))
        if low is not None and high is not None and low > high:
            yield f"{key}.minReplicas: expected at most maxReplicas, {high}, got {low}"
        elif now is not None and not (low or 0) <= now <= (now if high is None else high):
            yield f"{key}.replicas: expected {low or 0} to {describe_value(high)}, got {now}"
        name = str(group.get("groupName"))
        if name in seen and "groupName" in group:
            yield f"{key}.groupName: expected another name than the other groups', got {name!r}"
        seen.add(name)


def _containers(spec: dict[str, Any], path: str) -> Iterator[str]:
    """Check that images are pinned and match the cluster's Ray version."""
    version = str(spec.get("rayVersion"))
    groups = [(f"{path}.headGroupSpec", section(spec, "headGroupSpec"))]
    groups += [
        (f"{path}.workerGroupSpecs.{i}", section(g))
        for i, g in enumerate(items(spec.get("workerGroupSpecs")))
    ]
    for place, group in groups:
        for index, container in enumerate(items(section(group, "template", "spec").get("containers"))):
            image = section(container).get("image")
            if not isinstance(image, str):
                continue
            key = f"{place}.template.spec.containers.{index}.image"
            if fault := image_fault(key, image):
                yield fault
            inside = re.search(r"(?:rayproject/ray:|\bray-?)(\d+\.\d+\.\d+)", image)
            if inside and inside[1] != version:
                yield f"{key}: expected Ray {version}, as rayVersion says, got {inside[1]} in {image!r}"
