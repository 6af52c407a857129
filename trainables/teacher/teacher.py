"""Teachers: trained here or brought along, and the record of what each one is and scores."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from trainables.config import TeacherConfig, hash_json
from trainables.data.dataset import ImageData
from trainables.errors import InputError
from trainables.network.evaluate import evaluate
from trainables.network.weights import load_weights, save_weights, weights_hash
from trainables.runtime.runtime import Runtime, seeded
from trainables.teacher.architectures import build_model, resolve_stem
from trainables.teacher.record import FORMAT, TeacherRecord
from trainables.training.checkpoint import has_checkpoint, load_checkpoint, previous_of, save_checkpoint
from trainables.training.optim import lr_at, make_optimizer, set_lr

__all__ = [
    "Teacher",
    "TeacherRecord",
    "build_model",
    "load_teacher",
    "load_weights",
    "save_teacher",
    "save_weights",
    "train_teacher",
    "weights_hash",
]

log = logging.getLogger(__name__)

TEACHER_FILE = "teacher.safetensors"
EPOCH_SEEDS = 1_000_003  # keeps the random streams of neighbouring seeds' epochs apart

Report = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Teacher:
    """A trained network in eval mode on the runtime's device, and its record."""

    model: nn.Module
    record: TeacherRecord


@dataclass
class _Training:
    """What a training goes on from: all of it is in the checkpoint of each epoch."""

    model: nn.Module
    optimizer: torch.optim.SGD
    scaler: torch.amp.GradScaler
    epoch: int = 0  # epochs done
    seconds: float = 0.0

    def save(self, path: Path, key: str) -> None:
        parts = {"model": self.model, "optimizer": self.optimizer, "scaler": self.scaler}
        state = {name: part.state_dict() for name, part in parts.items()}  # type: ignore[attr-defined]
        save_checkpoint(path, {"key": key, "epoch": self.epoch, "seconds": self.seconds, **state})

    def restore(self, path: Path, key: str) -> None:
        state = load_checkpoint(path)
        if state.get("key") != key:
            raise InputError(
                f"{path} is of a teacher training with another config, data or seed: "
                "undo the change to go on with it, or delete the file to start from the beginning"
            )
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.epoch, self.seconds = state["epoch"], state["seconds"]


def train_teacher(
    config: TeacherConfig,
    data: ImageData,
    runtime: Runtime,
    out: Path,
    seed: int = 0,
    report: Report | None = None,
) -> Teacher:
    """Train a teacher: SGD with Nesterov momentum, warm-up and cosine decay, cross-entropy.

    A checkpoint beside `out` is written after each epoch and removed at the end. Where one is found the
    training goes on from it, on a CPU with the same numbers as without the break.

    Args:
        config: architecture and recipe; its `checkpoint` is not looked at.
        data: training and validation images; test images, where there, are scored once at the end.
        runtime: device, precision and layout.
        out: the weights' safetensors file; the record goes beside it as `.json`.
        seed: of the initial weights, the order of the images and dropout.
        report: called after each epoch with epoch (1-based), epochs, train_loss, val_accuracy, val_loss, lr,
            seconds (training so far) and images_per_second.

    Raises:
        InputError: no such architecture; it does not suit the images; the loss is not finite any more; the
            checkpoint found is of another training.
    """
    model = _place(_build(config, data, seed), runtime)
    training = _Training(
        model,
        make_optimizer(model, config.lr, config.momentum, config.weight_decay),
        torch.amp.GradScaler(runtime.device.type, enabled=runtime.precision == "fp16"),
    )
    checkpoint = out.with_suffix(".ckpt")
    recipe = config.model_dump(mode="json", exclude={"checkpoint"})
    key = hash_json({"config": recipe, "data": data.hash, "seed": seed})
    if has_checkpoint(checkpoint):
        training.restore(checkpoint, key)
    while training.epoch < config.epochs:
        metrics = _run_epoch(training, config, data, runtime, seed)
        if not math.isfinite(metrics["train_loss"]):
            _remove(checkpoint)  # the epochs before are already on their way to this
            raise InputError(
                f"teacher training diverged: the loss of epoch {training.epoch} is {metrics['train_loss']}; "
                f"lower teacher.lr ({config.lr}) or raise teacher.warmup_epochs ({config.warmup_epochs})"
            )
        training.save(checkpoint, key)
        if report is not None:
            report(metrics)
    teacher = _scored(model, config, data, runtime, "trained", training)
    save_teacher(teacher, out)
    _remove(checkpoint)
    return teacher


def load_teacher(
    config: TeacherConfig, data: ImageData, runtime: Runtime, run_dir: Path, seed: int = 0
) -> Teacher:
    """The teacher that `teacher.checkpoint` names, scored now, else the one trained into `run_dir`.

    A trained teacher keeps the scores of its record where they are of this data; test scores that the
    record lacks are added when `data` has test images. Nothing is written.

    Args:
        config: architecture, and the checkpoint or None.
        data: what it classifies; test images are scored where they are there.
        runtime: where it runs.
        run_dir: holds `teacher.safetensors` and `teacher.json` when `config.checkpoint` is None.
        seed: of whatever the file's weights do not determine.

    Raises:
        InputError: no teacher; its file cannot be read or does not fit; the one in `run_dir` is of another
            architecture, image shape, number of classes or normalisation, or not the one of its record.
    """
    if config.checkpoint is not None:
        path = Path(config.checkpoint).expanduser()
        model = _build(config, data, seed)
        load_weights(model, path, what=f"{config.arch} with {data.num_classes} classes")
        return _scored(_place(model, runtime), config, data, runtime, path.name)
    path = run_dir / TEACHER_FILE
    if not path.exists():
        raise InputError(
            f"no teacher: {path} does not exist; train it with `ama teacher`, or name a teacher.checkpoint"
        )
    record = TeacherRecord.load(path.with_suffix(".json"))
    if faults := _differences(record, config, data):
        raise InputError(
            f"{path} is another teacher: {'; '.join(faults)}; train one for this experiment in a new run "
            "directory, or name a teacher.checkpoint"
        )
    model = _build(config, data, seed)
    load_weights(model, path, what=f"{config.arch} with {data.num_classes} classes")
    if (found := weights_hash(model)) != record.hash:
        raise InputError(f"{path}: weights have the hash {found}, but its record says {record.hash}")
    model = _place(model, runtime).eval()
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


def _build(config: TeacherConfig, data: ImageData, seed: int) -> nn.Module:
    with seeded(seed):
        return build_model(config.arch, data.num_classes, data.image_shape, config.small_stem)


def _place(model: nn.Module, runtime: Runtime) -> nn.Module:
    return model.to(runtime.device).to(memory_format=runtime.memory_format)  # type: ignore[call-overload,no-any-return]


def _run_epoch(
    training: _Training, config: TeacherConfig, data: ImageData, runtime: Runtime, seed: int
) -> dict[str, Any]:
    """One pass over the training images, then a look at the validation images."""
    started = time.perf_counter()
    model, optimizer, scaler = training.model.train(), training.optimizer, training.scaler
    steps = data.steps_per_epoch(config.batch_size)
    warmup = round(config.warmup_epochs * steps)
    total_loss = torch.zeros((), device=runtime.device)
    lr = 0.0
    # Dropout draws from a stream of this epoch's own: a resumed training needs no random state from before.
    with seeded(seed * EPOCH_SEEDS + training.epoch):
        batches = data.train_batches(config.batch_size, seed, training.epoch, runtime)
        for step, (images, labels) in enumerate(batches, start=training.epoch * steps):
            lr = lr_at(step, config.epochs * steps, warmup, config.lr)
            set_lr(optimizer, lr)
            with runtime.autocast():
                logits = model(images)
            loss = F.cross_entropy(logits.float(), labels)
            optimizer.zero_grad(set_to_none=True)
            scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            scaler.step(optimizer)
            scaler.update()
            total_loss += loss.detach() * len(labels)
    train_loss = total_loss.item() / len(data.train)  # waits for the device
    seconds = time.perf_counter() - started
    training.epoch += 1
    training.seconds += seconds
    val = evaluate(model, data.eval_batches("val", runtime), runtime)
    return {
        "epoch": training.epoch,
        "epochs": config.epochs,
        "train_loss": train_loss,
        "val_accuracy": val.accuracy,
        "val_loss": val.loss,
        "lr": lr,
        "seconds": training.seconds,
        "images_per_second": len(data.train) / seconds,
    }


def _scores(model: nn.Module, data: ImageData, runtime: Runtime) -> dict[str, Any]:
    val = evaluate(model, data.eval_batches("val", runtime), runtime)
    test = None if data.test is None else evaluate(model, data.eval_batches("test", runtime), runtime)
    return {
        "val_accuracy": val.accuracy,
        "val_loss": val.loss,
        "test_accuracy": test and test.accuracy,
        "test_loss": test and test.loss,
    }


def _scored(
    model: nn.Module,
    config: TeacherConfig,
    data: ImageData,
    runtime: Runtime,
    source: str,
    training: _Training | None = None,
) -> Teacher:
    record = TeacherRecord(
        arch=config.arch,
        hash=weights_hash(model),
        data_hash=data.hash,
        small_stem=resolve_stem(config.arch, data.image_shape, config.small_stem),
        num_classes=data.num_classes,
        image_shape=data.image_shape,
        epochs=training.epoch if training else 0,
        seconds=training.seconds if training else 0.0,
        mean=data.mean,
        std=data.std,
        source=source,
        **_scores(model, data, runtime),
    )
    return Teacher(model.eval(), record)


def _differences(record: TeacherRecord, config: TeacherConfig, data: ImageData) -> list[str]:
    """All that keeps the recorded teacher from being the one that config and data ask for."""
    pairs: dict[str, tuple[Any, Any]] = {
        "teacher.arch": (record.arch, config.arch),
        "classes": (record.num_classes, data.num_classes),
        "image shape": (record.image_shape, data.image_shape),
        "small stem": (record.small_stem, resolve_stem(config.arch, data.image_shape, config.small_stem)),
        "data.mean": (record.mean, data.mean),
        "data.std": (record.std, data.std),
    }
    return [f"{name} was {had}, now {now}" for name, (had, now) in pairs.items() if had != now]


def _remove(checkpoint: Path) -> None:
    checkpoint.unlink(missing_ok=True)
    previous_of(checkpoint).unlink(missing_ok=True)
