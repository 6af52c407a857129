"""The files of a finished model, and `load_model`, which needs these files alone."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from trainables.blocks.blocks import Block
from trainables.config import StudentSpec
from trainables.errors import InputError
from trainables.network.architectures import build_model
from trainables.network.weights import load_weights
from trainables.student.build import build_separate, build_student

FORMAT = 1
WEIGHTS, MANIFEST, CARD, CHECKPOINT = "model.safetensors", "model.json", "README.md", "checkpoint.pt"


def load_model(path: str | os.PathLike[str]) -> tuple[nn.Module, dict[str, Any]]:
    """Load a retrained model, in eval mode on the CPU, and its manifest.

    Args:
        path: the model's folder, weights or manifest.

    Returns:
        The model, images (B, 3, H, W) to logits (B, classes), and the content of its `model.json`: config,
        teacher, blocks, data (with the mean and std of its inputs) and results.

    Raises:
        InputError: no such model, or its files do not fit together.

    Example:
        model, manifest = load_model("models/student")
        images = torch.rand(4, *manifest["teacher"]["image_shape"])  # RGB in 0..1
        mean, std = (torch.tensor(manifest["data"][name]).view(3, 1, 1) for name in ("mean", "std"))
        print(model((images - mean) / std).argmax(1))
    """
    path = Path(path)
    folder = path if path.is_dir() else path.parent
    manifest = _read_manifest(folder / MANIFEST)
    # Not the whole config: that would import the method, which may be in a file of the user that is not here.
    spec = StudentSpec.model_validate(manifest["config"].get("student", {}))
    teacher = manifest["teacher"]
    classes, shape = teacher["num_classes"], tuple(teacher["image_shape"])
    if spec.arch is not None:
        student = build_separate(spec.arch, classes, shape)
    else:
        model = build_model(teacher["arch"], classes, shape, teacher["small_stem"])
        student = build_student(model, [_block(fields) for fields in manifest["blocks"]], spec)
    load_weights(student, folder / WEIGHTS)
    return student.eval(), manifest


def _read_manifest(file: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(file.read_text())
    except FileNotFoundError:
        raise InputError(
            f"{file}: no such file; a retrained model is a folder with {WEIGHTS} and {MANIFEST}"
        ) from None
    except ValueError as error:
        raise InputError(f"{file}: not JSON: {error}") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        found = manifest.get("format") if isinstance(manifest, dict) else type(manifest).__name__
        raise InputError(f"{file}: expected a model manifest of format {FORMAT}, got {found!r}")
    return manifest


def _block(fields: Mapping[str, Any]) -> Block:
    """Restore a block from JSON, in which tuples are lists."""
    values: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()
    }
    return Block(**values)
