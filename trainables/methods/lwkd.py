"""Distillation from a lightweight teacher: soft targets of a small network that knows synthetic digits alone.

Liu, Zhang and Wang 2020, "Learning from a Lightweight Teacher for Efficient Knowledge Distillation"
(arXiv:2005.09163). No teacher is trained on the data. In every epoch each training image gets a soft target
of its class from a bank of logits for synthetic images. An adversarial term makes the student's outputs look
like those of the bank. The discriminator's size, its rate and the warm-up are ours.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from trainables.config import DistillConfig
from trainables.config_base import searched
from trainables.data.load import default_limit
from trainables.errors import InputError
from trainables.loss_config import LogitTerm
from trainables.methods.base import Batch, Group, Method, Phase, Progress, Setup, Stage, StageProgress
from trainables.methods.synthetic_digits import make_bank
from trainables.methods.terms.label_parts import label_parts
from trainables.runtime.seeds import generator, seeded, stream
from trainables.student.spans import spans_of
from trainables.student.start import training_mode

STUDENT, DISCRIMINATOR = "student", "discriminator"  # phases
HIDDEN = 64  # width of the discriminator
RATE = 1e-4  # of the discriminator's Adam
WARM_UP = 0.1  # share of the training in which the adversarial weight rises, so that D can learn first


class LwkdConfig(LogitTerm):
    """Settings of the method `lwkd`. `targets` and `classes` have the controls of its idea.

    Example:
        loss = LwkdConfig(adversarial=0.0, targets="mean", teacher_epochs=3)
        print(DistillConfig(method="lwkd", loss=loss).content())
    """

    tau: PositiveFloat = searched(
        4.0, 1.0, 20.0, log=True, description="softmax temperature of targets and discriminator"
    )
    adversarial: float = searched(
        0.1, 0.01, 1.0, log=True, ge=0.0, description="weight of the adversarial term; 0: no discriminator"
    )
    conditional: bool = Field(False, description="show the discriminator the labels")
    teacher_epochs: PositiveInt = searched(
        5,
        choices=(1, 3, 10),
        description="epochs of the LeNet-5 on synthetic digits; fewer give softer targets",
    )
    images_per_class: PositiveInt = Field(300, description="synthetic images a class, the rows of the bank")
    shift: int = Field(1, ge=0, le=8, description="largest shift of a synthetic image in pixels")
    targets: Literal["bank", "mean", "handmade", "smoothing"] = Field(
        "bank",
        description="soft target of an image: a random row of its class; or as controls their mean, "
        "`confidence` on the label and the rest uniform, or label smoothing with the bank's mean entropy",
    )
    classes: Literal["identity", "permuted"] = Field(
        "identity",
        description="numbers that stand for the classes: in order, or as a control permuted by the seed",
    )
    confidence: float = Field(
        0.9, gt=0.0, lt=1.0, description="probability of the label in handmade targets, at temperature 1"
    )

    def unused(self) -> set[str]:
        """Each control has settings without an effect; so has the discriminator without a weight."""
        found = super().unused() | (set() if self.adversarial else {"conditional"})
        if self.targets != "handmade":
            found.add("confidence")
        if self.targets in ("handmade", "smoothing"):
            found.add("classes")
        return found


def _make_bank(
    setup: Setup, settings: LwkdConfig, seed: int, folder: Path, progress: StageProgress
) -> Mapping[str, Any]:
    classes, rows = setup.data.num_classes, settings.images_per_class
    size, limit = 4 * classes**2 * rows, default_limit()
    if size > limit:
        raise InputError(
            f"method lwkd: a bank of {rows} rows for each of {classes} classes takes {size / 2**30:.3g} GiB, "
            f"which is more than the {limit / 2**30:.3g} GiB that may stay in memory; lower images_per_class"
        )
    device = setup.runtime.device
    logits, accuracy = make_bank(
        classes, rows, settings.teacher_epochs, settings.shift, seed, device, progress
    )
    return {"logits": logits, "accuracy": accuracy}


class Lwkd(Method):
    """Distillation from a bank of soft targets that a LeNet-5 made of synthetic digits.

    The loss is (1-α) CE(y, s) + α τ² KL(softmax(t/τ) || softmax(s/τ)) - g mean log D(softmax(s/τ)). Here t is
    a row of the bank, drawn for every image and epoch, and g rises to its value over the first tenth of the
    training. Another logit term may stand in place of the divergence. The discriminator D is a multi-layer
    perceptron on probabilities: on logits it could learn their scale alone. It is trained after the student
    in every step, to tell softmax(t/τ) from softmax(s/τ).
    """

    name = "lwkd"
    Config = LwkdConfig
    stages = (Stage("lwkd-bank", ("teacher_epochs", "images_per_class", "shift"), _make_bank),)
    teaching = ("alpha", "adversarial")
    needs_teacher = False

    def __init__(self, setup: Setup, config: DistillConfig) -> None:
        """Build student, targets and discriminator on the runtime's device.

        Raises:
            InputError: the bank is missing; unknown block names; a start that lacks what it needs; a logit
                term that says nothing about these data.
        """
        super().__init__(setup, config)
        assert isinstance(config.loss, LwkdConfig)
        self.settings = config.loss
        self.spans = spans_of(setup.blocks, config.student)
        self.student = setup.start_student(config, self.spans)
        device, classes = setup.runtime.device, setup.data.num_classes
        targets = soft_targets(self.stage("lwkd-bank")["logits"], config.loss, config.seed)
        self.register_buffer("targets", targets.to(device), persistent=False)  # made again on a resume
        self._rows: tuple[int, Tensor] | None = None
        self._soft: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
        if config.loss.adversarial:
            inputs = 2 * classes if config.loss.conditional else classes
            with seeded(stream("discriminator", config.seed)):
                self.discriminator = nn.Sequential(
                    nn.Linear(inputs, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 1)
                ).to(device)

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Set training mode; frozen parts keep their batch-norm statistics."""
        training_mode(self.student, self.config.train, self.spans)
        yield

    def phases(self) -> list[Phase]:
        """Return the student's phase and, with an adversarial term, that of the discriminator."""
        student = Phase(STUDENT, [Group(list(self.student.named_parameters()))])
        if not self.settings.adversarial:
            return [student]
        judge = Group(list(self.discriminator.named_parameters()), decay=False)
        return [student, Phase(DISCRIMINATOR, [judge], adam=RATE)]

    def losses(self, batch: Batch, progress: Progress, phase: str) -> dict[str, Tensor]:
        """Return ce, the logit term and adversarial, or discriminator; parts of weight zero are left out."""
        assert batch.labels is not None
        target, loss = self._target(batch, progress.epoch), self.settings
        if phase == DISCRIMINATOR:
            return {"discriminator": self._told_apart(batch, target)}
        logits = self.logits(batch.images).float()
        smoothing = self.config.optim.label_smoothing
        parts = label_parts(loss, logits, target, batch.labels, smoothing, progress.done)
        if loss.adversarial:
            soft = (logits / loss.tau).softmax(1)
            self._soft[_place(batch)] = batch.index, soft.detach()
            weight = loss.adversarial * min(1.0, progress.done / WARM_UP)
            parts["adversarial"] = weight * F.softplus(-self._judged(soft, batch)).mean()  # -log D
        return parts

    def after_step(self, batch: Batch, progress: Progress) -> None:
        """Forget the student's outputs of the step."""
        self._soft.clear()

    def _target(self, batch: Batch, epoch: int) -> Tensor:
        """Return the soft targets of a batch as logits (B, classes): a row of the class for every image.

        Rows are drawn for all training images from (seed, epoch), so halves of a batch get the same.
        """
        assert batch.labels is not None
        targets = self.get_buffer("targets")
        if self._rows is None or self._rows[0] != epoch:
            draw = generator("bank", self.config.seed, epoch)
            rows = torch.randint(targets.shape[1], (len(self.setup.data.train),), generator=draw)
            self._rows = epoch, rows.to(targets.device)
        return targets[batch.labels, self._rows[1][batch.index]]

    def _told_apart(self, batch: Batch, target: Tensor) -> Tensor:
        """Return the discriminator's cross-entropy: targets are real, the student's outputs are not."""
        if (found := self._soft.get(_place(batch))) is not None:
            student = found[1]
        else:  # the student's phase saw the batch in other parts
            with torch.no_grad():
                student = (self.logits(batch.images).float() / self.settings.tau).softmax(1)
        real = (target / self.settings.tau).softmax(1)
        wrong = F.softplus(-self._judged(real, batch)) + F.softplus(self._judged(student, batch))
        return wrong.mean() / 2

    def _judged(self, soft: Tensor, batch: Batch) -> Tensor:
        """Return the discriminator's logit (B,) that these probabilities (B, classes) are the bank's."""
        if self.settings.conditional:
            assert batch.labels is not None
            soft = torch.cat([soft, F.one_hot(batch.labels, soft.shape[1])], 1)
        judged: Tensor = self.discriminator(soft)
        return judged[:, 0]


def _place(batch: Batch) -> tuple[int, int]:
    """Identify the images of a batch within a step, without waiting for the device."""
    return batch.index.data_ptr(), len(batch)


def soft_targets(bank: Tensor, settings: LwkdConfig, seed: int) -> Tensor:
    """Return the soft targets of every class as logits (C, n, C), n = 1 for a target without variation.

    At the temperature τ of `settings` a target is softmax(row / τ). With permuted classes, class c is the
    number π(c): its rows are those of π(c), and their column for class k is that of the number π(k).

    Args:
        bank: logits (C, n, C) of the synthetic images, by class.
        settings: `targets`, `classes`, `tau` and `confidence` are read.
        seed: of the permutation.
    """
    classes, tau = len(bank), settings.tau
    if settings.classes == "permuted":
        numbers = torch.randperm(classes, generator=generator("classes", seed))
        bank = bank[numbers][:, :, numbers]
    if settings.targets == "bank":
        return bank
    if settings.targets == "mean":
        return tau * ((bank / tau).log_softmax(2).logsumexp(1, keepdim=True) - math.log(bank.shape[1]))
    if settings.targets == "handmade":
        label = settings.confidence
    else:
        log = (bank.double() / tau).log_softmax(2)
        label = _smoothed(float(-(log.exp() * log).sum(2).mean()), classes)
    rest = (1 - label) / max(1, classes - 1)
    logits = torch.full((classes, classes), math.log(rest)).fill_diagonal_(math.log(label))
    return (logits if settings.targets == "handmade" else tau * logits)[:, None]


def _smoothed(entropy: float, classes: int) -> float:
    """Return the probability of the label at which label smoothing has this entropy (nats), by bisection."""
    low, high = 1 / classes, 1.0 - 1e-12  # the entropy falls from one to the other
    for _ in range(60):
        label = (low + high) / 2
        rest = 1 - label
        found = -label * math.log(label) - rest * math.log(rest / max(1, classes - 1))
        low, high = (label, high) if found > entropy else (low, label)
    return low
