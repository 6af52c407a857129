"""What a distillation method is: the contract between a method's file and the training loop.

A method is one file in this room (or anywhere: `space.method: import:module:Class`) with a subclass of
`Method` and a `MethodConfig` whose fields say their own ranges. The loop calls, for every epoch,

    with method.reading():                                # hooks on, train mode
        for every batch, for every phase in phases():
            parts = method.losses(batch, progress, phase)   # differentiated, logged
        and after the step was applied: method.after_step(batch, progress)
    method.metrics()                                      # logged beside the parts

and afterwards scores, prices, saves and exports `method.student`, nothing else.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from trainables.blocks.blocks import Block
from trainables.config import DistillConfig, MethodConfig
from trainables.data.dataset import ImageData
from trainables.methods.teacher_signals import Supervisor
from trainables.network.weights import weights_hash
from trainables.runtime.runtime import Runtime, resolve
from trainables.student.start import Modules

TEACHER = "teacher"  # the name in `Setup.teachers` of the network whose blocks are replaced

NamedParameters = Sequence[tuple[str, nn.Parameter]]


@dataclass(frozen=True)
class Batch:
    """Training images of one step, normalised and on the device.

    Attributes:
        images: (B, 3, H, W) in fp32.
        labels: (B,) int64; None for a stream without labels.
        index: (B,) int64, the images' places in the training set: the same image has the same in every epoch.
        extra: batches of further streams by their name (`Method.streams`).

    Example:
        images, labels, index = next(data.train_steps(32, seed=0, epoch=0, runtime=resolve()))
        first, second = Batch(images, labels, index).split(2)
        print(len(first), len(second), first.images.shape)
    """

    images: Tensor
    labels: Tensor | None
    index: Tensor
    extra: Mapping[str, Batch] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.images)

    def split(self, parts: int) -> list[Batch]:
        """Consecutive parts of nearly equal size; every stream is split alike."""
        images = self.images.tensor_split(parts)
        labels = self.labels.tensor_split(parts) if self.labels is not None else [None] * parts
        index = self.index.tensor_split(parts)
        extra = {name: batch.split(parts) for name, batch in self.extra.items()}
        return [
            Batch(i, y, n, {name: pieces[k] for name, pieces in extra.items()})
            for k, (i, y, n) in enumerate(zip(images, labels, index, strict=True))
        ]


@dataclass(frozen=True)
class Progress:
    """How far a training is: `step` of `steps` in all epochs, from 0.

    Example:
        halfway = Progress(step=50, steps=100, steps_per_epoch=20)
        print(halfway.done, halfway.epoch)
    """

    step: int
    steps: int
    steps_per_epoch: int

    @property
    def done(self) -> float:
        """Share of the training done before this step, 0..1: for warm-ups and curricula."""
        return self.step / self.steps if self.steps else 1.0

    @property
    def epoch(self) -> int:
        """Epochs done before this step."""
        return self.step // self.steps_per_epoch if self.steps_per_epoch else 0


@dataclass(frozen=True)
class Group:
    """Parameters that one optimiser steps alike.

    Attributes:
        parameters: (name, parameter) pairs; those without gradients are left out.
        lr_scale: factor on the trial's learning rate.
        decay: whether the trial's weight decay applies (never to norms and biases).

    Example:
        student = build_student(teacher.model, blocks, StudentSpec())
        last = Group(list(student.fc.named_parameters()), lr_scale=10.0, decay=False)
        print([name for name, parameter in last.parameters])
    """

    parameters: NamedParameters
    lr_scale: float = 1.0
    decay: bool = True


@dataclass(frozen=True)
class Phase:
    """One loss, one backward pass and one optimiser of a step; the phases of a step run in order.

    Only the parameters of the phase's groups are updated by it, whatever its loss depends on.

    Example:
        student = build_student(teacher.model, blocks, StudentSpec())
        phase = Phase("student", [Group(list(student.named_parameters()))])
        print(phase.name, len(phase.groups[0].parameters))
    """

    name: str
    groups: Sequence[Group]


@dataclass(frozen=True)
class Stage:
    """What a method needs made once a run, before the first trial.

    Attributes:
        name: of the folder below the run directory that it fills.
        make: called with the setup, the experiment's seed and the empty folder.
    """

    name: str
    make: Callable[[Setup, int, Path], None]


@dataclass(frozen=True)
class Setup:
    """What all distillations of a search share. Keep one for many trials: what it computes once, it keeps.

    Attributes:
        teachers: networks by name, images (B, 3, H, W) to logits (B, classes); `teacher` is the one whose
            blocks are replaced. They are moved to the device, put in eval mode and never trained.
        blocks: the teacher's blocks that may be replaced, in execution order.
        data: training and validation images.
        runtime: device, precision, layout.
        modules: pre-distilled AMA modules by span key, or None; read with `warm_start: library` alone.
        stages: folders that the method's stages filled, by the stage's name.

    Example:
        setup = Setup.of(teacher.model, blocks, data, resolve(RuntimeConfig(device="cpu")))
        print(setup.runtime.device, setup.teacher_hash, [block.name for block in setup.blocks])
    """

    teachers: Mapping[str, nn.Module]
    blocks: Sequence[Block]
    data: ImageData
    runtime: Runtime
    modules: Modules | None = None
    stages: Mapping[str, Path] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        teacher: nn.Module,
        blocks: Sequence[Block],
        data: ImageData,
        runtime: Runtime | None = None,
        modules: Modules | None = None,
    ) -> Setup:
        """The setup of a single teacher; without a runtime, this machine's default one."""
        return cls({TEACHER: teacher}, blocks, data, runtime or resolve(), modules)

    @property
    def teacher(self) -> nn.Module:
        """The network whose blocks are replaced, on the device, in eval mode."""
        return self.supervisor.teacher

    @cached_property
    def supervisor(self) -> Supervisor:
        """The teacher's logits and maps, computed no further and no more often than needed."""
        return Supervisor(self.teachers[TEACHER], self.blocks, self.data, self.runtime)

    @cached_property
    def teacher_hash(self) -> str:
        """Hash of the weights of all teachers, for checkpoints."""
        if set(self.teachers) == {TEACHER}:
            return weights_hash(self.teachers[TEACHER])
        return "+".join(f"{name}:{weights_hash(net)}" for name, net in sorted(self.teachers.items()))


class Method(nn.Module, ABC):
    """A way to distil: makes the student, and gives the losses of a batch.

    A subclass builds `self.student` and whatever else it trains in `__init__(setup, config)`. Its state dict
    (student, further networks, banks, learned weights) is what an exact resume needs. Random draws come from
    (config.seed, epoch, step), and state that a step changes besides weights changes in `after_step` alone:
    a step that runs out of memory is computed again in two halves.

    Attributes:
        name: as in `space.method`; the prefix of its parameters in the study.
        Config: its settings, with defaults and the range of every key that can be searched.
        streams: names of further data it reads, below `data.targets`.
        stages: what must be made once a run before the first trial.
        teaching: keys of `Config` that weigh what comes from a teacher; zero for the baseline.
        student: what is scored, priced, saved and exported; nothing else is.

    Example:
        class Plain(Method):
            name, Config = "plain", MethodConfig
            def __init__(self, setup, config):
                super().__init__(setup, config)
                self.student = build_student(setup.teacher, setup.blocks, config.student, config.seed)
            def losses(self, batch, progress, phase):
                return {"ce": cross_entropy(self.logits(batch.images).float(), batch.labels)}
    """

    name: ClassVar[str]
    Config: ClassVar[type[MethodConfig]]
    streams: ClassVar[tuple[str, ...]] = ()
    stages: ClassVar[tuple[Stage, ...]] = ()
    teaching: ClassVar[tuple[str, ...]] = ()
    student: nn.Module

    def __init__(self, setup: Setup, config: DistillConfig) -> None:
        """Keep what all methods need; subclasses go on from here.

        Raises:
            InputError: the setup does not have what the method or the config needs.
        """
        super().__init__()
        self.setup, self.config, self.runtime = setup, config, setup.runtime
        self._compiled: list[Any] = []  # in a list: a submodule would be in the state dict twice

    def logits(self, images: Tensor) -> Tensor:
        """The student's logits (B, classes) under the runtime's autocast, compiled where it says so."""
        with self.runtime.autocast():
            found: Tensor = self._student()(images)
        return found

    def _student(self) -> Any:
        """The student, or its compiled form."""
        if not self.runtime.compiled:
            return self.student
        if not self._compiled:
            torch._dynamo.reset()  # the last trial's student fills the same caches
            self._compiled.append(torch.compile(self.student))
        return self._compiled[0]

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Training mode and hooks for an epoch; afterwards no network keeps a hook, whatever happened."""
        self.train()
        yield

    def phases(self) -> list[Phase]:
        """The phases of a step, the same at every call; by default one that trains all with gradients."""
        return [Phase("student", [Group(list(self.named_parameters()))])]

    @abstractmethod
    def losses(self, batch: Batch, progress: Progress, phase: str) -> dict[str, Tensor]:
        """The parts of a phase's loss on one batch: their sum is differentiated, each is logged.

        Called inside `reading` and outside autocast; compute losses in fp32.

        Args:
            batch: images (B, 3, H, W), or half of a step's where memory is short.
            progress: how far the training is.
            phase: the phase's name.

        Returns:
            Weighted 0-d fp32 tensors by name: means over the batch. The same names at every call.
        """

    def after_step(self, batch: Batch, progress: Progress) -> None:
        """Called once a step, after all phases were applied: moving averages, queues, memory banks."""

    def metrics(self) -> dict[str, float]:
        """What an epoch should record besides the loss's parts, e.g. learned weights."""
        return {}

    @classmethod
    def baseline(cls, config: MethodConfig) -> MethodConfig:
        """`config` without anything of a teacher: cross-entropy alone.

        By default every key that `teaching` names is set to zero.
        """
        return config.model_copy(update=dict.fromkeys(cls.teaching, 0.0))
