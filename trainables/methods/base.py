"""The interface of a distillation method to the training loop.

A method is one file in this package (or anywhere: `space.method: import:module:Class`) with a subclass of
`Method` and a `MethodConfig` whose fields give their search ranges. The loop calls, for every epoch,

    with method.reading():                                # hooks on, training mode
        for every batch:
            for every phase in phases():
                parts = method.losses(batch, progress, phase)   # differentiated, logged
            method.after_step(batch, progress)            # after all optimiser steps
    method.metrics()                                      # logged beside the parts

Afterwards `method.student` alone is scored, measured, saved and exported.
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
from trainables.config import DistillConfig
from trainables.config_base import MethodConfig, hash_json
from trainables.data.dataset import ImageData
from trainables.errors import InputError
from trainables.methods.signals.teacher_signals import Supervisor
from trainables.network.weights import weights_hash
from trainables.runtime.runtime import Runtime, resolve
from trainables.student.spans import Span
from trainables.student.start import Modules, start_student

TEACHER = "teacher"  # key in `Setup.teachers` of the network whose blocks are replaced

# By the kind of the student that a method does not train.
WRONG_KIND = {
    "replaced": "needs a separate student: set space.student (student.arch in Python), e.g. to wrn10_1",
    "separate": "needs a student made from the teacher: leave out space.student (student.arch in Python), or "
    "choose the method separate or fitnet",
}

NamedParameters = Sequence[tuple[str, nn.Parameter]]
StageProgress = Callable[[str, int, int], None]  # what, done, total
Stages = Mapping[str, Mapping[str, Any]]  # results of stages by `Stage.key`


@dataclass(frozen=True)
class Batch:
    """Training images of one step, normalised and on the device.

    Attributes:
        images: (B, 3, H, W) in fp32.
        labels: (B,) int64; None for a stream without labels.
        index: (B,) int64, the images' indices in the training set, the same in every epoch.
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
        """Split into consecutive parts of nearly equal size; every stream is split alike."""
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
    """The position in a training: `step` (from 0) of `steps` over all epochs.

    Example:
        halfway = Progress(step=50, steps=100, steps_per_epoch=20)
        print(halfway.done, halfway.epoch)
    """

    step: int
    steps: int
    steps_per_epoch: int

    @property
    def done(self) -> float:
        """Share of the training done before this step, 0..1, e.g. for warm-ups and curricula."""
        return self.step / self.steps if self.steps else 1.0

    @property
    def epoch(self) -> int:
        """Epochs done before this step."""
        return self.step // self.steps_per_epoch if self.steps_per_epoch else 0


@dataclass(frozen=True)
class Group:
    """Parameters with the same optimiser settings.

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
    """One loss, one backward pass and one optimiser. The phases of a step run in order.

    A phase updates the parameters of its groups alone, even if its loss depends on others.

    Attributes:
        name: as `losses` gets it.
        groups: the parameters that the phase trains.
        adam: constant learning rate of Adam; None: SGD with the trial's settings and schedule.

    Example:
        student = build_student(teacher.model, blocks, StudentSpec())
        phase = Phase("student", [Group(list(student.named_parameters()))])
        judge = Phase("judge", [Group(list(torch.nn.Linear(10, 1).named_parameters()))], adam=1e-4)
        print(phase.name, len(phase.groups[0].parameters), judge.adam)
    """

    name: str
    groups: Sequence[Group]
    adam: float | None = None


@dataclass(frozen=True)
class Stage:
    """Work that a method needs done once a run, before the first trial, e.g. an adapted teacher.

    A search runs a stage once for every combination of the values that `keys` can take, stores the results in
    the run directory, and gives them to trials and retraining as `Method.stage(name)`.

    Attributes:
        name: of the stage, in progress messages and file names.
        keys: settings of the method that the result depends on. In a search each of them is fixed or has a
            list of choices.
        make: called with the setup, the method's settings, the run's seed, a folder and a progress callback
            (text, done, total). It returns tensors and plain values. The folder survives an interruption:
            keep checkpoints there.

    Example:
        def mean_image(setup, settings, seed, folder, progress):
            return {"mean": setup.data.train.images.float().mean(0)}

        print(Stage("mean", (), mean_image).key(MethodConfig()))
    """

    name: str
    keys: tuple[str, ...]
    make: Callable[[Setup, Any, int, Path, StageProgress], Mapping[str, Any]]

    def key(self, settings: MethodConfig) -> str:
        """Return the name of the result for these settings."""
        values = settings.model_dump(mode="json", include=set(self.keys))
        return f"{self.name}-{hash_json(values)}" if values else self.name


@dataclass(frozen=True)
class Setup:
    """Teacher, blocks, data and runtime that all distillations of a search share.

    Use one setup for many trials: it caches what it computes, such as the teacher's outputs.

    Attributes:
        teachers: networks by name, images (B, 3, H, W) to logits (B, classes); `teacher` is the one whose
            blocks are replaced. They are moved to the device, put in eval mode and never trained.
        blocks: the teacher's blocks that may be replaced, in execution order.
        data: training and validation images.
        runtime: device, precision, layout.
        modules: pre-distilled AMA modules by span key, or None; used with `warm_start: library` alone.
        stages: results of the methods' stages by `Stage.key`, as `make_stages` gave them.

    Example:
        setup = Setup.of(teacher.model, blocks, data, resolve(RuntimeConfig(device="cpu")))
        print(setup.runtime.device, setup.teacher_hash, [block.name for block in setup.blocks])
    """

    teachers: Mapping[str, nn.Module]
    blocks: Sequence[Block]
    data: ImageData
    runtime: Runtime
    modules: Modules | None = None
    stages: Stages = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        teacher: nn.Module,
        blocks: Sequence[Block],
        data: ImageData,
        runtime: Runtime | None = None,
        modules: Modules | None = None,
        stages: Stages | None = None,
    ) -> Setup:
        """Make the setup of a single teacher; without `runtime`, use this machine's default."""
        return cls({TEACHER: teacher}, blocks, data, runtime or resolve(), modules, stages or {})

    def start_student(self, config: DistillConfig, spans: Sequence[Span] = ()) -> nn.Module:
        """Make the untrained student of `config`; see `trainables.student.start.start_student`."""
        return start_student(config, self.teacher, self.blocks, spans, self.data, self.runtime, self.modules)

    @property
    def teacher(self) -> nn.Module:
        """The network whose blocks are replaced, on the device, in eval mode."""
        return self.supervisor.teacher

    @cached_property
    def supervisor(self) -> Supervisor:
        """Computes the teacher's logits and maps, only as far and as often as needed."""
        return Supervisor(self.teachers[TEACHER], self.blocks, self.data, self.runtime)

    @cached_property
    def teacher_hash(self) -> str:
        """Hash of the weights of all teachers, for checkpoints."""
        if set(self.teachers) == {TEACHER}:
            return weights_hash(self.teachers[TEACHER])
        return "+".join(f"{name}:{weights_hash(net)}" for name, net in sorted(self.teachers.items()))


class Method(nn.Module, ABC):
    """A distillation method: makes the student and computes the losses of a batch.

    A subclass builds `self.student` and anything else that it trains in `__init__(setup, config)`. Its state
    dict (student, further networks, memory banks, learned weights) must hold everything that an exact resume
    needs. Derive random numbers from (config.seed, epoch, step). Change state other than weights in
    `after_step` alone: a step that runs out of memory is computed again in two halves.

    Attributes:
        name: as in `space.method`; the prefix of its parameters in the study.
        Config: its settings, with defaults and the range of every key that can be searched.
        streams: names of further data it reads, below `data.targets`.
        stages: work done once a run, before the first trial.
        teaching: keys of `Config` that weigh the teacher's signals; zero for the baseline.
        students: kinds of students it trains: `replaced` (the teacher with replaced blocks), `separate`.
        modules_in_teacher: whether, for a separate student, `student.widths` says which of the teacher's
            blocks it replaces by AMA modules. Other methods do not read the widths then.
        needs_teacher: whether it learns from the teacher's weights; if not, an untrained one is enough.
        student: the model that is scored, measured, saved and exported.

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
    students: ClassVar[tuple[str, ...]] = ("replaced", "separate")
    modules_in_teacher: ClassVar[bool] = False
    needs_teacher: ClassVar[bool] = True
    student: nn.Module

    def __init__(self, setup: Setup, config: DistillConfig) -> None:
        """Store setup and config; subclasses extend this.

        Raises:
            InputError: the setup lacks what the method or the config needs.
        """
        super().__init__()
        missing = [f"stage {s.name}" for s in self.stages if s.key(config.loss) not in setup.stages]
        missing += [f"stream {name}" for name in self.streams]  # no data section provides one yet
        if missing:
            raise InputError(f"method {self.name}: needs {', '.join(missing)}; this run does not provide it")
        if fault := self.unfit(config):
            raise InputError(f"method {self.name}: {fault}")
        config.loss.check(setup.data.num_classes, config.optim.batch_size)
        self.setup, self.config, self.runtime = setup, config, setup.runtime
        self._compiled: list[Any] = []  # in a list: as a submodule it would be in the state dict twice

    @classmethod
    def unfit(cls, config: DistillConfig) -> str | None:
        """Return why this method cannot train the student of `config`, and what to change; None if it can."""
        student, settings = config.student, config.loss
        if student.kind not in cls.students:
            return WRONG_KIND[student.kind]
        if student.arch is None:
            return None
        needed = {
            key: value for key, value in settings.for_separate.items() if getattr(settings, key) != value
        }
        if needed:
            wanted = ", ".join(f"{key} to {value}" for key, value in needed.items())
            return (
                f"a separate student ({student.arch}) has no replaced blocks whose maps could be compared: "
                f"set {wanted}, or choose the method separate or fitnet"
            )
        if student.widths and not cls.modules_in_teacher:
            return f"student.widths has no effect on a separate student ({student.arch}): leave it out"
        return None

    def stage(self, name: str) -> Mapping[str, Any]:
        """Return the result of the method's stage `name` for the trial's settings."""
        stage = next(each for each in self.stages if each.name == name)
        return self.setup.stages[stage.key(self.config.loss)]

    def logits(self, images: Tensor) -> Tensor:
        """Return the student's logits (B, classes) under autocast, compiled if the runtime says so."""
        with self.runtime.autocast():
            found: Tensor = self._student()(images)
        return found

    def _student(self) -> Any:
        """Return the student, or its compiled form."""
        if not self.runtime.compiled:
            return self.student
        if not self._compiled:
            torch._dynamo.reset()  # clear the caches, which hold the last trial's student
            self._compiled.append(torch.compile(self.student))
        return self._compiled[0]

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Set training mode and attach an epoch's hooks; remove the hooks on exit, even after an error."""
        self.train()
        yield

    def phases(self) -> list[Phase]:
        """Return the phases of a step, always the same; by default one, of all trainable parameters."""
        return [Phase("student", [Group(list(self.named_parameters()))])]

    @abstractmethod
    def losses(self, batch: Batch, progress: Progress, phase: str) -> dict[str, Tensor]:
        """Return the parts of a phase's loss on one batch: their sum is differentiated, each is logged.

        Called inside `reading` and outside autocast; compute losses in fp32.

        Args:
            batch: images (B, 3, H, W) of a step, or half of them if memory is short.
            progress: position in the training.
            phase: the phase's name.

        Returns:
            Weighted 0-d fp32 tensors by name: means over the batch. The same names at every call.
        """

    def after_step(self, batch: Batch, progress: Progress) -> None:
        """Update moving averages, queues or memory banks; called once a step, after all optimisers."""

    def metrics(self) -> dict[str, float]:
        """Return values to record for an epoch besides the loss's parts, e.g. learned weights."""
        return {}

    @classmethod
    def baseline(cls, config: MethodConfig) -> MethodConfig:
        """Return `config` without the teacher's signals: cross-entropy alone.

        By default, set every key that `teaching` names to zero.
        """
        return config.model_copy(update=dict.fromkeys(cls.teaching, 0.0))
