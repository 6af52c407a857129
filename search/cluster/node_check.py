"""Checks that run on every node before it gets trials: versions, storage, database, device, imports.

The module is sent to the nodes by value, so its top level imports only the standard library. Other imports
are local to their functions, so that a node with missing or outdated packages can report that.
"""

from __future__ import annotations

import hashlib
import importlib
import platform
import secrets
import socket
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

PACKAGES = ("ama-search", "ray", "torch")
OURS = ("analysis", "search", "trainables")
KNOCK_SECONDS = 10.0


def found_versions() -> dict[str, str]:
    """Return the versions that must match on all nodes: Python, packages, a hash of our sources."""
    found = {"Python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except ModuleNotFoundError:
            found[package] = "missing"
    digest = hashlib.sha256()
    for name in OURS:
        spec = find_spec(name)
        for folder in (spec.submodule_search_locations or ()) if spec else ():
            for file in sorted(Path(folder).rglob("*.py")):
                digest.update(file.read_bytes())
    found["code of ama-search"] = digest.hexdigest()[:12]
    return found


def look(wanted: Mapping[str, Any], trials: bool) -> list[str]:
    """Check the node where this runs, and return one line per fault.

    Args:
        wanted: expected values, by key. `versions`: the driver's. `place`: the run directory. `name` and
            `token`: a file in it and its content. `database`: host and port, or None. `device` and `gpu`:
            of a trial. `imports`: the `import:` texts of the experiment.
        trials: whether the node can run trials.
    """
    faults = [
        f"{what} {found}, but the driver has {wanted['versions'][what]}"
        for what, found in found_versions().items()
        if found != wanted["versions"][what]
    ]
    faults += _storage_faults(wanted["place"], wanted["name"], wanted["token"])
    faults += _database_faults(wanted["database"])
    if trials:
        faults += _device_faults(wanted["device"], wanted["gpu"])
        faults += _import_faults(wanted["imports"])
    return faults


def _storage_faults(place: str, name: str, token: str) -> list[str]:
    """Check that the driver's file is readable, and that a new file can be written, read and removed."""
    own = f"{name}-{secrets.token_hex(4)}"
    try:
        if read(place, name) != token:
            raise OSError("the driver's file has different content on this node")
    except Exception as fault:
        return [f"run.dir: {place} on this node is not the driver's: {fault}"]
    try:
        write(place, own, own)
        if read(place, own) != own:
            raise OSError("a file that was written reads back differently")
        delete(place, own)
    except Exception as fault:
        return [f"run.dir: cannot write in {place}: {fault}"]
    return []


def read(place: str, name: str) -> str:
    """Read a file of the run directory."""
    from analysis.runs.object_store import Store, is_remote

    if is_remote(place):
        return Store.open(place).read(name).decode()
    return Path(place, name).read_text()


def write(place: str, name: str, content: str) -> None:
    """Write a file in the run directory."""
    from analysis.runs.object_store import Store, is_remote

    if is_remote(place):
        Store.open(place).write(name, content.encode())
    else:
        Path(place, name).write_text(content)


def delete(place: str, name: str) -> None:
    """Remove a file of the run directory."""
    from analysis.runs.object_store import Store, is_remote

    if is_remote(place):
        Store.open(place).delete(name)
    else:
        Path(place, name).unlink(missing_ok=True)


def _database_faults(server: tuple[str, int] | None) -> list[str]:
    if server is None:
        return []
    try:
        socket.create_connection(server, timeout=KNOCK_SECONDS).close()
    except OSError as fault:
        return [f"storage.study: the database at {server[0]}:{server[1]} cannot be reached: {fault}"]
    return []


def _device_faults(device: str, gpu: float) -> list[str]:
    """Check that the requested accelerator can compute."""
    if gpu <= 0 and device in ("auto", "cpu"):
        return []
    try:
        import torch

        chosen = "cuda" if device == "auto" else device
        torch.ones(2, device=chosen).sum().item()
    except Exception as fault:
        lines = str(fault).splitlines() or [type(fault).__name__]
        return [f"runtime.device: {device} with {gpu:g} GPUs cannot be used: {lines[0]}"]
    return []


def _import_faults(texts: Sequence[str]) -> list[str]:
    faults = []
    for text in texts:
        try:
            importlib.import_module("trainables.registry").import_object(text)
        except Exception as fault:
            faults.append(str(fault))
    return faults
