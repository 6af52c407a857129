"""The distillation loop: teacher, student, loss, one optimiser. No Ray in it; `report` is a callable."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trainables.assembly import Modules, candidate_maps, start_student
from trainables.blocks import Block
from trainables.checkpoint import has_checkpoint, load_checkpoint, save_checkpoint
from trainables.config import DistillConfig, hash_json
from trainables.data import ImageData
from trainables.errors import InputError
from trainables.evaluation import evaluate
from trainables.losses import DistillationLoss, LossParts
from trainables.optim import lr_at, make_optimizer, set_lr
from trainables.runtime import Runtime, seeded
from trainables.student import Taps, spans_of
from trainables.teachers import weights_hash

CHECK_EVERY = 50  # steps between looks at the loss, each of which waits for the device
LOGGED = ("total", "ce", "kl", "feature", "regulariser", "entropy")


class TrainingDiverged(RuntimeError):  # noqa: N818 - a result of the trial, not a fault of the code
    """The loss is not finite any more; the message says where and which part."""


@dataclass(frozen=True)
class EpochMetrics:
    """One epoch of distillation; losses are means over the training images, as they were while training."""

    epoch: int  # epochs done, from 1
    val_accuracy: float  # 0..1
    val_loss: float  # cross-entropy, nats
    train_loss: float
    ce: float
    kl: float
    feature: float
    entropy: float  # of the adaptive span weights, 0..1 of its maximum; 1 for uniform
    lr: float  # of the last step
    seconds: float  # training and validation
    images_per_second: float  # training alone

    def as_dict(self) -> dict[str, Any]:
        """Field names to values."""
        return dataclasses.asdict(self)


Report = Callable[[EpochMetrics], bool | None]


@dataclass(frozen=True)
class DistillResult:
    """A trained student (in eval mode) and its learning curve."""

    student: nn.Module
    history: tuple[EpochMetrics, ...]


class Distiller:
    """One distillation, an epoch at a time; its state dict resumes it exactly.

    What a run computes depends on config, teacher and data alone: order and augmentation come from
    (seed, epoch), and so does the random state under which the student's own dropout runs.
    """

    def __init__(
        self,
        config: DistillConfig,
        teacher: nn.Module,
        blocks: Sequence[Block],
        data: ImageData,
        runtime: Runtime,
        modules: Modules | None = None,
    ) -> None:
        """Assemble student, loss and optimiser on the runtime's device.

        Args:
            config: the trial.
            teacher: images (B, 3, H, W) to logits; moved to the device, set to eval mode, never trained.
            blocks: the teacher's blocks.
            data: training and validation images.
            runtime: device, precision, layout.
            modules: pre-distilled AMA modules by span key; read with `warm_start: library` alone.

        Raises:
            InputError: unknown block names; a library start without the modules it needs; `train: modules`
                with a student whose kept parts would be random.
        """
        self.config, self.data, self.runtime = config, data, runtime
        self.spans = spans_of(blocks, config.student)
        self.teacher = teacher.to(runtime.device, memory_format=runtime.memory_format).eval()  # type: ignore[call-overload]
        self.student = start_student(config, self.teacher, blocks, self.spans, data, runtime, modules)
        self._targets = [candidate_maps(span, blocks, config.loss) for span in self.spans]
        self.loss = DistillationLoss(
            config.loss, [len(paths) for paths in self._targets], config.optim.label_smoothing
        ).to(runtime.device)
        self.optimizer = make_optimizer(
            self.student, config.optim.lr, config.optim.momentum, config.optim.weight_decay
        )
        self.optimizer.add_param_group(
            {"params": list(self.loss.parameters()), "weight_decay": 0.0, "lr_scale": self.loss.lr_scale}
        )
        self._scaler = torch.amp.GradScaler(runtime.device.type, enabled=runtime.precision == "fp16")  # type: ignore[attr-defined]
        self.history: list[EpochMetrics] = []

    @property
    def epoch(self) -> int:
        """Epochs done."""
        return len(self.history)

    @property
    def finished(self) -> bool:
        """Whether all of the config's epochs are done."""
        return self.epoch >= self.config.epochs

    def run_epoch(self) -> EpochMetrics:
        """Train one epoch, then score the validation images.

        Raises:
            TrainingDiverged: a part of the loss, or the validation loss, is NaN or infinite.
        """
        assert not self.finished, f"all {self.config.epochs} epochs are done"
        started = time.perf_counter()
        # A random state of its own for each epoch: dropout is the same whatever ran before, resumed or not.
        with seeded(int(hash_json(["dropout", self.config.seed, self.epoch]), 16) % 2**63):
            means = self._train_epoch()
        trained = time.perf_counter() - started
        score = evaluate(self.student, self.data.eval_batches("val", self.runtime), self.runtime)
        if not math.isfinite(score.loss):
            raise TrainingDiverged(f"epoch {self.epoch + 1}: the validation loss is {score.loss}")
        metrics = EpochMetrics(
            epoch=self.epoch + 1,
            val_accuracy=score.accuracy,
            val_loss=score.loss,
            train_loss=means["total"],
            ce=means["ce"],
            kl=means["kl"],
            feature=means["feature"],
            entropy=means["entropy"],
            lr=self._lr((self.epoch + 1) * self._steps - 1),
            seconds=time.perf_counter() - started,
            images_per_second=len(self.data.train) / trained,
        )
        self.history.append(metrics)
        return metrics

    def state_dict(self) -> dict[str, Any]:
        """Everything an exact resume needs, tensors and plain values alone."""
        return {
            "format": 1,
            "origin": self._origin,
            "student": self.student.state_dict(),
            "loss": self.loss.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
            "history": [metrics.as_dict() for metrics in self.history],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state_dict` gave.

        Raises:
            InputError: it belongs to another config, teacher or data set, or is no such state at all.
        """
        if state.get("format") != 1:
            raise InputError(f"checkpoint: expected a distillation of format 1, got {state.get('format')!r}")
        for what, value in self._origin.items():
            if state["origin"][what] != value:
                raise InputError(
                    f"checkpoint: made with another {what}: expected {value}, got {state['origin'][what]}"
                )
        self.student.load_state_dict(state["student"])
        self.loss.load_state_dict(state["loss"])
        self.optimizer.load_state_dict(state["optimizer"])
        self._scaler.load_state_dict(state["scaler"])
        self.history = [EpochMetrics(**metrics) for metrics in state["history"]]

    @cached_property
    def _origin(self) -> dict[str, str]:
        return {
            "config": self.config.digest(),
            "data": self.data.hash,
            "teacher": weights_hash(self.teacher),
        }

    @cached_property
    def _steps(self) -> int:
        return self.data.steps_per_epoch(self.config.optim.batch_size)

    def _lr(self, step: int) -> float:
        optim = self.config.optim
        return lr_at(
            step, self.config.epochs * self._steps, round(optim.warmup_epochs * self._steps), optim.lr
        )

    def _train_epoch(self) -> dict[str, float]:
        """One pass over the training images; means of the loss parts. The device is waited for rarely."""
        self.student.train(self.config.train == "all")  # frozen parts keep their batch-norm statistics
        for span in self.spans:
            self.student.get_submodule(span.first).train()
        batches = self.data.train_batches(
            self.config.optim.batch_size, self.config.seed, self.epoch, self.runtime
        )
        read = {path for paths in self._targets for path in paths} if self.loss.reads_maps else ()
        shown = [span.first for span in self.spans] if self.loss.reads_maps else []
        sums = torch.zeros(len(LOGGED), device=self.runtime.device)
        with Taps(self.teacher, sorted(read)) as targets, Taps(self.student, shown) as maps:
            for index, (images, labels) in enumerate(batches):
                set_lr(self.optimizer, self._lr(self.epoch * self._steps + index))
                parts = self._step(images, labels, targets, maps)
                sums += torch.stack([getattr(parts, name) for name in LOGGED]).detach() * len(labels)
                if (index + 1) % CHECK_EVERY == 0:
                    self._check(sums, index + 1)
        self._check(sums, self._steps)
        return dict(zip(LOGGED, (sums / len(self.data.train)).tolist(), strict=True))

    def _step(self, images: Tensor, labels: Tensor, targets: Taps, maps: Taps) -> LossParts:
        teacher_logits = None
        with self.runtime.autocast():
            if self.loss.reads_logits or self.loss.reads_maps:
                with torch.inference_mode():
                    teacher_logits = self.teacher(images)
            logits = self.student(images)
        parts: LossParts = self.loss(
            logits,
            teacher_logits,
            labels,
            [maps.outputs[span.first] for span in self.spans] if maps.outputs else [],
            [[targets.outputs[path] for path in paths] for paths in self._targets] if maps.outputs else [],
        )
        targets.clear()
        maps.clear()
        self.optimizer.zero_grad(set_to_none=True)
        if parts.total.requires_grad:  # `train: modules` of a student that keeps every block trains nothing
            self._scaler.scale(parts.total).backward()  # type: ignore[no-untyped-call]
            self._scaler.step(self.optimizer)
            self._scaler.update()
        return parts

    def _check(self, sums: Tensor, step: int) -> None:
        values = dict(zip(LOGGED, sums.tolist(), strict=True))
        faults = [name for name, value in values.items() if not math.isfinite(value)]
        if faults:
            named = [name for name in faults if name != "total"] or ["total"]
            raise TrainingDiverged(
                f"epoch {self.epoch + 1}, by step {step} of {self._steps}: not finite: {', '.join(named)} "
                f"(learning rate {self._lr(self.epoch * self._steps + step - 1):.3g})"
            )


def distill(
    config: DistillConfig,
    teacher: nn.Module,
    blocks: Sequence[Block],
    data: ImageData,
    runtime: Runtime,
    report: Report | None = None,
    checkpoint: Path | None = None,
    modules: Modules | None = None,
) -> DistillResult:
    """Train the student of `config` to its last epoch.

    Args:
        config: the trial; `teacher`, `blocks`, `data`, `runtime` and `modules` as for `Distiller`.
        report: called after every epoch; returning True ends the training there.
        checkpoint: file written after every epoch, and resumed from where it exists.

    Returns:
        The student and its learning curve, epochs before a resume included.

    Raises:
        InputError: as `Distiller`; or the checkpoint is another run's, or both its files are damaged.
        TrainingDiverged: the loss became NaN or infinite.
    """
    distiller = Distiller(config, teacher, blocks, data, runtime, modules)
    if checkpoint is not None and has_checkpoint(checkpoint):
        distiller.load_state_dict(load_checkpoint(checkpoint))
    while not distiller.finished:
        metrics = distiller.run_epoch()
        if checkpoint is not None:
            save_checkpoint(checkpoint, distiller.state_dict())
        if report is not None and report(metrics):
            break
    return DistillResult(distiller.student.eval(), tuple(distiller.history))
