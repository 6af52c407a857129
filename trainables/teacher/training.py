"""Train a teacher from scratch; training can be resumed after every epoch."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from trainables.config import TeacherConfig
from trainables.config_base import MethodConfig, hash_json
from trainables.data.dataset import ImageData
from trainables.errors import InputError
from trainables.files import remove
from trainables.methods.base import Batch, Group, Method, Phase, Progress
from trainables.network.evaluate import evaluate
from trainables.runtime.runtime import Runtime
from trainables.runtime.seeds import seeded
from trainables.teacher.teacher import Teacher, placed, save_teacher, scored, untrained
from trainables.training.checkpoint import has_checkpoint, load_checkpoint, previous_of, save_checkpoint
from trainables.training.metrics import Sums
from trainables.training.optim import lr_at, set_lr
from trainables.training.step import TOTAL, Stepper, TooLarge

# Keys that are part of every training's identity; later keys count where they differ from their defaults.
RECIPE = ("arch", "small_stem", "epochs", "lr", "momentum", "weight_decay", "batch_size", "warmup_epochs")
EPOCH_SEEDS = 1_000_003  # factor that separates the random streams of epochs of neighbouring seeds
Report = Callable[[dict[str, Any]], None]


class _CrossEntropy(Method):
    """What the training loop's step needs to know: one phase, cross-entropy, all of the model."""

    name = "teacher"
    Config = MethodConfig

    def __init__(self, model: nn.Module, runtime: Runtime) -> None:
        nn.Module.__init__(self)  # no setup: nothing is distilled
        self.student, self.runtime = model, runtime

    def logits(self, images: Tensor) -> Tensor:
        with self.runtime.autocast():
            found: Tensor = self.student(images)
        return found

    def phases(self) -> list[Phase]:
        return [Phase(self.name, [Group(list(self.student.named_parameters()))])]

    def losses(self, batch: Batch, progress: Progress, phase: str) -> dict[str, Tensor]:
        assert batch.labels is not None
        return {"ce": F.cross_entropy(self.logits(batch.images).float(), batch.labels)}


@dataclass
class _Training:
    """The state of a training; all of it is in the checkpoint of each epoch."""

    model: nn.Module
    stepper: Stepper
    epoch: int = 0  # epochs done
    seconds: float = 0.0

    def save(self, path: Path, key: str) -> None:
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.stepper.optimizers[_CrossEntropy.name].state_dict(),
            "scaler": self.stepper.scaler.state_dict(),
        }
        save_checkpoint(path, {"key": key, "epoch": self.epoch, "seconds": self.seconds, **state})

    def restore(self, path: Path, key: str) -> None:
        state = load_checkpoint(path)
        if state.get("key") != key:
            raise InputError(
                f"{path} is of a teacher training with another config, data or seed: "
                "undo the change to continue it, or delete the file to start from the beginning"
            )
        self.model.load_state_dict(state["model"])
        self.stepper.optimizers[_CrossEntropy.name].load_state_dict(state["optimizer"])
        self.stepper.scaler.load_state_dict(state["scaler"])
        self.epoch, self.seconds = state["epoch"], state["seconds"]


def train_teacher(
    config: TeacherConfig,
    data: ImageData,
    runtime: Runtime,
    out: str | os.PathLike[str],
    seed: int = 0,
    report: Report | None = None,
) -> Teacher:
    """Train a teacher: SGD with Nesterov momentum, warm-up and cosine decay, cross-entropy.

    A checkpoint beside `out` is written after each epoch and removed at the end. If one exists, training
    resumes from it; on a CPU the result is the same as without the interruption.

    Args:
        config: architecture and recipe; its `checkpoint` is ignored.
        data: training and validation images; test images, if loaded, are scored once at the end.
        runtime: device, precision and layout.
        out: the weights' safetensors file; the record goes beside it as `.json`.
        seed: of the initial weights, the order of the images and dropout.
        report: called after each epoch with epoch (1-based), epochs, train_loss, val_accuracy, val_loss, lr,
            seconds (training so far) and images_per_second.

    Returns:
        The trained model in eval mode on the runtime's device, and its record with its scores.

    Raises:
        InputError: no such architecture; it does not fit the images; the loss became NaN or infinite; half a
            batch does not fit into memory; the checkpoint is of another training.

    Example:
        config = TeacherConfig(arch="cifar_resnet8", epochs=1, batch_size=32)
        trained = train_teacher(config, data, resolve(), "trained.safetensors", report=print)
        print(trained.record.val_accuracy, trained.record.test_accuracy)
    """
    out = Path(out)
    model = placed(untrained(config, data, seed), runtime)
    method = _CrossEntropy(model, runtime)
    training = _Training(
        model, Stepper(method, runtime, config.lr, config.momentum, config.weight_decay, "auto")
    )
    checkpoint = out.with_suffix(".ckpt")
    recipe = config.content(always=RECIPE)
    recipe.pop("checkpoint", None)
    key = hash_json({"config": recipe, "data": data.hash, "seed": seed})
    if has_checkpoint(checkpoint):
        training.restore(checkpoint, key)
    while training.epoch < config.epochs:
        try:
            metrics = _run_epoch(training, config, data, runtime, seed)
        except TooLarge as fault:
            raise InputError(
                f"teacher.batch_size: expected a batch that fits into memory in halves, got "
                f"{config.batch_size}: {fault}; lower it"
            ) from None
        if not math.isfinite(metrics["train_loss"]):
            _remove(checkpoint)  # earlier epochs already led to the divergence
            raise InputError(
                f"teacher training diverged: the loss of epoch {training.epoch} is {metrics['train_loss']}; "
                f"lower teacher.lr ({config.lr}) or raise teacher.warmup_epochs ({config.warmup_epochs})"
            )
        training.save(checkpoint, key)
        if report is not None:
            report(metrics)
    teacher = scored(model, config, data, runtime, "trained", training.epoch, training.seconds)
    save_teacher(teacher, out)
    _remove(checkpoint)
    return teacher


def _run_epoch(
    training: _Training, config: TeacherConfig, data: ImageData, runtime: Runtime, seed: int
) -> dict[str, Any]:
    """Train on all images once, then score the validation images."""
    started = time.perf_counter()
    model, stepper = training.model.train(), training.stepper
    steps = data.steps_per_epoch(config.batch_size)
    warmup = round(config.warmup_epochs * steps)
    sums = Sums(runtime.device)
    lr = 0.0
    # Dropout draws from a separate stream for each epoch, so a resume needs no earlier random state.
    with seeded(seed * EPOCH_SEEDS + training.epoch):
        batches = data.train_steps(config.batch_size, seed, training.epoch, runtime)
        for step, (images, labels, order) in enumerate(batches, start=training.epoch * steps):
            lr = lr_at(step, config.epochs * steps, warmup, config.lr)
            set_lr(stepper.optimizers[_CrossEntropy.name], lr)
            progress = Progress(step, config.epochs * steps, steps)
            sums.add(stepper.step(Batch(images, labels, order), progress), len(labels))
    train_loss = sums.wait()[TOTAL] / len(data.train)  # waits for the device
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


def _remove(checkpoint: Path) -> None:
    for file in (checkpoint, previous_of(checkpoint)):
        remove(file)
