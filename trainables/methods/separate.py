"""The second wiring of activation-map adaptation, for a separate student: modules in the teacher.

Wu et al. 2020, "Activation Map Adaptation for Effective Knowledge Distillation" (arXiv:2010.13500), read so
that the adaptation modules replace blocks of the teacher and make the maps that supervise the student.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainables.config import DistillConfig
from trainables.config_base import hash_json, searched
from trainables.loss_config import LogitTerm
from trainables.methods.base import Batch, Group, Method, Phase, Progress, Setup
from trainables.methods.signals.student_maps import StudentMaps
from trainables.methods.signals.teacher_signals import NOTHING, Signals, Teach
from trainables.methods.terms.label_parts import label_parts
from trainables.methods.terms.logits import logit_loss
from trainables.methods.terms.maps import relative_error
from trainables.network.evaluate import evaluate
from trainables.network.taps import Taps
from trainables.runtime.seeds import seeded
from trainables.student.ama_module import make_module
from trainables.student.build import install
from trainables.student.pairs import Point, paired, points_of, student_taps
from trainables.student.regressor import Regressor
from trainables.student.spans import Span, teacher_spans

MODULES = "modules"  # the phase before the student's


class SeparateConfig(LogitTerm):
    """Settings of the method `separate`.

    Example:
        student = StudentSpec(arch="wrn10_1", widths={block.name: 0.5 for block in blocks})
        config = DistillConfig(student=student, method="separate", loss={"eta": 0.3}, epochs=1)
        print(distill(config, setup).history[-1].metrics["teacher_with_modules"])
    """

    beta: float = searched(1.0, 0.1, 10.0, log=True, ge=0.0, description="weight of the feature term")
    eta: float = searched(
        0.1,
        choices=(0.0, 0.01, 0.03, 0.1, 0.3, 1.0),
        ge=0.0,
        description="how strongly the modules' maps are drawn to the student's",
    )
    rho: float = searched(
        1.0, 0.0, 1.0, ge=0.0, description="how strongly the modules are held to the teacher's maps"
    )


class _Stand(nn.Module):
    """In the place of a span of the teacher: a module that makes a map of the student's shape, and back."""

    def __init__(self, span: Span, tap: Point) -> None:
        super().__init__()
        self.adapt = make_module(span.in_shape, tap.shape, span.width, span.layout, tap.activation)
        self.restore = Regressor(tap.shape, span.out_shape, span.layout, span.activation)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Map the span's input to the shape of its output; ignore further arguments of the block."""
        restored: Tensor = self.restore(self.adapt(x))
        return restored


@dataclass(frozen=True)
class _Seen:
    """What the modules' phase computed for a batch, for the student's phase of the same step."""

    images: Tensor
    signals: Signals
    adapted: Sequence[Tensor]
    student: tuple[Tensor, list[Tensor]] | None  # logits and maps, with their graph


class Separate(Method):
    """Train a separate student on maps that modules inside the teacher make in the student's shapes.

    For every replaced span i of the teacher, paired with a map f of the student, the module A makes a map
    a = A(x) of f's shape from the span's input x, and a 1x1 regressor R lets the teacher run on from R(a).
    A step has two phases, each with its own optimiser; sg stops gradients, e(a, b) = |a - b|² / |b|²:

        modules: CE(y, z') + τ² KL(z || z') + ρ Σᵢ e(Rᵢ(aᵢ), fᵗᵢ) + η Σᵢ e(aᵢ, sg(fˢᵢ))
        student: (1-α) CE(y, s) + α τ² KL(z || s) + β Σᵢ e(fˢᵢ, sg(aᵢ))

    with z the teacher's logits, z' those of the teacher with modules, s the student's. The teacher's other
    parts stay frozen. The a of the student's phase are those before the modules' update; if memory is so
    short that the batch is split in two, they are computed again, after it. Modules and regressors are not
    exported.
    """

    name = "separate"
    Config = SeparateConfig
    students = ("separate",)
    modules_in_teacher = True
    teaching = ("alpha", "beta")

    def __init__(self, setup: Setup, config: DistillConfig) -> None:
        """Build student and modules on the runtime's device.

        Raises:
            InputError: a student made from the teacher; no such architecture; no replaced block; no maps that
                can be paired.
        """
        super().__init__(setup, config)
        assert isinstance(config.loss, SeparateConfig)
        self.loss = config.loss
        self.student = setup.start_student(config)
        self.spans = teacher_spans(setup.blocks, config.student) if self.loss.beta > 0 else ()
        taps = self._paired() if self.spans else ()
        self.stands = nn.ModuleList()
        for span, tap in zip(self.spans, taps, strict=True):
            with seeded(int(hash_json([config.seed, span.key])[:12], 16)):
                self.stands.append(_Stand(span, tap))
        self.stands.to(setup.runtime.device, memory_format=setup.runtime.memory_format)  # type: ignore[call-overload]
        self._grafted = [self._graft()] if self.spans else []  # in a list: not a part of the state dict
        self._run = StudentMaps(self, taps)
        self._teach: Teach = lambda images, index: NOTHING
        self._maps: dict[str, Tensor] = {}  # of the teacher with modules
        self._seen: _Seen | None = None

    @classmethod
    def unfit(cls, config: DistillConfig) -> str | None:
        """Return why this method cannot train the student of `config`; see `Method.unfit`."""
        if (fault := super().unfit(config)) is not None or config.student.widths:
            return fault
        return "expected blocks of the teacher that modules replace: name at least one in student.widths"

    def _paired(self) -> tuple[Point, ...]:
        points = {point.path: point for point in points_of(self.setup.blocks)}
        taps = student_taps(self.student, self.setup.data.image_shape)
        return paired([points[span.last] for span in self.spans], taps)

    def _graft(self) -> nn.Module:
        """Return a frozen copy of the teacher in which the stands replace the spans."""
        grafted = copy.deepcopy(self.setup.teacher).requires_grad_(False)
        for span, stand in zip(self.spans, self.stands, strict=True):
            install(grafted, span, stand)
        return grafted.eval()

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Set training mode, and attach the hooks on student, teacher and teacher with modules."""
        self.train()
        supervisor, paths = self.setup.supervisor, [span.last for span in self.spans]
        teaching = supervisor.teaching(paths, bool(paths) or self.loss.alpha > 0)
        with teaching as self._teach, self._run.attached(), self._grafted_maps():
            try:
                yield
            finally:
                self._seen = None

    @contextmanager
    def _grafted_maps(self) -> Iterator[None]:
        if not self._grafted:
            yield
            return
        overwritten = self.setup.supervisor.overwritten
        paths = [path for span in self.spans for path in (span.first, f"{span.first}.adapt")]
        copied = [span.first for span in self.spans if span.last in overwritten]
        with Taps(self._grafted[0], paths, copied) as taps:
            self._maps = taps.outputs
            yield

    def phases(self) -> list[Phase]:
        """Return the phases of modules and student; without the feature term the student's alone."""
        student = Phase("student", [Group(list(self.student.named_parameters()))])
        return [Phase(MODULES, [Group(list(self.stands.named_parameters()))]), student][not self.spans :]

    def losses(self, batch: Batch, progress: Progress, phase: str) -> dict[str, Tensor]:
        """Return the parts of a phase; a part with weight zero is left out.

        modules: modules_ce, modules_kl, modules_teacher (ρ), modules_student (η). student: ce, kl (or
        another logit term), feature.
        """
        assert batch.labels is not None
        if phase == MODULES:
            return self._module_losses(batch.images, batch.index, batch.labels)
        return self._student_losses(batch.images, batch.index, batch.labels, progress)

    def _module_losses(self, images: Tensor, index: Tensor, labels: Tensor) -> dict[str, Tensor]:
        self._seen = None  # of a pass that ran out of memory
        signals = self._teach(images, index)
        logits, adapted, restored = self._with_modules(images)
        assert signals.logits is not None
        parts = {
            "modules_ce": F.cross_entropy(logits, labels),
            "modules_kl": logit_loss(logits, signals.logits, self.loss.tau),
        }
        if self.loss.rho > 0:
            pairs = zip(restored, self.spans, strict=True)
            errors = [relative_error(ours, signals.maps[span.last]) for ours, span in pairs]
            parts["modules_teacher"] = self.loss.rho * torch.stack(errors).sum()
        student = None
        if self.loss.eta > 0:
            student = self._run(images)
            moves = zip(adapted, student[1], strict=True)
            parts["modules_student"] = self.loss.eta * _errors(moves)
        self._seen = _Seen(images, signals, [map_.detach() for map_ in adapted], student)
        return parts

    def _student_losses(
        self, images: Tensor, index: Tensor, labels: Tensor, progress: Progress
    ) -> dict[str, Tensor]:
        seen, self._seen = self._seen, None
        if seen is None or seen.images is not images:  # no modules, or half of a batch
            adapted: Sequence[Tensor] = ()
            if self.spans:
                with torch.no_grad():
                    _, adapted, _ = self._with_modules(images)
            seen = _Seen(images, self._teach(images, index), adapted, None)
        logits, maps = seen.student or self._run(images)
        smoothing = self.config.optim.label_smoothing
        parts = label_parts(self.loss, logits, seen.signals.logits, labels, smoothing, progress.done)
        if self.spans:
            parts["feature"] = self.loss.beta * _errors(zip(maps, seen.adapted, strict=True))
        return parts

    def _with_modules(self, images: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Run the teacher with modules; return its logits in fp32 and the maps aᵢ and Rᵢ(aᵢ)."""
        try:
            with self.runtime.autocast():
                logits = self._grafted[0](images)
            adapted = [self._maps[f"{span.first}.adapt"] for span in self.spans]
            return logits.float(), adapted, [self._maps[span.first] for span in self.spans]
        finally:
            self._maps.clear()

    def metrics(self) -> dict[str, float]:
        """Return the accuracy of the teacher with modules on the validation images; low if they collapsed."""
        if not self._grafted:
            return {}
        batches = self.setup.data.eval_batches("val", self.runtime, self.runtime.eval_batch)
        return {"teacher_with_modules": evaluate(self._grafted[0], batches, self.runtime).accuracy}


def _errors(pairs: Iterator[tuple[Tensor, Tensor]]) -> Tensor:
    """Sum the relative errors of maps; no gradient reaches the second of a pair."""
    return torch.stack([relative_error(ours, target.detach()) for ours, target in pairs]).sum()
