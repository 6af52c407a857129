"""Retrain a picked config with its full budget, and its baselines; write the finished model to files.

A finished model is a folder with `model.safetensors`, `model.json` (a manifest: architecture, origin,
results) and `README.md` (the model card). `load_model` needs the first two alone. Test images are read here,
once for each finished model; training never gets them.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from trainables.blocks.blocks import Block
from trainables.config import METHODS, DataConfig, DistillConfig
from trainables.data.dataset import ImageData
from trainables.errors import InputError
from trainables.files import remove, write_text
from trainables.finished.model_card import model_card
from trainables.finished.model_files import (
    CARD,
    CHECKPOINT,
    FORMAT,
    MANIFEST,
    WEIGHTS,
    _read_manifest,
)
from trainables.methods.base import Method, Setup, Stages
from trainables.network.evaluate import evaluate
from trainables.network.flops import count_flops, count_params
from trainables.network.weights import save_weights
from trainables.runtime.runtime import Runtime, device_name
from trainables.student.start import Modules
from trainables.teacher.record import TeacherRecord
from trainables.teacher.teacher import Teacher
from trainables.training.checkpoint import previous_of
from trainables.training.loop import Report, distill


@dataclass(frozen=True)
class RetrainResult:
    """A finished model. Accuracies are in 0..1, losses are mean cross-entropy in nats.

    Example:
        config = DistillConfig(epochs=1, seed=2)
        result = retrain_one(config, teacher, blocks, data, resolve(), "models/second")
        print(result.test_accuracy, result.params, result.flops, result.path)
    """

    seed: int
    kind: str  # student, or the baseline's name
    test_accuracy: float
    test_loss: float
    val_accuracy: float
    epochs: int
    seconds: float  # of training, interrupted sessions included
    params: int
    flops: int  # of one image, a multiply-accumulate counted as 2
    path: Path  # of the weights; the manifest is beside them


def retrain_one(
    config: DistillConfig,
    teacher: Teacher,
    blocks: Sequence[Block],
    data: ImageData,
    runtime: Runtime,
    out_dir: str | os.PathLike[str],
    modules: Modules | None = None,
    stages: Stages | None = None,
    report: Report | None = None,
    *,
    kind: str = "student",
    data_config: DataConfig | None = None,
    made: Mapping[str, Any] | None = None,
) -> RetrainResult:
    """Train the student of `config`, test it once, and write it to `out_dir`.

    An interrupted training is resumed. A finished model is read back, neither trained nor tested again.

    Args:
        config: the trial to repeat, with the epochs and the seed of this training.
        teacher: as `load_teacher` or `train_teacher` gave it.
        blocks: of this teacher, as `find_blocks` gave them.
        data: with its test images.
        runtime: device, precision and layout of the training; the model is tested in fp32.
        out_dir: folder for the model; made if missing.
        modules: pre-distilled weights by span key, for `warm_start: library`.
        stages: results of the method's stages, as `make_stages` gave them.
        report: called after every epoch; training stops if it returns True.
        kind: the result's name in the table: student, or the name of a baseline.
        data_config: the config of `data`, for the manifest.
        made: further information for the manifest, as JSON values: the command, the other seeds, overrides.

    Returns:
        The model's scores on validation and test images, its costs and its path.

    Raises:
        InputError: `out_dir` holds the model of another config, teacher or data set; no test images.
        TrainingDiverged: the loss became NaN or infinite.

    Example:
        spec = StudentSpec(widths={blocks[0].name: 0.25})
        config = DistillConfig(student=spec, epochs=1, seed=1)
        result = retrain_one(config, teacher, blocks, data, resolve(), "models/first")
        print(f"{result.test_accuracy:.1%} on test images, {result.flops:,} FLOPs")
    """
    if data.test is None:
        raise InputError(
            f"{data.name}: a retrained model is scored on test images: load_data(..., test=True)"
        )
    out_dir = Path(out_dir)
    manifest_file = out_dir / MANIFEST
    origin = {
        "kind": kind,
        "config": config.model_dump(mode="json"),
        "teacher": _teacher_of(teacher.record),
        "data_hash": data.hash,
    }
    if manifest_file.exists():
        return _read_back(manifest_file, origin)
    checkpoint = out_dir / CHECKPOINT
    unseen = replace(data, test=None)  # no epoch can read test images
    setup = Setup.of(teacher.model, blocks, unseen, runtime, modules, stages)
    trained = distill(config, setup, report, checkpoint)
    student = trained.student
    # Score in fp32, so that the result does not depend on the precision of the training.
    exact = dataclasses.replace(runtime, precision="fp32")
    test = evaluate(student, data.eval_batches("test", exact), exact)
    example = torch.zeros(1, *data.image_shape, device=runtime.device)
    results: dict[str, Any] = {
        "seed": config.seed,
        "kind": kind,
        "test_accuracy": test.accuracy,
        "test_loss": test.loss,
        "val_accuracy": trained.history[-1].val_accuracy,
        "epochs": len(trained.history),
        "seconds": sum(metrics.seconds for metrics in trained.history),
        "params": count_params(student),
        "flops": count_flops(student, example),
    }
    save_weights(student, out_dir / WEIGHTS, {"format": str(FORMAT), "manifest": MANIFEST})
    manifest = {
        "format": FORMAT,
        **origin,
        "blocks": [dataclasses.asdict(block) for block in blocks],
        "made": dict(made or {}),
        "data": {
            "config": data_config.model_dump(mode="json") if data_config else None,
            "name": data.name,
            "images": {"train": len(data.train), "val": len(data.val), "test": len(data.test)},
            "classes": list(data.classes),
            "mean": list(data.mean),
            "std": list(data.std),
        },
        "results": results,
        "history": [metrics.as_dict() for metrics in trained.history],
        "device": device_name(runtime.device),
        "precision": runtime.precision,
        "versions": _versions(),
    }
    write_text(out_dir / CARD, model_card(manifest))
    write_text(manifest_file, json.dumps(manifest, indent=2) + "\n")
    for leftover in (checkpoint, previous_of(checkpoint)):
        remove(leftover)
    return RetrainResult(**results, path=out_dir / WEIGHTS)


def baselines(config: DistillConfig) -> dict[str, DistillConfig]:
    """Return the configs of the baselines: the same student without distillation, by name.

    scratch starts from random weights, finetune from the teacher's weights in kept blocks; a separate student
    has none, so it has the first baseline alone. Both train all
    parameters with the method's baseline settings (cross-entropy alone), everything else as in `config`.

    Args:
        config: the student's.

    Returns:
        Configs by the baseline's name.

    Example:
        config = DistillConfig(student=StudentSpec(widths={blocks[0].name: 0.25}), epochs=1)
        for name, variant in baselines(config).items():
            print(name, variant.warm_start, distill(variant, setup).history[-1].val_accuracy)
    """
    method: type[Method] = METHODS.get(config.method)
    plain = {"loss": method.baseline(config.loss), "train": "all"}
    found = {"scratch": config.model_copy(update={**plain, "warm_start": "none"})}
    if config.student.arch is None:
        found["finetune"] = config.model_copy(update={**plain, "warm_start": "teacher"})
    return found


def _teacher_of(record: TeacherRecord) -> dict[str, Any]:
    return {
        "arch": record.arch,
        "hash": record.hash,
        "num_classes": record.num_classes,
        "image_shape": list(record.image_shape),
        "small_stem": record.small_stem,
    }


def _read_back(file: Path, origin: Mapping[str, Any]) -> RetrainResult:
    manifest = _read_manifest(file)
    for key, value in origin.items():
        if _comparable(key, manifest.get(key)) != _comparable(key, value):
            raise InputError(
                f"{file}: holds a finished model of another {key}; choose another folder or remove this one"
            )
    weights = file.parent / WEIGHTS
    if not weights.exists():
        raise InputError(f"{weights}: missing beside its manifest; remove {file.name} to train it again")
    return RetrainResult(**manifest["results"], path=weights)


def _comparable(key: str, value: Any) -> Any:
    """A part of a manifest without what later versions added at its default: configs by their digest."""
    if key != "config" or not isinstance(value, dict):
        return value
    try:
        return DistillConfig.model_validate(value).digest()
    except ValidationError:
        return value


def _versions() -> dict[str, str]:
    packages = ("ama-search", "torch", "torchvision", "numpy")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}
