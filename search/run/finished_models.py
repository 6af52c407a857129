"""Evaluate a retrained model on test data, or export it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from search.stages.progress import Progress
from trainables.config import DataConfig, RuntimeConfig
from trainables.data.image_files.image_cache import decode_split
from trainables.data.image_files.imagefolder import class_folders, list_images
from trainables.data.load import load_data
from trainables.data.pixels import normalisation_constants, normalise
from trainables.data.sources import cache_folder
from trainables.data.split import AnySplit, Split, split_of
from trainables.errors import InputError
from trainables.finished.export import FORMATS, export_model, snippet
from trainables.finished.model_files import MANIFEST, WEIGHTS, load_model
from trainables.network.evaluate import evaluate
from trainables.runtime.runtime import Runtime, resolve

BATCH = 512
EXACT = RuntimeConfig(precision="fp32")  # as for the scores in the manifest
CHECKED_IMAGES = 32  # test images on which an exported file is compared with PyTorch


def evaluate_model(
    model: str | Path, folder: str | Path | None = None, progress: Progress | None = None
) -> dict[str, Any]:
    """Compute accuracy and loss of a retrained model on test data.

    Args:
        model: a folder written by `ama retrain`.
        folder: folder with images in `test/<class>/*`, `val/<class>/*` or `<class>/*`; None: use the test
            images of the model's own data.
        progress: progress callback for reading images.

    Returns:
        model, data, accuracy (0..1), loss (nats), n (images), scores and skipped (unreadable images).

    Raises:
        InputError: there is no model in the folder, the data is missing, or its classes differ.

    Example:
        found = evaluate_model("models/student")
        print(f"{found['accuracy']:.1%} of {found['n']} test images")
    """
    module, manifest = _load(Path(model))
    if folder is None:
        split, skipped = _own_images(manifest, progress), 0
    else:
        split, skipped = _folder_images(manifest, Path(folder).expanduser(), progress)
    runtime = resolve(EXACT)
    score = evaluate(module.to(runtime.device), _batches(split, manifest, runtime, BATCH), runtime)
    data = manifest["data"]["name"] if folder is None else str(folder)
    return {"model": str(model), "data": data, **asdict(score), "skipped": skipped}


def export_retrained(model: Path, format: str, out: Path | None = None) -> dict[str, Any]:
    """Export a retrained model, and check it on test images (random images if its data is missing).

    Raises:
        InputError: there is no model, the format is unknown, or the outputs differ from PyTorch's.
    """
    if format not in FORMATS:
        raise InputError(f"--format: expected {' or '.join(FORMATS)}, got {format!r}")
    _, manifest = _load(model)
    try:
        split: AnySplit | None = _own_images(manifest)
    except InputError:
        split = None  # the model was moved without its data: use random images
    images = None if split is None else next(_batches(split, manifest, resolve(EXACT), CHECKED_IMAGES))[0]
    result = export_model(model, format, out, images=images)
    checked = "random images" if images is None else f"{len(images)} test images"
    folder = model if model.is_dir() else model.parent
    return {
        **asdict(result),
        "path": str(result.path),
        "weights_bytes": (folder / WEIGHTS).stat().st_size,  # size of the safetensors file
        "checked_on": checked,
        "snippet": snippet(result),
    }


def _load(model: Path) -> tuple[torch.nn.Module, dict[str, Any]]:
    if not model.exists():
        raise InputError(f"{model}: no such folder; a retrained model is one with {WEIGHTS} and {MANIFEST}")
    return load_model(model)


def _own_images(manifest: Mapping[str, Any], progress: Progress | None = None) -> AnySplit:
    """Load the test images of the data that the model was trained on."""
    if manifest["data"]["config"] is None:
        raise InputError("the model does not say what data it was trained on; name a folder with --data")
    config = DataConfig.model_validate(manifest["data"]["config"])
    data = load_data(config, test=True, progress=progress)
    assert data.test is not None, "asked for"
    _check_classes(manifest, data.classes, config.root or config.name)
    return data.test


def _folder_images(manifest: Mapping[str, Any], root: Path, progress: Progress | None) -> tuple[Split, int]:
    """Load a folder's images at the model's size; also return the number of unreadable ones (skipped)."""
    config = DataConfig.model_validate(manifest["data"]["config"] or {})
    if not root.is_dir():
        raise InputError(f"--data: no such folder: {root}")
    folder = next((root / name for name in ("test", "val") if (root / name).is_dir()), root)
    classes = class_folders(folder)
    _check_classes(manifest, classes, str(folder))
    decoded = decode_split(
        list_images(folder, classes),
        manifest["teacher"]["image_shape"][-1],
        False,
        cache_folder(config),
        config.skip_unreadable,
        progress,
    )
    return split_of(decoded.images, decoded.labels), decoded.skipped


def _check_classes(manifest: Mapping[str, Any], found: tuple[str, ...], where: str) -> None:
    known = manifest["data"]["classes"]
    if list(found) != known:
        raise InputError(
            f"{where}: the model knows the classes {', '.join(known)}, but the data has "
            f"{', '.join(found) or 'none'}"
        )


def _batches(
    split: AnySplit, manifest: Mapping[str, Any], runtime: Runtime, size: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield batches for the model, which includes its own normalisation."""
    data = manifest["data"]
    constants = normalisation_constants(tuple(data["mean"]), tuple(data["std"]), runtime.device)
    for images, labels in split.chunks(size):
        yield (
            normalise(images.to(runtime.device), constants, runtime.memory_format),
            labels.to(runtime.device),
        )
