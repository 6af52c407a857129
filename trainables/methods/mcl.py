"""Online distillation between peers without a trained teacher: multi-view contrastive learning (MCL-OKD).

Yang, An, Xu 2021, "Multi-view Contrastive Learning for Online Knowledge Distillation" (arXiv:2006.04093).
Several students of one architecture are trained together. They learn from the mean of their logits, and from
the contrast between their embeddings of an image. One of them is the student, the others are dropped.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from trainables.config import DistillConfig
from trainables.config_base import MethodConfig, searched
from trainables.methods.base import Batch, Method, Progress, Setup
from trainables.methods.embedding import make_contrast
from trainables.methods.signals.teacher_signals import NOTHING, Teach
from trainables.methods.terms.contrast import Contrast
from trainables.methods.terms.logits import logit_loss
from trainables.network.evaluate import evaluate
from trainables.network.surgery import put
from trainables.network.taps import Inputs, Taps, overwritten_outputs
from trainables.student.prefix import same_before
from trainables.student.spans import spans_of
from trainables.student.start import training_mode

PAIRS = 12  # ordered pairs of four peers, to which the published weight of the contrast belongs


class MclConfig(MethodConfig):
    """Settings of the method `mcl`.

    Example:
        loss = MclConfig(peers=3, beta=0.05, share="prefix")
        print(DistillConfig(method="mcl", loss=loss).content())
    """

    peers: int = searched(
        2, choices=(2, 3, 4), ge=2, le=4, description="students trained together, the exported one included"
    )
    alpha: float = searched(
        1.0, 0.0, 2.0, ge=0.0, description="weight of the peers' mean logits as a target; cross-entropy has 1"
    )
    tau: PositiveFloat = searched(
        3.0, 1.0, 8.0, log=True, description="softmax temperature of the peers' mean logits"
    )
    beta: float = searched(
        0.025, 0.003, 0.1, log=True, ge=0.0, description="weight of the contrast between embeddings"
    )
    contrast_tau: PositiveFloat = searched(
        0.1, 0.05, 0.3, log=True, description="temperature of the contrast"
    )
    negatives: PositiveInt = searched(
        256, choices=(64, 256, 1024), description="images a step that the contrast tells apart; at most all"
    )
    soft: Literal["student", "all"] = searched(
        "student", choices=("student", "all"), description="who learns from the peers' mean logits"
    )
    share: Literal["none", "prefix"] = searched(
        "none",
        choices=("none", "prefix"),
        description="what peers share: nothing, or all modules before the first replaced block",
    )
    teacher: Literal["none", "view"] = Field(
        default="none", description="view: the trained teacher is one more peer, which does not learn"
    )

    def unused(self) -> set[str]:
        """Without its weight, a term's settings have no effect."""
        logits = set() if self.alpha else {"tau", "soft"}
        contrast = set() if self.beta else {"contrast_tau", "negatives"}
        return logits | contrast | (set() if self.alpha or self.beta else {"peers", "share", "teacher"})


class Mcl(Method):
    """Train several students together and keep the first.

    The loss is Σ CE + α T² KL(softmax(z̄/T) || softmax(z/T)) + β 12/(m (m-1)) Σ contrast over ordered pairs of
    m networks, with z̄ the mean of all networks' logits, without a gradient. Peers have the student's spec and
    other random weights. Where these come from the library, the other peers take random modules instead.
    """

    name = "mcl"
    Config = MclConfig
    teaching = ("alpha", "beta")
    needs_teacher = False

    def __init__(self, setup: Setup, config: DistillConfig) -> None:
        """Build the student and its peers on the runtime's device; without terms between them, no peers.

        Raises:
            InputError: as `start_student` and `make_contrast`.
        """
        super().__init__(setup, config)
        assert isinstance(config.loss, MclConfig)
        self.settings = loss = config.loss
        self._spans = spans_of(setup.blocks, config.student)
        self.student, *peers = [
            self._start(seed) for seed in range(loss.peers if loss.alpha or loss.beta else 1)
        ]
        self.peers = nn.ModuleList(peers)
        self._shared = self._share() if loss.share == "prefix" and peers else []
        self.contrast: Contrast | None = None
        self._embedded: list[tuple[nn.Module, str]] = []
        if loss.beta:
            students, teacher = [self.student, *peers], loss.teacher == "view"
            self.contrast, path = make_contrast(
                setup, config, students, teacher, loss.negatives, loss.contrast_tau
            )
            self._embedded = [(student, path) for student in students]
        self._inputs: list[Inputs] = []
        self._teach: Teach = lambda images, index: NOTHING

    def _start(self, number: int) -> nn.Module:
        config = self.config.model_copy(update={"seed": self.config.seed + number})
        if number and config.warm_start == "library":  # which has one set of weights for a module
            config = config.model_copy(update={"warm_start": "teacher"})
        return self.setup.start_student(config, self._spans)

    def _share(self) -> list[_Shared]:
        """Make the peers read the student's outputs of every module before the first span."""
        images = self.setup.supervisor.few
        paths = same_before(self.student, self.student, self._spans, images[:1])
        self.student.eval()
        copied = overwritten_outputs(self.student, paths, images)
        shared = [_Shared(path, path in copied) for path in paths]
        for peer in self.peers:
            for each in shared:
                put(peer, each.path, each)
        return shared

    @contextmanager
    def _sharing(self) -> Iterator[None]:
        copied = [each.path for each in self._shared if each.copied]
        with Taps(self.student, [each.path for each in self._shared], copied) as taps:
            for each in self._shared:
                each.outputs = taps.outputs
            yield

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Attach the hooks on the networks; frozen parts keep their batch-norm statistics."""
        self.train()
        for network in (self.student, *self.peers):
            training_mode(network, self.config.train, self._spans)
        with ExitStack() as stack:
            stack.enter_context(self._sharing())
            self._inputs = [stack.enter_context(Inputs(net, [path])) for net, path in self._embedded]
            if self.settings.teacher == "view" and self.peers:
                teaching = self.setup.supervisor.teaching(
                    (), self.settings.alpha > 0, self.contrast is not None
                )
                self._teach = stack.enter_context(teaching)
            yield

    def losses(self, batch: Batch, progress: Progress, phase: str) -> dict[str, Tensor]:
        """Return ce, summed over all peers; ensemble; contrast. A part with weight zero is left out."""
        assert batch.labels is not None
        loss = self.settings
        signals = self._teach(batch.images, batch.index)
        try:
            logits = self._all_logits(batch.images)
            embeddings = [each for inputs in self._inputs for each in inputs.inputs.values()]
        finally:
            for inputs in self._inputs:
                inputs.inputs.clear()
        smoothing = self.config.optim.label_smoothing
        ce = [F.cross_entropy(each, batch.labels, label_smoothing=smoothing) for each in logits]
        parts = {"ce": torch.stack(ce).sum()}
        if loss.alpha:
            views = [each.detach() for each in logits]
            if signals.logits is not None:
                views.append(signals.logits.float())
            target = torch.stack(views).mean(0)
            taught = logits[:1] if loss.soft == "student" else logits
            soft = [logit_loss(each, target, loss.tau) for each in taught]
            parts["ensemble"] = loss.alpha * torch.stack(soft).sum()
        if self.contrast is not None:
            if signals.embedding is not None:
                embeddings.append(signals.embedding)
            views_ = len(embeddings)
            pairs = self.contrast.loss(embeddings, batch.labels, batch.index, progress.step)
            parts["contrast"] = loss.beta * PAIRS / (views_ * (views_ - 1)) * pairs
        return parts

    def _all_logits(self, images: Tensor) -> list[Tensor]:
        """Return the logits of the student and every peer in fp32, (B, classes) each."""
        found = [self.logits(images).float()]
        with self.runtime.autocast():
            found += [peer(images).float() for peer in self.peers]
        return found

    def after_step(self, batch: Batch, progress: Progress) -> None:
        """Update the memory banks."""
        if self.contrast is not None:
            self.contrast.update(batch.index)

    def metrics(self) -> dict[str, float]:
        """Return the validation accuracy of the mean of all peers' logits, a model that is not exported."""
        if not self.peers:
            return {}
        batches = self.setup.data.eval_batches("val", self.runtime, self.runtime.eval_batch)
        with self._sharing():
            found = evaluate(_Mean([self.student, *self.peers]), batches, self.runtime)
        return {"ensemble_accuracy": found.accuracy}


class _Shared(nn.Module):
    """Take the place of a peer's module and return the output of the student's in its last pass."""

    def __init__(self, path: str, copied: bool) -> None:
        super().__init__()
        self.path, self.copied = path, copied
        self.outputs: dict[str, Tensor] = {}

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        output = self.outputs[self.path]
        return output.clone() if self.copied else output


class _Mean(nn.Module):
    """The mean of some networks' logits."""

    def __init__(self, networks: list[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, images: Tensor) -> Tensor:
        return torch.stack([network(images).float() for network in self.networks]).mean(0)
