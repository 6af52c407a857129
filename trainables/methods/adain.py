"""Statistics transfer by adaptive instance normalisation (AdaIN).

After Yang et al. 2020, "Knowledge Distillation via Adaptive Instance Normalization" (arXiv:2003.04289). The
channel statistics of the student's maps are put into the teacher's maps, and the teacher's answer to that is
compared with its own logits. Spans end with the teacher's shape, so the paper's connectors are not needed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from trainables.config import DistillConfig
from trainables.config_base import hash_json, searched
from trainables.loss_config import LogitTerm
from trainables.methods.base import Batch, Progress, Setup
from trainables.methods.signals.tails import Tails
from trainables.methods.signals.teacher_signals import Signals
from trainables.methods.span_method import SpanMethod
from trainables.methods.terms.adain import (
    Statistics,
    channel_statistics,
    reaction,
    statistics_error,
    with_statistics,
)
from trainables.methods.terms.label_parts import label_parts
from trainables.network.taps import Taps
from trainables.student.pairs import positions
from trainables.student.spans import Span

RECTIFIED = ("relu", "relu6")  # activations whose maps are not negative
DIFFERENT = 1e-4  # relative change of logits, in fp32, beyond rounding


class AdainConfig(LogitTerm):
    """Settings of the method `adain`.

    Example:
        loss = AdainConfig(alpha=0.3, beta_stat=0.0, beta_adain=2.0, react="kl", points="random")
        print(DistillConfig(method="adain", loss=loss).content())
    """

    beta_stat: float = searched(
        1.0, 0.1, 10.0, log=True, ge=0.0, description="weight of the relative error of channel statistics"
    )
    beta_adain: float = searched(
        1.0, 0.1, 10.0, log=True, ge=0.0, description="weight of the teacher's answer to these statistics"
    )
    react: Literal["mse", "kl"] = searched(
        "mse",
        choices=("mse", "kl"),
        description="how the answer is compared with the teacher's logits: mean square, or KL at tau",
    )
    points: Literal["spans", "stages", "random"] = searched(
        "stages",
        choices=("spans", "stages", "random"),
        description="where: at the end of every span, of the last span of each resolution, or of a random "
        "span in each step; never before a mere average and linear layer, where deviations have no effect",
    )
    clamp: bool = Field(
        default=False,
        description="set negative values to zero in the maps that the teacher goes on from, after blocks "
        "that end with a ReLU",
    )

    def unused(self) -> set[str]:
        """`react` and `clamp` belong to the teacher's answer; `points` to either term."""
        answer = {"react", "clamp"} if self.beta_adain == 0 else set()
        return super().unused() | answer | ({"points"} if self.beta_adain == self.beta_stat == 0 else set())


class Adain(SpanMethod):
    """Replace spans of the teacher by AMA modules and train them on the statistics of its maps."""

    name = "adain"
    Config = AdainConfig
    students = ("replaced",)
    teaching = ("alpha", "beta_stat", "beta_adain")

    def __init__(self, setup: Setup, config: DistillConfig) -> None:
        """Build the student on the runtime's device.

        Raises:
            InputError: as `SpanMethod`.
        """
        super().__init__(setup, config)
        assert isinstance(config.loss, AdainConfig)
        self.settings = config.loss
        self._tails = Tails(setup.supervisor, setup.blocks)
        wanted = self.settings.beta_stat > 0 or self.settings.beta_adain > 0
        self.points = self._points() if wanted else []

    def _points(self) -> list[Span]:
        """Return the spans whose ends are compared, in execution order."""
        spans = list(self.spans)
        if spans and not self._hears_deviations(spans[-1]):
            spans.pop()
        if self.settings.points != "stages":
            return spans
        last = {positions(span.out_shape, span.layout): span for span in spans}
        return [span for span in spans if span in last.values()]

    @torch.no_grad()
    def _hears_deviations(self, span: Span) -> bool:
        """Return whether the teacher's logits depend on the deviations of a map from its channel means."""
        supervisor = self.setup.supervisor
        with Taps(supervisor.teacher, self._tails.reads([span.last]), supervisor.overwritten) as taps:
            logits = supervisor.teacher(supervisor.few)
            maps = dict(taps.outputs)
        own = channel_statistics(maps[span.last], span.layout)
        wider = Statistics(own.mean, 2 * own.std)
        changed = with_statistics(maps[span.last], own, wider, span.layout)
        answer = self._tails.answer(supervisor.few, maps, span.last, changed)
        return bool((answer - logits).norm() > DIFFERENT * logits.norm())

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Attach the hooks on student and teacher; frozen parts keep their batch-norm statistics."""
        ends = [span.last for span in self.points]
        read = self._tails.reads(ends) if self.settings.beta_adain > 0 else ends
        logits = self.settings.alpha > 0 or (bool(self.points) and self.settings.beta_adain > 0)
        with self.watching(read, [span.first for span in self.points], logits):
            yield

    def losses(self, batch: Batch, progress: Progress, phase: str) -> dict[str, Tensor]:
        """Return ce, kl (or the name of another logit term), stat and adain; those with a weight."""
        assert batch.labels is not None
        try:
            signals = self.teach(batch.images, batch.index)
            student = self.logits(batch.images)
            smoothing = self.config.optim.label_smoothing
            parts = label_parts(
                self.settings, student, signals.logits, batch.labels, smoothing, progress.done
            )
            if self.points:
                parts |= self._transfer(batch.images, signals, progress)
        finally:
            self.maps.clear()  # free the maps of a pass that ran out of memory
        return parts

    def _transfer(self, images: Tensor, signals: Signals, progress: Progress) -> dict[str, Tensor]:
        """Return the terms on statistics, summed over the points."""
        settings, points = self.settings, self.points
        if settings.points == "random":  # one of them stands for all
            draw = int(hash_json(["adain", self.config.seed, progress.step]), 16)
            points = [points[draw % len(points)]]
        found: dict[str, list[Tensor]] = {}
        for span in points:
            own = signals.maps[span.last]
            theirs = channel_statistics(own, span.layout)
            ours = channel_statistics(self.maps[span.first], span.layout)
            if settings.beta_stat > 0:
                found.setdefault("stat", []).append(settings.beta_stat * statistics_error(ours, theirs))
            if settings.beta_adain > 0:
                changed = with_statistics(own, theirs, ours, span.layout)
                if settings.clamp and span.activation in RECTIFIED:
                    changed = changed.clamp_min(0)
                with self.runtime.autocast():
                    answer = self._tails.answer(images, signals.maps, span.last, changed)
                assert signals.logits is not None
                term = reaction(answer, signals.logits, settings.react, settings.tau)
                found.setdefault("adain", []).append(settings.beta_adain * term)
        times = len(self.points) / len(points)
        return {name: times * torch.stack(terms).sum() for name, terms in found.items()}
