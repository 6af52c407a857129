"""Contrastive representation distillation (CRD): the teacher's embedding of an image among those of others.

Tian et al. 2020, "Contrastive Representation Distillation" (arXiv:1910.10699), beside a logit term.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from trainables.config import DistillConfig
from trainables.config_base import searched
from trainables.loss_config import LogitTerm
from trainables.methods.base import Batch, Method, Progress, Setup
from trainables.methods.embedding import make_contrast
from trainables.methods.signals.teacher_signals import NOTHING, Teach
from trainables.methods.terms.contrast import Contrast
from trainables.methods.terms.label_parts import label_parts
from trainables.network.taps import Inputs
from trainables.student.spans import spans_of
from trainables.student.start import training_mode


class CrdConfig(LogitTerm):
    """Settings of the method `crd`.

    Example:
        loss = CrdConfig(alpha=0.3, gamma=0.4, negatives=1024)
        print(DistillConfig(method="crd", loss=loss).content())
    """

    gamma: float = searched(
        0.8, 0.1, 3.0, log=True, ge=0.0, description="weight of the contrast between embeddings"
    )
    contrast_tau: PositiveFloat = searched(
        0.07, 0.05, 0.3, log=True, description="temperature of the contrast"
    )
    negatives: PositiveInt = searched(
        16384,
        choices=(256, 1024, 16384),
        description="images a step that the contrast tells apart; at most all",
    )

    def unused(self) -> set[str]:
        """Without its weight, a term's settings have no effect."""
        logits = set() if self.alpha else {"tau", "logits"}
        return super().unused() | logits | (set() if self.gamma else {"contrast_tau", "negatives"})


class Crd(Method):
    """Train the student on the labels, the teacher's logits and the contrast with the teacher's embeddings.

    The loss is (1-α) CE + α logit term + γ (contrast of the student's vectors with the teacher's memory bank
    + that of the teacher's vectors with the student's bank).
    """

    name = "crd"
    Config = CrdConfig
    teaching = ("alpha", "gamma")

    def __init__(self, setup: Setup, config: DistillConfig) -> None:
        """Build the student, and heads and banks if the contrast has weight, on the runtime's device.

        Raises:
            InputError: as `start_student` and `make_contrast`; a logit term that does not fit the data.
        """
        super().__init__(setup, config)
        assert isinstance(config.loss, CrdConfig)
        self.settings = loss = config.loss
        self._spans = spans_of(setup.blocks, config.student)
        self.student = setup.start_student(config, self._spans)
        self.contrast: Contrast | None = None
        self._classifiers: list[str] = []
        if loss.gamma:
            self.contrast, path = make_contrast(
                setup, config, [self.student], True, loss.negatives, loss.contrast_tau
            )
            self._classifiers = [path]
        self._embeddings: dict[str, Tensor] = {}
        self._teach: Teach = lambda images, index: NOTHING

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Attach the hooks on student and teacher; frozen parts keep their batch-norm statistics."""
        self.train()
        training_mode(self.student, self.config.train, self._spans)
        teaching = self.setup.supervisor.teaching((), self.settings.alpha > 0, self.contrast is not None)
        with teaching as self._teach, Inputs(self.student, self._classifiers) as inputs:
            self._embeddings = inputs.inputs
            yield

    def losses(self, batch: Batch, progress: Progress, phase: str) -> dict[str, Tensor]:
        """Return ce, the logit term by its name, and contrast; a part with weight zero is left out."""
        assert batch.labels is not None
        loss = self.settings
        try:
            signals = self._teach(batch.images, batch.index)
            logits = self.logits(batch.images)
            embeddings = [self._embeddings[path] for path in self._classifiers]
        finally:
            self._embeddings.clear()
        smoothing = self.config.optim.label_smoothing
        parts = label_parts(loss, logits, signals.logits, batch.labels, smoothing, progress.done)
        if self.contrast is not None:
            assert signals.embedding is not None
            pair = [*embeddings, signals.embedding]
            parts["contrast"] = loss.gamma * self.contrast.loss(
                pair, batch.labels, batch.index, progress.step
            )
        return parts

    def after_step(self, batch: Batch, progress: Progress) -> None:
        """Update the memory banks."""
        if self.contrast is not None:
            self.contrast.update(batch.index)
