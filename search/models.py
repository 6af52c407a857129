"""Retrained models: score one on test data, export one."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from search.pipeline import Progress
from trainables.config import DataConfig
from trainables.data import ImageData, load_data
from trainables.errors import InputError
from trainables.evaluation import evaluate
from trainables.export import export_model, snippet
from trainables.retrain import load_model
from trainables.runtime import resolve

CHECKED_IMAGES = 32  # real test images on which an exported file is compared with PyTorch


def evaluate_model(model: Path, root: str | None = None, progress: Progress | None = None) -> dict[str, Any]:
    """Accuracy and loss of a retrained model on test data.

    Args:
        model: folder that `ama retrain` wrote.
        root: an image folder with the same classes; None: the data of the model's manifest.
        progress: called as images are read.

    Raises:
        InputError: no model there, data missing, or data of other classes or another size.
    """
    module, manifest = load_model(model)
    data = _test_data(manifest, root, progress)
    runtime = resolve()
    score = evaluate(module.to(runtime.device), data.eval_batches("test", runtime), runtime)
    return {"model": str(model), "data": root or manifest["data"]["name"], **asdict(score)}


def export_retrained(model: Path, format: str, out: Path | None = None) -> dict[str, Any]:
    """Export a retrained model, checked on real test images where its data is at hand.

    Raises:
        InputError: no model there, an unknown format, or outputs that differ from PyTorch's.
    """
    _, manifest = load_model(model)
    runtime = resolve()
    try:
        data: ImageData | None = _test_data(manifest)
    except InputError:
        data = None  # the model was moved away from its data: random images have to do
    images = None if data is None else next(data.eval_batches("test", runtime, CHECKED_IMAGES))[0]
    result = export_model(model, format, out, images=images)
    checked = "random inputs" if images is None else f"{len(images)} test images"
    return {**asdict(result), "path": str(result.path), "checked_on": checked, "snippet": snippet(result)}


def _test_data(
    manifest: dict[str, Any], root: str | None = None, progress: Progress | None = None
) -> ImageData:
    """The test images of a model's manifest, or those of the image folder `root` prepared in the same way."""
    made_of = manifest["data"]
    config = DataConfig.model_validate(made_of["config"])
    if root is not None:
        size = manifest["teacher"]["image_shape"][-1]
        config = config.model_copy(
            update={
                "name": "imagefolder",
                "root": root,
                "size": size,
                "train_limit": None,
                "mean": tuple(made_of["mean"]),
                "std": tuple(made_of["std"]),
            }
        )
    data = load_data(config, test=True, progress=progress)
    if list(data.classes) != made_of["classes"]:
        raise InputError(
            f"{root or config.name}: the model knows the classes {', '.join(made_of['classes'])}, "
            f"but the data has {', '.join(data.classes)}"
        )
    # The manifest's normalisation, not one computed anew: it is a part of the model.
    return replace(data, mean=tuple(made_of["mean"]), std=tuple(made_of["std"]))
