"""What a node looks at before it gets trials. Sent to every node by value, so: standard library alone.

What else it needs is imported where it is used, so that a node without our packages, or with older ones, can
say so.
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
    """Python, the packages that must be the same everywhere, and a hash of our own sources."""
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
    """What is wrong on the node where this runs.

    Args:
        wanted: the driver's `versions`; `place` of the run directory, `name` and `token`, a file in it and
            its content; `database`, host and port or None; `device` and `gpu` of a trial; `imports`,
            the `import:` texts of the experiment.
        trials: the node can run trials.
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
    """The driver's file must be there, and one of our own be written, read and removed."""
    own = f"{name}-{secrets.token_hex(4)}"
    try:
        if read(place, name) != token:
            raise OSError("the driver's file has another content here")
    except Exception as fault:
        return [f"run.dir: {place} is not the driver's here: {fault}"]
    try:
        write(place, own, own)
        if read(place, own) != own:
            raise OSError("what was written is not what is read back")
        delete(place, own)
    except Exception as fault:
        return [f"run.dir: cannot write in {place}: {fault}"]
    return []


def read(place: str, name: str) -> str:
    """Content of a file of the run directory."""
    from analysis.runs.object_store import Store, is_remote

    if is_remote(place):
        return Store.open(place).read(name).decode()
    return Path(place, name).read_text()


def write(place: str, name: str, content: str) -> None:
    """Make a file in the run directory."""
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
    """An accelerator that is asked for must compute."""
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
