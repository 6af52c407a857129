"""The training loop of a distillation. It uses methods through their interface and does not import Ray."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trainables.config import METHODS, DistillConfig
from trainables.errors import InputError
from trainables.methods.base import Batch, Method, Progress, Setup
from trainables.network.evaluate import Evaluation, evaluate
from trainables.network.scores import load_scores
from trainables.runtime.memory import peaks, reset_peaks
from trainables.runtime.seeds import seeded, stream
from trainables.runtime.stopwatch import Stopwatch
from trainables.training.checkpoint import has_checkpoint, load_checkpoint, save_checkpoint
from trainables.training.format_0_1 import FORMAT_0_1, from_0_1
from trainables.training.metrics import EpochMetrics, Sums
from trainables.training.optim import lr_at, set_lr
from trainables.training.step import TOTAL, Stepper, TooLarge, free_memory

FORMAT = 2  # of a distillation's state dict
CHECK_EVERY = 50  # steps between checks that the loss is finite
LEAST_EVAL_BATCH = 32  # images; a trial fails if not even these fit into memory


class TrainingDiverged(RuntimeError):  # noqa: N818 - a result of the trial, not a fault of the code
    """The loss became NaN or infinite; the message names the epoch and the part of the loss.

    Example:
        hot = DistillConfig(optim=OptimConfig(lr=1e9), epochs=1)
        try:
            distill(hot, setup)
        except TrainingDiverged as fault:
            print(fault)
    """


Report = Callable[[EpochMetrics], bool | None]


@dataclass(frozen=True)
class DistillResult:
    """A trained student (in eval mode) and its learning curve.

    Example:
        spec = StudentSpec(widths={blocks[0].name: 0.25})
        result = distill(DistillConfig(student=spec, epochs=1), setup)
        print(len(result.history), evaluate(result.student, data).accuracy)
    """

    student: nn.Module
    history: tuple[EpochMetrics, ...]


class Distiller:
    """One distillation, run epoch by epoch; its state dict resumes it exactly.

    Results depend on config, teacher and data alone: the order of the images, their augmentation and the
    random state of dropout are derived from (seed, epoch).
    """

    def __init__(self, config: DistillConfig, setup: Setup) -> None:
        """Create the method, its student and its optimisers on the runtime's device.

        Args:
            config: the trial.
            setup: teacher, blocks, data, runtime and modules; one setup serves many distillations.

        Raises:
            InputError: no such method, unknown block names, or the setup lacks what the method needs.
        """
        reset_peaks(setup.runtime.device)
        self.config, self.setup = config, setup
        self.data, self.runtime = setup.data, setup.runtime
        self.method: Method = METHODS.get(config.method)(setup, config)
        optim = config.optim
        self._stepper = Stepper(self.method, setup.runtime, optim.lr, optim.momentum, optim.weight_decay)
        self._eval_batch = setup.runtime.eval_batch
        self._scores = load_scores(config.scores)
        self.history: list[EpochMetrics] = []

    @property
    def student(self) -> nn.Module:
        """The student that the method trains."""
        return self.method.student

    @property
    def epoch(self) -> int:
        """Epochs done."""
        return len(self.history)

    @property
    def finished(self) -> bool:
        """True if all epochs of the config are done."""
        return self.epoch >= self.config.epochs

    def run_epoch(self, after_step: Callable[[int], None] | None = None) -> EpochMetrics:
        """Train one epoch, then score the validation images.

        Args:
            after_step: called after each step with the number of steps done in this epoch.

        Raises:
            TrainingDiverged: a part of the loss, or the validation loss, is NaN or infinite.
            TooLarge: training does not fit into the GPU's memory, not even with half of the batch.
        """
        assert not self.finished, f"all {self.config.epochs} epochs are done"
        started = time.perf_counter()
        watch = Stopwatch(self.runtime.device)
        # A separate random state for each epoch: dropout is the same, resumed or not.
        with seeded(stream("dropout", self.config.seed, self.epoch)):
            losses = self._train_epoch(watch, after_step)
        trained = time.perf_counter() - started
        watch.start()
        score = self._evaluate()
        watch.mark("eval")
        if not math.isfinite(score.loss):
            raise TrainingDiverged(f"epoch {self.epoch + 1}: the validation loss is {score.loss}")
        seconds = watch.seconds()
        host, gpu = peaks(self.runtime.device)
        metrics = EpochMetrics(
            epoch=self.epoch + 1,
            val_accuracy=score.accuracy,
            val_loss=score.loss,
            train_loss=losses.pop(TOTAL),
            lr=self._lr((self.epoch + 1) * self._steps - 1),
            seconds=time.perf_counter() - started,
            images_per_second=len(self.data.train) / trained,
            data_seconds=seconds.get("data", 0.0),
            step_seconds=seconds.get("step", 0.0),
            eval_seconds=seconds["eval"],
            host_mib=host,
            gpu_mib=gpu,
            micro_batches=self._stepper.micro_batches,
            losses=losses,
            metrics={**self.method.metrics(), **score.scores},
        )
        self.history.append(metrics)
        return metrics

    def _evaluate(self) -> Evaluation:
        """Score the student on the validation images, in smaller batches if memory is short."""
        while True:
            try:
                batches = self.data.eval_batches("val", self.runtime, self._eval_batch)
                return evaluate(self.student, batches, self.runtime, self._scores)
            except torch.OutOfMemoryError as fault:
                if self._eval_batch <= LEAST_EVAL_BATCH:
                    raise TooLarge(f"scoring {self._eval_batch} images at a time: {fault}") from None
            self._eval_batch //= 2
            free_memory(self.runtime.device)

    def state_dict(self) -> dict[str, Any]:
        """Return everything that an exact resume needs: tensors and plain values alone."""
        return {
            "format": FORMAT,
            "origin": self._origin,
            "method": self.method.state_dict(),
            "optimizers": {name: each.state_dict() for name, each in self._stepper.optimizers.items()},
            "scaler": self._stepper.scaler.state_dict(),
            "micro_batches": self._stepper.micro_batches,
            "history": [metrics.as_dict() for metrics in self.history],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a `state_dict` of this version or of 0.1.

        Raises:
            InputError: the state is of another config, teacher or data set, or of another format.
        """
        if state.get("format") not in (FORMAT_0_1, FORMAT):
            raise InputError(
                f"checkpoint: expected a distillation of format {FORMAT}, got {state.get('format')!r}"
            )
        if state["format"] == FORMAT_0_1:
            state = from_0_1(state, self.config)
        for what, value in self._origin.items():
            if state["origin"][what] != value:
                raise InputError(
                    f"checkpoint: made with another {what}: expected {value}, got {state['origin'][what]}"
                )
        self.method.load_state_dict(state["method"])
        for name, optimizer in self._stepper.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        self._stepper.scaler.load_state_dict(state["scaler"])
        self._stepper.micro_batches = state.get("micro_batches", 1)
        self.history = [EpochMetrics.from_dict(metrics) for metrics in state["history"]]

    @cached_property
    def _origin(self) -> dict[str, str]:
        return {
            "config": self.config.digest(),
            "data": self.data.hash,
            "teacher": self.setup.teacher_hash,
        }

    @cached_property
    def _steps(self) -> int:
        return self.data.steps_per_epoch(self.config.optim.batch_size)

    def _lr(self, step: int) -> float:
        optim = self.config.optim
        return lr_at(
            step, self.config.epochs * self._steps, round(optim.warmup_epochs * self._steps), optim.lr
        )

    def _train_epoch(self, watch: Stopwatch, after_step: Callable[[int], None] | None) -> dict[str, float]:
        """Train on all images once; return the means of the loss's parts. Never waits for the device."""
        steps = self.data.train_steps(
            self.config.optim.batch_size, self.config.seed, self.epoch, self.runtime
        )
        sums = Sums(self.runtime.device)
        first, total = self.epoch * self._steps, self.config.epochs * self._steps
        with self.method.reading():
            for index, (images, labels, order) in enumerate(steps):
                watch.mark("data")
                for optimizer in self._stepper.optimizers.values():
                    set_lr(optimizer, self._lr(first + index))
                progress = Progress(first + index, total, self._steps)
                sums.add(self._stepper.step(Batch(images, labels, order), progress), len(labels))
                if (index + 1) % CHECK_EVERY == 0 and (seen := sums.look(index + 1)):
                    self._check(*seen)
                watch.mark("step")
                if after_step is not None:
                    after_step(index + 1)
        totals = sums.wait()
        self._check(totals, self._steps)
        return {name: value / len(self.data.train) for name, value in totals.items()}

    def _check(self, values: Mapping[str, float], step: int) -> None:
        faults = [name for name, value in values.items() if not math.isfinite(value)]
        if faults:
            named = [name for name in faults if name != TOTAL] or [TOTAL]
            raise TrainingDiverged(
                f"epoch {self.epoch + 1}, by step {step} of {self._steps}: not finite: {', '.join(named)} "
                f"(learning rate {self._lr(self.epoch * self._steps + step - 1):.3g})"
            )


def distill(
    config: DistillConfig, setup: Setup, report: Report | None = None, checkpoint: Path | None = None
) -> DistillResult:
    """Train the student of `config` to its last epoch.

    Args:
        config: the trial.
        setup: teacher, blocks, data, runtime and modules.
        report: called after every epoch; training stops if it returns True.
        checkpoint: file written after every epoch; if it exists, training resumes from it.

    Returns:
        The student and its learning curve, epochs before a resume included.

    Raises:
        InputError: as `Distiller`; or the checkpoint is another run's, or both its files are damaged.
        TrainingDiverged: the loss became NaN or infinite.
        TooLarge: training does not fit into the GPU's memory.

    Example:
        setup = Setup.of(teacher.model, blocks, data)
        spec = StudentSpec(widths={blocks[0].name: 0.25, blocks[1].name: 0.5})
        result = distill(DistillConfig(student=spec, epochs=1), setup)
        for epoch in result.history:
            print(epoch.epoch, epoch.val_accuracy, epoch.losses)
    """
    distiller = Distiller(config, setup)
    if checkpoint is not None and has_checkpoint(checkpoint):
        distiller.load_state_dict(load_checkpoint(checkpoint))
    while not distiller.finished:
        metrics = distiller.run_epoch()
        if checkpoint is not None:
            save_checkpoint(checkpoint, distiller.state_dict())
        if report is not None and report(metrics):
            break
    return DistillResult(distiller.student.eval(), tuple(distiller.history))
