"""Check a file for Ray's cluster launcher (`ray up FILE`): our own checks, then Ray's."""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from search.cluster.ray_adapter import check_launcher_file, launcher_schema
from search.cluster_files import providers as cluster_providers
from search.cluster_files.rules import count, image_fault, items, schema_faults, section
from search.experiment.yaml12 import describe_value
from trainables.files import first_line

Config = dict[str, Any]


def launcher_faults(config: Config) -> list[str]:
    """Check a cluster launcher's file; return one line per fault.

    Relative paths in `file_mounts` are relative to the current directory, as for `ray up`.

    Args:
        config: the file's content, from YAML's safe loader.
    """
    kind = section(config, "provider").get("type")
    known = {"aws": cluster_providers.aws, "gcp": cluster_providers.gcp, "local": cluster_providers.local}
    faults = [
        *_schema(config),
        *_numbers(config),
        *([] if kind == "local" else _head(config)),
        *(known[kind](config) if kind in known else ()),
        *_mounts(config),
        *_images(config),
        *_start(config),
    ]
    return faults or _ray(config)


def _schema(config: Config) -> list[str]:
    """Validate against Ray's schema and return all faults; Ray's own check stops at the first."""
    # `min_workers` at the top level belongs to the local provider; Ray removes it before validation.
    return schema_faults(
        {k: v for k, v in config.items() if k != "min_workers"}, launcher_schema(), "Ray's cluster files"
    )


def _ray(config: Config) -> list[str]:
    """Run Ray's own check, which needs no network, for all that the other checks do not cover."""
    said, log = io.StringIO(), logging.getLogger("ray.autoscaler")
    level = log.level
    log.setLevel(logging.ERROR)  # else Ray logs the defaults that it fills in
    try:
        with redirect_stdout(said), redirect_stderr(said):
            check_launcher_file(config)
    except Exception as error:  # Ray raises several types, including AssertionError
        reason = first_line(error)
        return [f"the file: expected what Ray accepts, got from its check: {reason}"]
    finally:
        log.setLevel(level)
    return []


def _numbers(config: Config) -> Iterator[str]:
    types, top, total = section(config, "available_node_types"), count(config.get("max_workers")), 0
    for name in types:
        low = count(section(types, name).get("min_workers")) or 0
        high = count(section(types, name).get("max_workers"))
        total += low
        if high is not None and low > high:
            yield f"available_node_types.{name}.min_workers: expected at most max_workers, {high}, got {low}"
    if top is not None and total > top:
        yield f"max_workers: expected at least {total}, the sum of all types' min_workers, got {top}"


def _head(config: Config) -> Iterator[str]:
    types, head = section(config, "available_node_types"), config.get("head_node_type")
    if head not in types:
        there = ", ".join(map(str, types)) or "there are none"
        yield f"head_node_type: expected one of available_node_types ({there}), got {describe_value(head)}"
        return
    resources = section(types, str(head), "resources")
    for name, default in (("CPU", None), ("GPU", 0)):
        has = resources.get(name, default)
        if has != 0:
            key = f"available_node_types.{head}.resources.{name}"
            yield f"{key}: expected 0, so that the head runs no trials, got {describe_value(has)}" + (
                ": Ray would count the machine's" if has is None else ""
            )


def _mounts(config: Config) -> Iterator[str]:
    for target, source in section(config, "file_mounts").items():
        if isinstance(source, str) and not Path(source).expanduser().exists():
            yield (
                f"file_mounts.{target}: expected a file or folder (relative to the current directory), "
                f"got {source!r}, which does not exist"
            )


def _images(config: Config) -> Iterator[str]:
    types = section(config, "available_node_types")
    places = {"docker": section(config, "docker")}
    places |= {f"available_node_types.{name}.docker": section(types, name, "docker") for name in types}
    for path, docker in places.items():
        for key in ("image", "head_image", "worker_image"):
            if isinstance(docker.get(key), str) and (fault := image_fault(f"{path}.{key}", docker[key])):
                yield fault


def _start(config: Config) -> Iterator[str]:
    """Check the start of Ray: token authentication, and a dashboard that listens on localhost only."""
    docker, text = section(config, "docker"), ""
    for key in ("run_options", "head_run_options", "worker_run_options"):
        text += " ".join(map(str, items(docker.get(key)))) + " "
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        commands = [str(command) for command in items(config.get(key))]
        text += " ".join(commands) + " "
        for command in commands:
            if match := re.search(r"--dashboard-host[= ](0\.0\.0\.0|::)", command):
                yield (
                    f"{key}: expected --dashboard-host=127.0.0.1 (`ray dashboard FILE` leads there), got "
                    f"{match[1]}, a port open to whoever reaches the node"
                )
    if not re.search(r"\bRAY_AUTH_MODE=token\b", text):
        yield (
            "docker.run_options: expected `-e RAY_AUTH_MODE=token`, so that nobody without the token can run "
            "code on the cluster, got none"
        )
