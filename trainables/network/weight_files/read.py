"""Read a file of weights without running its code, and say what other files are.

Safetensors and everything `torch.save` writes are read, the latter with `weights_only`. The kind is
recognised by the content. A file of another kind is refused with what it is and what to do.
"""

from __future__ import annotations

import argparse
import datetime
import re
import types
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from trainables.errors import InputError
from trainables.files import first_line

SHOWN = 4  # most names of each kind that an error lists
HEAD = 512  # bytes that tell the kind of a file
KINDS = {
    b"": "empty",
    b"version https://git-lfs": "a Git LFS pointer, not the file itself; fetch it with `git lfs pull`",
    b"<!doctype html": "a web page, not the file that it offers; download the file itself",
    b"<html": "a web page, not the file that it offers; download the file itself",
    b"\x89HDF": "an HDF5 file (Keras); convert its weights to safetensors",
    b"\x93NUMPY": "a single NumPy array; save all weights by name with safetensors",
    b"GGUF": "a GGUF file, whose weights are quantised; name the original safetensors file",
    b"\x1f\x8b": "compressed with gzip; unpack it first",
    b"BZh": "compressed with bzip2; unpack it first",
    b"\xfd7zXZ": "compressed with xz; unpack it first",
    b"7z\xbc\xaf": "a 7-Zip archive; unpack it first",
}
ZIP = b"PK\x03\x04"
STATE_DICT = "save model.state_dict() instead of the model"
REFUSED = re.compile(r"(?:Unsupported global: GLOBAL |<class ')([A-Za-z_][\w.]*)")


def _plain_dict(_factory: object = None) -> dict[Any, Any]:
    """Stand in for `defaultdict`, whose items `weights_only` cannot set."""
    return {}


# Plain values that training scripts keep beside the weights. Unpickling them runs no code of the file.
PLAIN: list[Any] = [
    argparse.Namespace,
    types.SimpleNamespace,
    (_plain_dict, "collections.defaultdict"),
    list,
    dict,
    set,
    range,
    slice,
    datetime.datetime,
    *((PurePosixPath, f"{place}.PosixPath") for place in ("pathlib", "pathlib._local")),
    *((PureWindowsPath, f"{place}.WindowsPath") for place in ("pathlib", "pathlib._local")),
    np.ndarray,
    np.dtype,
    *(getattr(np.dtypes, name) for name in np.dtypes.__all__ if name != "ObjectDType"),
]
for _place in ("numpy._core.multiarray", "numpy.core.multiarray"):  # since and before NumPy 2
    PLAIN += [
        (np.float64(0).__reduce__()[0], f"{_place}.scalar"),
        (np.zeros(0).__reduce__()[0], f"{_place}._reconstruct"),
    ]


@dataclass(frozen=True)
class Content:
    """What a file holds: nested mappings, lists, tensors and plain values."""

    value: Any
    metadata: Mapping[str, str] = field(default_factory=dict)  # of the header of a safetensors file


def read_file(path: Path) -> Content:
    """Read a safetensors file or a torch file.

    Checksums of torch's zip archives are checked where they were written; safetensors files have none.

    Raises:
        InputError: no such file; a damaged file or one of another kind; or a torch file with Python objects
            other than tensors and plain values.
    """
    head = _head(path)
    if head[8:9] == b"{":  # 8 bytes for the length, then JSON
        return _safetensors(path)
    for start, kind in KINDS.items():
        if head.lower().startswith(start) if start.startswith(b"<") else _is(head, start):
            raise InputError(f"{path}: expected weights, but the file is {kind}")
    if head.startswith(ZIP):
        _check_archive(path)
    try:
        with (
            path.open("rb") as file,
            torch.serialization.safe_globals(PLAIN),
        ):  # not by name: torch judges by it
            return Content(torch.load(file, map_location="cpu", weights_only=True))
    except Exception as error:  # damaged bytes make the parsers raise anything
        raise InputError(_refusal(path, error)) from error


def some(names: list[str]) -> str:
    """Join the first few names, and say how many more there are."""
    more = f", and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _is(head: bytes, start: bytes) -> bool:
    return head.startswith(start) if start else not head


def _head(path: Path) -> bytes:
    if path.is_dir():
        found = some(sorted(each.name for each in path.iterdir())) or "nothing"
        raise InputError(f"{path}: cannot read weights: a folder; name the file in it (found: {found})")
    try:
        with path.open("rb") as file:
            return file.read(HEAD)
    except OSError as error:
        raise InputError(f"{path}: cannot read weights: {error.strerror or error}") from error


def _safetensors(path: Path) -> Content:
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
        return Content(dict(load_file(path)), metadata)
    except Exception as error:  # as above
        message = f"{path}: a damaged safetensors file ({first_line(error)}); get or write it again"
        raise InputError(message) from error


def _check_archive(path: Path) -> None:
    """Refuse zip archives that are damaged or not written by `torch.save`."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            if kind := _archive_kind(names):
                raise InputError(f"{path}: {kind}")
            # Without checksums (`set_crc32_options(False)`) all are 0.
            for info in archive.infolist():
                if info.CRC:
                    with archive.open(info) as record:
                        while record.read(2**20):
                            pass
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError) as error:
        raise InputError(
            f"{path}: a damaged torch file ({first_line(error)}): bytes are missing or changed; get or write "
            "it again"
        ) from error


def _archive_kind(files: list[str]) -> str | None:
    """Say what a zip archive with these files is, if `torch.save` did not write it."""
    names = {name.partition("/")[2] or name for name in files}  # torch's are all in one folder
    if names & {"archive_format", "serialized_exported_program.json"}:
        return (
            "an exported program (.pt2), not a state dict; save the original model's state_dict(), or "
            "torch.export.load(file).state_dict"
        )
    if "constants.pkl" in names:
        return (
            "a TorchScript model, not a state dict; save the original model's state_dict(), or "
            "torch.jit.load(file).state_dict()"
        )
    if "data.pkl" in names:
        return None
    if any(name.endswith(".npy") for name in names):
        return "a NumPy archive (.npz); save the weights by name with safetensors"
    return f"a zip archive ({some(sorted(files))}), not written by torch.save; unpack it first"


def _refusal(path: Path, error: Exception) -> str:
    objects = list(_objects(path, error))
    if not objects and _head(path).startswith(b"\x80"):
        return (
            f"{path}: a pickle that torch.save did not write or that is damaged ({_without_advice(error)}); "
            f"where it was written, {STATE_DICT}, with torch.save or safetensors"
        )
    if not objects:
        return (
            f"{path}: expected a safetensors file or a torch file of tensors, but it is damaged or of "
            f"another kind ({type(error).__name__}: {_without_advice(error)}); {STATE_DICT}"
        )
    again = f"torch.load({str(path)!r}, weights_only=False)"
    why = "unpickling them runs code of the file's author, so they are refused"
    if any(name.startswith("torch.nn.") for name in objects):
        return (
            f"{path}: a pickled model (of class {objects[0]}), not its weights: {why}. If you trust the "
            f"file, {STATE_DICT}: torch.save({again}.state_dict(), 'weights.pt'), where its classes can be "
            "imported"
        )
    return (
        f"{path}: holds Python objects beside tensors ({some(objects)}): {why}. If you trust the file, write "
        f"the weights alone (save model.state_dict()): torch.save({again}['state_dict'], 'weights.pt'), with "
        "the key under which they are"
    )


def _objects(path: Path, error: Exception) -> Iterator[str]:
    """Yield the classes and functions for which `weights_only` refused the file, the outermost first."""
    first = REFUSED.search(str(error))
    if "weights_only" not in str(error).lower() or first is None:
        return
    yield first[1]
    try:
        with torch.serialization.safe_globals(PLAIN):
            every = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
    except Exception:  # older formats cannot be listed
        return
    yield from sorted(name for name in every if name != first[1])


def _without_advice(error: Exception) -> str:
    """Return the message's first line without torch's advice to load the file unsafely."""
    detail = str(error).partition("WeightsUnpickler error:")[2].strip()
    text = detail.splitlines()[0] if detail else first_line(error)
    return "no readable pickle" if "weights_only" in text.lower() else text
