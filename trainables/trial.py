"""The Ray Tune `Trainable` of one trial, around the training loop. The only file here that imports Ray."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ray import tune
from torch import nn

from trainables.blocks.blocks import Block
from trainables.config import DistillConfig, RuntimeConfig
from trainables.data.dataset import ImageData
from trainables.errors import InputError
from trainables.methods.base import Setup, Stages
from trainables.runtime.memory import Growth
from trainables.runtime.runtime import resolve
from trainables.training.checkpoint import load_checkpoint, save_checkpoint
from trainables.training.loop import Distiller, TrainingDiverged
from trainables.training.metrics import EpochMetrics
from trainables.training.profile import claim, profiled_epoch
from trainables.training.step import TooLarge

logger = logging.getLogger(__name__)

CHECKPOINT_FILE = "distiller.pt"


@dataclass(frozen=True)
class TrialContext:
    """Objects that all trials of a search share: stored in Ray's object store, loaded once per actor.

    Args:
        data: `ImageData.to_arrays()`: NumPy arrays, so that all actors of a node share the memory.
        teacher: the trained teacher in eval mode.
        blocks: the teacher's blocks that may be replaced.
        runtime: how the workers compute.
        modules: pre-distilled module weights by span key, or None.
        stages: results of the methods' stages.
        profile: folder for the profile of the first trial that reaches its second epoch, or None.
        growth: when to replace an actor whose memory use has grown.
    """

    data: Mapping[str, Any]
    teacher: nn.Module
    blocks: tuple[Block, ...]
    runtime: RuntimeConfig
    modules: Mapping[str, Any] | None = None
    stages: Stages = field(default_factory=dict)
    profile: str | None = None
    growth: Growth = field(default_factory=Growth)


class DistillTrial(tune.Trainable):  # type: ignore[misc]
    """A distillation as a Tune trial; one step is one epoch.

    The trial's config has `number` (of the study's row) and `distill` (a `DistillConfig` as JSON). For a
    trial that an earlier session left unfinished it also has `resume` (checkpoint folders, newest first) and
    `told` (number of epochs known to be in the study; later ones in the checkpoint are reported again).
    """

    def setup(self, config: dict[str, Any], *, context: TrialContext) -> None:
        """Load data, teacher and blocks, which later trials reuse; then start the first trial."""
        self._context = context
        self._runtime = resolve(context.runtime)
        self._data = ImageData.from_arrays(context.data)
        self._setup = Setup.of(
            context.teacher, context.blocks, self._data, self._runtime, context.modules, context.stages
        )
        self._growth = copy.deepcopy(context.growth)
        self._start(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Discard the state of the last trial and start the next one in this actor.

        Raises:
            MemoryGrown: the actor should end; Ray retries the trial in a new one.
        """
        self.__dict__.pop("_distiller", None)
        self._growth.check(self._runtime.device)
        self._start(new_config)
        return True

    def _start(self, config: dict[str, Any]) -> None:
        started = time.perf_counter()
        self._number = int(config["number"])
        distill = DistillConfig.model_validate_json(config["distill"])
        self._refused: str | None = None
        try:
            self._distiller = Distiller(distill, self._setup)
        except InputError as fault:  # reported by the first step: if raised here, Ray would retry the trial
            self._refused = str(fault)
            return
        self._resume_from(config.get("resume") or ())
        self._report_after(config.get("told", self._distiller.epoch))
        self._startup_seconds = time.perf_counter() - started

    def _report_after(self, epochs: int) -> None:
        """Report epochs after this one again after a resume (at least the last)."""
        self._reported = min(epochs, self._distiller.config.epochs - 1)

    def _resume_from(self, checkpoints: Sequence[str]) -> int | None:
        """Continue from the first of `checkpoints` that can be read; if none can, from the beginning.

        Returns:
            Epochs that had been reported when the checkpoint was written; None if none can be read.
        """
        for path in checkpoints:
            try:
                with tune.Checkpoint(path).as_directory() as folder:
                    state = load_checkpoint(Path(folder) / CHECKPOINT_FILE)
                    self._distiller.load_state_dict(state)
                return int(state.get("told", self._distiller.epoch))
            except (InputError, OSError) as fault:
                logger.warning("trial %d: checkpoint passed over: %s", self._number, fault)
        return None

    def step(self) -> dict[str, Any]:
        """Train one epoch and report it. A trial that cannot train (on) ends with the reason.

        Ray saves a trial that a rung stops before the study learns of the epoch. If the session ended between
        the two, the checkpoint holds an epoch that was never reported: it is reported first, and the rung
        decides again.
        """
        if self._refused is not None:
            return self._failure(self._refused)
        again, began = self._reported < self._distiller.epoch, time.time()
        try:
            metrics = self._distiller.history[self._reported] if again else self._epoch()
        except (TrainingDiverged, TooLarge, InputError) as fault:
            return self._failure(str(fault))
        self._reported = metrics.epoch
        recorded = metrics.as_dict()
        return {
            **recorded,
            "recorded": list(recorded),  # the keys that go into the study's row
            "further": metrics.further,  # those of them that the learning curve shows beside the usual ones
            "number": self._number,
            "startup_seconds": self._startup_seconds,
            "began_at": began,  # seconds since 1970; with the epoch's seconds: when this worker was busy
            "again": again,
            "done": metrics.epoch == self._distiller.config.epochs,
        }

    def _failure(self, reason: str) -> dict[str, Any]:
        """Return the result that ends the trial as failed; Ray does not retry it."""
        return {"number": self._number, "failure": reason, "done": True}

    def _epoch(self) -> EpochMetrics:
        folder = self._context.profile
        # Profile the second epoch: the first one warms up caches, allocators and kernels.
        if folder is None or self._distiller.epoch != 1 or not claim(Path(folder)):
            return self._distiller.run_epoch()
        return profiled_epoch(self._distiller, Path(folder), f"trial-{self._number}")

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Write everything an exact resume needs into `checkpoint_dir`."""
        if self._refused is not None:
            return
        state = {**self._distiller.state_dict(), "told": self._reported}
        save_checkpoint(Path(checkpoint_dir) / CHECKPOINT_FILE, state)

    def load_checkpoint(self, checkpoint_dir: str) -> None:
        """Continue from the checkpoint; if it is damaged, from the one before it.

        A trial whose checkpoints are all damaged starts from the beginning.
        """
        newest = Path(checkpoint_dir)
        older = sorted(newest.parent.glob("checkpoint_*"), reverse=True)
        reported = self._resume_from([str(newest), *(str(f) for f in older if f.name < newest.name)])
        if reported is not None:
            self._report_after(reported)
