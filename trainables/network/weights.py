"""Read weights (safetensors or torch state dicts), write safetensors, and hash weights."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import nn

from trainables.errors import InputError
from trainables.files import first_line, replacing

State = dict[str, torch.Tensor]

WRAPPERS = ("state_dict", "model_state_dict", "model")  # keys under which training scripts store weights
PREFIXES = ("module.", "_orig_mod.")  # added to every name by DataParallel and torch.compile
SHOWN = 4  # most keys of each kind that an error names


def load_weights(model: nn.Module, path: Path, what: str = "the model") -> None:
    """Load the weights of a file into `model`, in place.

    Args:
        model: any module; its device and dtypes stay.
        path: a safetensors file, or a torch file that holds a state dict, bare or under `state_dict` or
            `model`, with or without the prefix of a parallel or compiled model. The type is recognised by
            the content, not by the name. Pickled objects other than tensors and plain values are refused.
        what: the model's name in errors.

    Raises:
        InputError: no such file, a file of another type, or names or shapes that do not fit the model.
    """
    state = _read_state(path)
    expected = model.state_dict()
    for prefix in 2 * PREFIXES:  # in either order
        if state and all(name.startswith(prefix) for name in state) and not state.keys() & expected.keys():
            state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    _check_fit(state, expected, path, what)
    model.load_state_dict(state, strict=False)


def save_weights(model: nn.Module, path: Path, metadata: Mapping[str, str]) -> None:
    """Write the state dict as safetensors, with `metadata` in its header, atomically."""
    # Copies, since safetensors refuses tensors that share memory (tied weights).
    state = {
        name: tensor.detach().cpu().contiguous().clone()
        for name, tensor in model.state_dict().items()
        if isinstance(tensor, torch.Tensor)
    }
    with replacing(path) as fresh:
        fresh.write_bytes(save(state, metadata=dict(metadata)))  # save_file creates the file with mode 0600


def weights_hash(model: nn.Module) -> str:
    """Return the SHA-256 (hex, 16 characters) of the state dict's names, shapes, dtypes and bytes.

    It is the same on every device and in every memory layout.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if isinstance(tensor, torch.Tensor):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype};".encode())
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _read_state(path: Path) -> State:
    try:
        with path.open("rb") as file:
            head = file.read(9)
    except OSError as error:
        raise InputError(f"{path}: cannot read weights: {error.strerror or error}") from error
    try:
        if head[8:] == b"{":  # safetensors: 8 bytes for the length, then JSON
            return dict(load_file(path))
        with path.open("rb") as file:  # not by name: torch would judge the type by `.safetensors`
            content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path}: expected a safetensors file or a torch file of tensors alone, but it is damaged or "
            "holds other Python objects; save model.state_dict() instead of the model"
        ) from error
    except Exception as error:  # damaged bytes make the parsers raise anything
        message = f"{path}: not a readable safetensors file or torch state dict: {first_line(error)}"
        raise InputError(message) from error
    return _unwrap(content, path)


def _unwrap(content: Any, path: Path) -> State:
    for _ in range(2):  # e.g. {"model": {"state_dict": ...}}
        if not isinstance(content, Mapping):
            break
        content = next((content[k] for k in WRAPPERS if isinstance(content.get(k), Mapping)), content)
    if not isinstance(content, Mapping):
        raise InputError(f"{path}: expected a state dict, got {type(content).__name__}")
    others = [str(key) for key, value in content.items() if not isinstance(value, torch.Tensor)]
    if others or not content:
        raise InputError(
            f"{path}: expected a state dict (names to tensors), bare or under {' or '.join(WRAPPERS)}, "
            f"but got {_some(others) or 'nothing'}, not tensors"
        )
    return {str(name): tensor for name, tensor in content.items()}


def _check_fit(state: State, expected: Mapping[str, Any], path: Path, what: str) -> None:
    # Old files lack the batch counters of batch norms, which matter for norms without momentum alone.
    missing = [n for n in expected if n not in state and not n.endswith("num_batches_tracked")]
    unexpected = [name for name in state if name not in expected]
    misshaped = [
        f"{name}: file {tuple(tensor.shape)}, model {tuple(expected[name].shape)}"
        for name, tensor in state.items()
        if name in expected and tensor.shape != expected[name].shape
    ]
    faults = {"missing": missing, "unexpected": unexpected, "of another shape": misshaped}
    if any(faults.values()):
        text = "; ".join(f"{len(names)} {kind} ({_some(names)})" for kind, names in faults.items() if names)
        raise InputError(f"{path} does not fit {what}: {text}")


def _some(names: list[str]) -> str:
    more = f", and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
