"""Load, save and score teachers, trained here or given."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from trainables.config import TeacherConfig
from trainables.data.dataset import ImageData
from trainables.errors import InputError
from trainables.network.architectures import build_model, resolve_stem
from trainables.network.evaluate import evaluate
from trainables.network.weights import load_weights, save_weights, weights_hash
from trainables.runtime.runtime import Runtime, resolve
from trainables.runtime.seeds import seeded
from trainables.teacher.record import FORMAT, TeacherRecord

log = logging.getLogger(__name__)

TEACHER_FILE = "teacher.safetensors"


@dataclass(frozen=True)
class Teacher:
    """A trained network in eval mode on the runtime's device, and its record.

    Example:
        teacher = load_teacher("teacher.safetensors", data)
        print(teacher.record.hash, teacher.record.val_accuracy, teacher.model.training)
    """

    model: nn.Module
    record: TeacherRecord


def load_teacher(
    config: TeacherConfig | str | os.PathLike[str],
    data: ImageData,
    runtime: Runtime | None = None,
    run_dir: str | os.PathLike[str] = ".",
    seed: int = 0,
) -> Teacher:
    """Load the teacher of `teacher.checkpoint`, or the one trained into `run_dir`.

    A path in place of the config names a teacher that was trained here, by `train_teacher` or `ama`: the
    record beside the weights gives its architecture.

    A given teacher is scored now. A trained teacher keeps the scores of its record if they are of this data;
    missing test scores are added if `data` has test images. Nothing is written.

    Args:
        config: architecture, and the checkpoint or None; or the path of a trained teacher's weights, or of
            the run directory that they are in.
        data: the images to classify; test images are scored if they are loaded.
        runtime: its device, layout and precision are used; None: this machine's default.
        run_dir: holds `teacher.safetensors` and `teacher.json` if `config.checkpoint` is None.
        seed: of anything random that the file's weights do not replace.

    Returns:
        The model in eval mode on the runtime's device, and its record.

    Raises:
        InputError: no teacher; its file cannot be read or does not fit; the one in `run_dir` has another
            architecture, image shape, number of classes or normalisation, or does not match its record.

    Example:
        teacher = load_teacher("teacher.safetensors", data)
        same = load_teacher(TeacherConfig(arch="cifar_resnet8", checkpoint="teacher.safetensors"), data)
        print(teacher.record.arch, teacher.record.val_accuracy, same.record.hash == teacher.record.hash)
    """
    runtime = runtime or resolve()
    if isinstance(config, TeacherConfig) and config.checkpoint is not None:
        path = Path(config.checkpoint).expanduser()
        model = untrained(config, data, seed)
        load_weights(model, path, what=f"{config.arch} with {data.num_classes} classes")
        return scored(placed(model, runtime), config, data, runtime, path.name)
    if isinstance(config, TeacherConfig):
        path = Path(run_dir) / TEACHER_FILE
    else:
        given = Path(config).expanduser()
        path = given / TEACHER_FILE if given.is_dir() else given
    if not path.exists():
        raise InputError(
            f"no teacher: {path} does not exist; train it with `ama teacher`, or name a teacher.checkpoint"
        )
    if not isinstance(config, TeacherConfig) and not path.with_suffix(".json").exists():
        raise InputError(
            f"{path}: no record beside it, as `train_teacher` writes it; name the architecture: "
            f"TeacherConfig(arch=..., checkpoint={str(path)!r})"
        )
    record = TeacherRecord.load(path.with_suffix(".json"))
    if not isinstance(config, TeacherConfig):
        config = TeacherConfig(arch=record.arch, small_stem=record.small_stem)
    if faults := _differences(record, config, data):
        raise InputError(
            f"{path} is another teacher: {'; '.join(faults)}; train one for this experiment in a new run "
            "directory, or name a teacher.checkpoint"
        )
    model = untrained(config, data, seed)
    load_weights(model, path, what=f"{config.arch} with {data.num_classes} classes")
    if (found := weights_hash(model)) != record.hash:
        raise InputError(f"{path}: weights have the hash {found}, but its record says {record.hash}")
    model = placed(model, runtime).eval()
    if record.data_hash == data.hash and (data.test is None or record.test_accuracy is not None):
        return Teacher(model, record)
    if record.data_hash != data.hash:
        log.warning("%s was trained on another split and may have seen these validation images", path)
    scores = _scores(model, data, runtime)
    return Teacher(model, replace(record, data_hash=data.hash, **scores))


def save_teacher(teacher: Teacher, out: Path) -> None:
    """Write the weights to `out` (safetensors) and the record beside it as `.json`."""
    record = teacher.record
    metadata = {"format": str(FORMAT), "version": record.version, "arch": record.arch, "hash": record.hash}
    save_weights(teacher.model, out, metadata | {"data_hash": record.data_hash, "source": record.source})
    record.save(out.with_suffix(".json"))


def untrained(config: TeacherConfig, data: ImageData, seed: int) -> nn.Module:
    """Build the architecture of `config` for the images and classes of `data`, with random weights."""
    with seeded(seed):
        return build_model(config.arch, data.num_classes, data.image_shape, config.small_stem)


def placed(model: nn.Module, runtime: Runtime) -> nn.Module:
    """Move `model` to the runtime's device and memory layout."""
    return model.to(runtime.device).to(memory_format=runtime.memory_format)  # type: ignore[call-overload,no-any-return]


def _scores(model: nn.Module, data: ImageData, runtime: Runtime) -> dict[str, Any]:
    val = evaluate(model, data.eval_batches("val", runtime), runtime)
    test = None if data.test is None else evaluate(model, data.eval_batches("test", runtime), runtime)
    return {
        "val_accuracy": val.accuracy,
        "val_loss": val.loss,
        "test_accuracy": test and test.accuracy,
        "test_loss": test and test.loss,
    }


def scored(
    model: nn.Module,
    config: TeacherConfig,
    data: ImageData,
    runtime: Runtime,
    source: str,
    epochs: int = 0,
    seconds: float = 0.0,
) -> Teacher:
    """Set `model` to eval mode, score it on `data`, and return it with its record.

    Args:
        source: `trained`, or the name of the weights' file.
        epochs: epochs trained here.
        seconds: wall time of these epochs, without validation.
    """
    record = TeacherRecord(
        arch=config.arch,
        hash=weights_hash(model),
        data_hash=data.hash,
        small_stem=resolve_stem(config.arch, data.image_shape, config.small_stem),
        num_classes=data.num_classes,
        image_shape=data.image_shape,
        epochs=epochs,
        seconds=seconds,
        mean=data.mean,
        std=data.std,
        source=source,
        **_scores(model, data, runtime),
    )
    return Teacher(model.eval(), record)


def _differences(record: TeacherRecord, config: TeacherConfig, data: ImageData) -> list[str]:
    """List the differences between the recorded teacher and the one that config and data describe."""
    pairs: dict[str, tuple[Any, Any]] = {
        "teacher.arch": (record.arch, config.arch),
        "classes": (record.num_classes, data.num_classes),
        "image shape": (record.image_shape, data.image_shape),
        "small stem": (record.small_stem, resolve_stem(config.arch, data.image_shape, config.small_stem)),
        "data.mean": (record.mean, data.mean),
        "data.std": (record.std, data.std),
    }
    return [f"{name} was {had}, now {now}" for name, (had, now) in pairs.items() if had != now]
