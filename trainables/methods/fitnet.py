"""FitNet: regressors on the maps of a separate student learn the teacher's maps.

Source: Romero et al. 2015, "FitNets: Hints for Thin Deep Nets" (arXiv:1412.6550). There the maps train the
first half of the student alone, before the logits. Here all is trained together, with a pair of maps for
every size, as in the comparisons of later papers (e.g. Tian et al. 2020, arXiv:1910.10699).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from trainables.config import DistillConfig
from trainables.config_base import hash_json, searched
from trainables.loss_config import LogitTerm
from trainables.methods.base import Batch, Method, Progress, Setup
from trainables.methods.signals.student_maps import StudentMaps
from trainables.methods.signals.teacher_signals import NOTHING, Teach
from trainables.methods.terms.label_parts import label_parts
from trainables.methods.terms.maps import relative_error
from trainables.runtime.seeds import seeded
from trainables.student.pairs import Point, paired, points_of, stage_ends, student_taps
from trainables.student.regressor import Regressor


class FitnetConfig(LogitTerm):
    """Settings of the method `fitnet`.

    Example:
        student = StudentSpec(arch="wrn10_1")
        print(DistillConfig(student=student, method="fitnet", loss={"beta": 2.0}).content())
    """

    beta: float = searched(1.0, 0.1, 10.0, log=True, ge=0.0, description="weight of the feature term")


class Fitnet(Method):
    """(1-α) CE(y, s) + α τ² KL(t || s) + β Σᵢ |Rᵢ(fˢᵢ) - fᵗᵢ|² / |fᵗᵢ|², with a regressor Rᵢ for each pair.

    fᵗᵢ is the teacher's map after the last block of each size, fˢᵢ the student's (see `student.pairs`).
    """

    name = "fitnet"
    Config = FitnetConfig
    students = ("separate",)
    teaching = ("alpha", "beta")

    def __init__(self, setup: Setup, config: DistillConfig) -> None:
        """Build student and regressors on the runtime's device.

        Raises:
            InputError: a student made from the teacher; no such architecture; no maps that can be paired.
        """
        super().__init__(setup, config)
        assert isinstance(config.loss, FitnetConfig)
        self.loss = config.loss
        self.student = setup.start_student(config)
        targets: tuple[Point, ...] = ()
        taps: tuple[Point, ...] = ()
        if self.loss.beta > 0:
            targets = stage_ends(points_of(setup.blocks))
            taps = paired(targets, student_taps(self.student, setup.data.image_shape))
        self.regressors = nn.ModuleList()
        for target, tap in zip(targets, taps, strict=True):
            with seeded(int(hash_json([config.seed, target.path])[:12], 16)):
                self.regressors.append(Regressor(tap.shape, target.shape, tap.layout, target.activation))
        self.regressors.to(setup.runtime.device, memory_format=setup.runtime.memory_format)  # type: ignore[call-overload]
        self._paths = [target.path for target in targets]
        self._run = StudentMaps(self, taps)
        self._teach: Teach = lambda images, index: NOTHING

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Set training mode, and attach the hooks on student and teacher."""
        self.train()
        teaching = self.setup.supervisor.teaching(self._paths, self.loss.alpha > 0)
        with teaching as self._teach, self._run.attached():
            yield

    def losses(self, batch: Batch, progress: Progress, phase: str) -> dict[str, Tensor]:
        """Return ce, kl and feature; a part with weight zero is left out."""
        assert batch.labels is not None
        loss = self.loss
        signals = self._teach(batch.images, batch.index)
        logits, maps = self._run(batch.images)
        smoothing = self.config.optim.label_smoothing
        parts = label_parts(loss, logits, signals.logits, batch.labels, smoothing, progress.done)
        if self._paths:
            with self.runtime.autocast():
                mapped = [regress(map_) for regress, map_ in zip(self.regressors, maps, strict=True)]
            pairs = zip(mapped, self._paths, strict=True)
            errors = [relative_error(ours, signals.maps[path]) for ours, path in pairs]
            parts["feature"] = loss.beta * torch.stack(errors).sum()
        return parts
