"""Read weights (safetensors or torch state dicts), write safetensors, and hash weights."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import nn

from trainables.errors import InputError
from trainables.files import replacing
from trainables.network.weight_files.find import find_weights
from trainables.network.weight_files.read import Content, read_file

log = logging.getLogger(__name__)

HASH = "weights_hash"  # key of the header of files written here


def load_weights(
    model: nn.Module, path: Path, what: str = "the model", *, fresh_head: bool = False
) -> tuple[str, ...]:
    """Load the weights of a file into `model`, in place.

    Args:
        model: any module; its device and dtypes stay.
        path: a safetensors file, or a torch file that holds a state dict under any key, with any one prefix
            before its names. Averaged weights (EMA) are preferred. What is chosen or left out is logged as a
            warning. The type is recognised by the content, not by the name. Pickled objects other than
            tensors and plain values are refused.
        what: the model's name in errors.
        fresh_head: leave the model's head (its last layer) as it is if the file's has another number of
            classes and all else fits; for fine-tuning.

    Returns:
        What was chosen or left out, in sentences.

    Raises:
        InputError: no such file, a damaged file or one of another type; or weights that do not fit the model
            or are not finite.
    """
    content = read_file(path)
    _check_hash(content, path)
    found = find_weights(content.value, model, path, what, fresh_head=fresh_head)
    for note in found.notes:
        log.warning("%s: %s", path, note)
    model.load_state_dict(found.state, strict=False)
    return found.notes


def save_weights(model: nn.Module, path: Path, metadata: Mapping[str, str]) -> None:
    """Write the state dict as safetensors, atomically.

    The header has `metadata` and the hash of the weights, by which `load_weights` notices changed bits.
    """
    # Copies, since safetensors refuses tensors that share memory (tied weights).
    state = {
        name: tensor.detach().cpu().contiguous().clone()
        for name, tensor in model.state_dict().items()
        if isinstance(tensor, torch.Tensor)
    }
    with replacing(path) as fresh:
        header = {**metadata, HASH: _hash(state)}
        fresh.write_bytes(save(state, metadata=header))  # save_file creates the file with mode 0600


def weights_hash(model: nn.Module) -> str:
    """Return the SHA-256 (hex, 16 characters) of the state dict's names, shapes, dtypes and bytes.

    It is the same on every device and in every memory layout.
    """
    return _hash(model.state_dict())


def _hash(state: Mapping[str, Any]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        if isinstance(tensor, torch.Tensor):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype};".encode())
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _check_hash(content: Content, path: Path) -> None:
    """Compare the weights with the hash in the header, if they were written by `save_weights`."""
    written = content.metadata.get(HASH)
    if written is not None and (found := _hash(content.value)) != written:
        raise InputError(
            f"{path}: a damaged file: its weights have the hash {found}, but were written with {written}; "
            "get or write it again"
        )
