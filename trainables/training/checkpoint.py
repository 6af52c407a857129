"""Write and read checkpoints that survive a kill: written atomically, with the previous one kept."""

from __future__ import annotations

import logging
import os
import pickle
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from trainables.errors import InputError

# Exceptions of reading a damaged file, found by flipping every byte of one.
DAMAGED = (
    OSError,
    EOFError,
    RuntimeError,
    ValueError,
    KeyError,
    IndexError,
    struct.error,
    zipfile.BadZipFile,
    pickle.UnpicklingError,
)

log = logging.getLogger(__name__)


def save_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Write `state` (tensors and plain values) to `path`, after moving an existing file to `path`.prev.

    If the process is killed at any moment, at least one of the two files is a complete checkpoint.

    Raises:
        OSError: the disk is full or cannot be written; the existing file is unchanged.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(path.name + ".tmp")
    try:
        with fresh.open("wb") as file:
            torch.save(dict(state), file)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        fresh.unlink(missing_ok=True)  # free its space on a full disk
        raise
    if path.exists():
        path.replace(previous_of(path))
    fresh.replace(path)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read `path`; if it is missing or damaged, warn and read `path`.prev. Tensors are on the CPU.

    Raises:
        InputError: neither can be read.
    """
    faults = []
    for file in (path, previous_of(path)):
        try:
            state = _read(file)
        except DAMAGED as error:
            faults.append(f"{file}: {error}")
            continue
        if faults:
            log.warning("checkpoint unreadable, going back to the previous one: %s", faults[0])
        return state
    raise InputError(
        f"no readable checkpoint ({'; '.join(faults)}); remove both files to start from the beginning"
    )


def has_checkpoint(path: Path) -> bool:
    """Return whether `load_checkpoint(path)` has a file to read."""
    return path.exists() or previous_of(path).exists()


def previous_of(path: Path) -> Path:
    """Return the path of the checkpoint before the one at `path`."""
    return path.with_name(path.name + ".prev")


def _read(file: Path) -> dict[str, Any]:
    # torch.load does not verify the checksums that torch.save writes; a flipped bit would become a weight.
    with zipfile.ZipFile(file) as archive:
        damaged = archive.testzip()
        for entry in archive.infolist():
            # No checksum covers the sizes: with a wrong one torch would read other bytes without an error.
            if entry.file_size != entry.compress_size or entry.external_attr:
                damaged = entry.filename
    if damaged is not None:
        raise zipfile.BadZipFile(f"checksum or size of {damaged} is wrong")
    state = torch.load(file, map_location="cpu", weights_only=True)
    if not isinstance(state, dict):
        raise InputError(f"{file}: not a training checkpoint: expected a dict, got {type(state).__name__}")
    return state
