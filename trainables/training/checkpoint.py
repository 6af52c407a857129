"""Checkpoint files that survive being cut off: written aside and swapped in, the previous one kept."""

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

# What reading a damaged file ends in, found by flipping every byte of one.
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
    """Write `state` (tensors and plain values) to `path`; what was there before becomes `path`.prev.

    Killed at any moment, this leaves at least one whole checkpoint under one of the two names.

    Raises:
        OSError: the disk is full or cannot be written; what was there before is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(path.name + ".tmp")
    try:
        with fresh.open("wb") as file:
            torch.save(dict(state), file)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        fresh.unlink(missing_ok=True)  # on a full disk it would take the last room
        raise
    if path.exists():
        path.replace(previous_of(path))
    fresh.replace(path)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read `path`, or `path`.prev with a warning where `path` is missing or damaged. Tensors are on the CPU.

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
    """Whether `load_checkpoint(path)` has a file to try."""
    return path.exists() or previous_of(path).exists()


def previous_of(path: Path) -> Path:
    """Where the checkpoint before the one at `path` is kept."""
    return path.with_name(path.name + ".prev")


def _read(file: Path) -> dict[str, Any]:
    # torch.load does not verify the checksums that torch.save writes; a flipped bit would become a weight.
    with zipfile.ZipFile(file) as archive:
        damaged = archive.testzip()
        for entry in archive.infolist():
            # No checksum covers these: torch would read beyond the entry, or nothing, and say nothing.
            if entry.file_size != entry.compress_size or entry.external_attr:
                damaged = entry.filename
    if damaged is not None:
        raise zipfile.BadZipFile(f"checksum or size of {damaged} is wrong")
    state = torch.load(file, map_location="cpu", weights_only=True)
    if not isinstance(state, dict):
        raise InputError(f"{file}: not a training checkpoint: expected a dict, got {type(state).__name__}")
    return state
