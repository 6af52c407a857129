"""Activation-map adaptation (AMA), the default method: its loss in named parts, and the method itself.

Feature supervision by the teacher's activation maps, with weights learned during training, follows Wu et al.
2020, "Activation Map Adaptation for Effective Knowledge Distillation" (arXiv:2010.13500); the logit term is
that of Hinton et al. 2015, "Distilling the Knowledge in a Neural Network" (arXiv:1503.02531).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from trainables.blocks.blocks import Block
from trainables.config import DistillConfig
from trainables.config_base import MethodConfig
from trainables.loss_config import LossConfig
from trainables.methods.base import Batch, Group, Phase, Progress, Setup
from trainables.methods.signals.teacher_signals import Signals
from trainables.methods.span_method import SpanMethod
from trainables.methods.terms.adaptive import log_prior, mixed_map
from trainables.methods.terms.embeddings import EMBEDDING_TERMS
from trainables.methods.terms.label_parts import label_parts
from trainables.methods.terms.maps import MAP_TERMS
from trainables.methods.wiring import Wiring
from trainables.student.spans import Span
from trainables.student.start import re_estimate

# Most maps in a learned mix: each is held in fp32 at every step, and a long residual stage has dozens of
# the same shape.
MAX_CANDIDATES = 4


class DistillationLoss(nn.Module):
    """(1-α) CE(y, s) + α τ² KL(softmax(t/τ) || softmax(s/τ)) + β Σᵢ wᵢ |fˢᵢ - fᵗᵢ|² / |fᵗᵢ|².

    The settings `logits`, `maps` and `embeddings` choose other terms (`trainables.methods.terms`). An
    embedding term is added with the weight γ.

    Supervision by depth has wᵢ ∝ d^(n-i), with mean 1.

    Uniform supervision has wᵢ = 1 and the replaced block's own map as the target fᵗᵢ. Adaptive supervision
    learns w = n softmax(a) and, for a span with several candidate maps, the target as a convex mix p of them.

    The regulariser keeps the learned weights from collapsing onto the easiest span. It is λ Σᵢ wᵢ log wᵢ,
    that is λ n KL(w/n || uniform), with λ = entropy_weight. Over the simplex, Σᵢ wᵢ Lᵢ + λ Σᵢ wᵢ log wᵢ has
    its only minimum at wᵢ ∝ exp(-Lᵢ/λ). So two weights differ at most by the factor exp(|Lᵢ - Lⱼ| / λ): by e
    for relative errors within 0..1 and λ = 1. With λ = 0 the minimum is a vertex.
    Each mix adds λ KL(p || prior). At the minimum L(p) + λ KL(p || prior) <= L(prior), hence
    KL(p || prior) <= L(prior) / λ for any maps.
    Both terms carry the factor β of the feature term, so the bounds are the same at every β.
    """

    def __init__(
        self,
        config: LossConfig,
        candidates: Sequence[int] = (),
        label_smoothing: float = 0.0,
        layouts: Sequence[str] = (),
    ) -> None:
        """Make the loss; the i-th span has candidates[i] >= 1 teacher maps, its own first, of layouts[i]."""
        super().__init__()
        self.config = config
        self.label_smoothing = label_smoothing
        self.candidates = tuple(candidates)
        self.layouts = tuple(layouts) or (None,) * len(self.candidates)
        self.reads_logits = config.alpha > 0
        self.reads_maps = config.beta > 0 and len(self.candidates) > 0
        self.reads_embeddings = config.embeddings != "none" and config.gamma > 0
        self.adaptive = self.reads_maps and config.supervision == "adaptive"
        count = len(self.candidates)
        factor = config.depth_factor if config.supervision == "depth" else 1.0
        fixed = torch.tensor([factor ** (count - 1 - index) for index in range(count)])
        self.register_buffer("fixed", fixed * (count / fixed.sum()), persistent=False)
        if self.adaptive:
            self.weight_logits = nn.Parameter(torch.zeros(len(self.candidates)))
            # The logits are added to the prior's: zero gives the prior.
            self.mix_logits = nn.ParameterList(torch.zeros(count) for count in self.candidates)
            for index, count in enumerate(self.candidates):
                self.register_buffer(f"log_prior_{index}", log_prior(count), persistent=False)

    @property
    def lr_scale(self) -> float:
        """Factor on the learning rate of the learned weights, which makes their steps independent of beta."""
        return 1.0 / (self.config.beta * (1.0 + self.config.entropy_weight)) if self.adaptive else 1.0

    def weights(self) -> Tensor:
        """Return the weights of the spans in the feature term: (spans,), mean 1, on the loss's device."""
        if self.adaptive:
            return len(self.candidates) * self.weight_logits.softmax(0)
        return self.get_buffer("fixed")

    def log_mix(self, span: int) -> Tensor:
        """Return the logarithms of the teacher maps' shares in the span's target: (candidates,)."""
        logits: Tensor = self.mix_logits[span] + self.get_buffer(f"log_prior_{span}")
        return logits.log_softmax(0)

    def entropy(self) -> float:
        """Return the entropy of the span weights, 0..1: 1 for equal weights, 0 for all weight on one span."""
        shares = self.weights().detach() / max(1, len(self.candidates))
        if len(shares) < 2:
            return 1.0
        return float(-(shares * shares.clamp_min(1e-12).log()).sum() / math.log(len(shares)))

    def forward(
        self,
        student_logits: Tensor,
        teacher_logits: Tensor | None,
        labels: Tensor,
        student_maps: Sequence[Tensor | None] = (),
        teacher_maps: Sequence[Sequence[Tensor]] = (),
        embeddings: tuple[Tensor, Tensor] | None = None,
        done: float = 1.0,
    ) -> dict[str, Tensor]:
        """Compute the parts of the loss of one batch, in fp32 for any input type; call it outside autocast.

        Args:
            student_logits: (B, classes).
            teacher_logits: (B, classes); not read when alpha is 0.
            labels: (B,) int64.
            student_maps: one map a span, None to leave a span out; not read when beta is 0.
            teacher_maps: candidate maps of every span, shaped as the student's map, the span's own map first.
            embeddings: the student's and the teacher's, (B, D) and (B, D'); read with an embedding term only.
            done: share of the training that is done; the weight of some terms rises at the start.

        Returns:
            0-d tensors that add up to the loss, in this order; a part whose weight is zero is left out.
            ce: (1-α) cross-entropy; kl (or the name of another logit term): α τ² KL; feature: β Σ weight x
            map term; regulariser, adaptive only: β times the regularisers of weights and mixes (see the
            class); the name of the embedding term: γ times its value.
        """
        beta = self.config.beta
        parts = label_parts(self.config, student_logits, teacher_logits, labels, self.label_smoothing, done)
        if self.reads_maps and not self.adaptive:
            errors = self._errors(student_maps, [own for own, *_ in teacher_maps])
            if self.config.supervision == "depth":
                errors = self.weights() * errors
            parts["feature"] = beta * errors.sum()
        elif self.reads_maps:
            feature, regulariser = self._adaptive(student_maps, teacher_maps)
            parts |= {"feature": beta * feature, "regulariser": beta * regulariser}
        if self.reads_embeddings:
            assert embeddings is not None
            term = EMBEDDING_TERMS[self.config.embeddings](*embeddings)
            parts[self.config.embeddings] = self.config.gamma * term
        return parts

    def _errors(self, student_maps: Sequence[Tensor | None], targets: Sequence[Tensor]) -> Tensor:
        """Return the error of every span, zero for one that is left out: (spans,)."""
        term, zero = MAP_TERMS[self.config.maps], self.get_buffer("fixed").new_zeros(())
        pairs = zip(student_maps, targets, self.layouts, strict=True)
        return torch.stack([zero if ours is None else term(ours, own, layout) for ours, own, layout in pairs])

    def _adaptive(
        self, student_maps: Sequence[Tensor | None], teacher_maps: Sequence[Sequence[Tensor]]
    ) -> tuple[Tensor, Tensor]:
        """Return the feature term and the regulariser, both without the factor beta."""
        weights = self.weights()
        kept = (weights * weights.clamp_min(1e-12).log()).sum()  # n KL(w/n || uniform) = Σ w log w
        targets, mixes = [], []
        for index, maps in enumerate(teacher_maps):
            log_mix = self.log_mix(index)
            targets.append(maps[0] if len(maps) == 1 else mixed_map(maps, log_mix.exp()))
            mixes.append((log_mix.exp() * (log_mix - self.get_buffer(f"log_prior_{index}"))).sum())
        # The error of a mix is multiplied by the span's weight. So is its KL term: the bound above holds.
        regulariser = self.config.entropy_weight * (kept + (weights.detach() * torch.stack(mixes)).sum())
        return (weights * self._errors(student_maps, targets)).sum(), regulariser


class Ama(SpanMethod):
    """Activation-map adaptation: replace spans of the teacher by AMA modules and train them on its maps."""

    name = "ama"
    Config = LossConfig
    teaching = ("alpha", "beta")

    def __init__(self, setup: Setup, config: DistillConfig) -> None:
        """Build student and loss on the runtime's device.

        Raises:
            InputError: as `SpanMethod`; or a wiring that needs a library, without it.
        """
        super().__init__(setup, config)
        assert isinstance(config.loss, LossConfig)
        self._targets = [candidate_maps(span, setup.blocks, config.loss) for span in self.spans]
        counts = [len(paths) for paths in self._targets]
        layouts = [span.layout for span in self.spans]
        self.loss = DistillationLoss(config.loss, counts, config.optim.label_smoothing, layouts)
        self.loss.to(setup.runtime.device)
        if not self.loss.reads_maps:
            self._targets = []
        self._shown = [span.first for span in self.spans] if self.loss.reads_maps else []
        self._classifiers = [setup.supervisor.classifier] if self.loss.reads_embeddings else []
        self.wiring = Wiring(config.loss, config.seed, self.spans, setup, self.loss.reads_maps)
        self._mixed = False  # whether batch norms have seen the teacher's maps in this epoch

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Attach the hooks on student and teacher; frozen parts keep their batch-norm statistics."""
        read = sorted({path for paths in self._targets for path in paths})
        logits, embedding = self.loss.reads_logits, self.loss.reads_embeddings
        self._mixed = False
        with self.watching(read, self._shown, logits, embedding, self._classifiers, self.wiring.taken):
            yield
        if self._mixed:
            modules = [self.student.get_submodule(span.first) for span in self.spans]
            parts = modules if self.config.train == "modules" else None
            re_estimate(self.student, self.config, self.setup.data, self.runtime, parts)

    def _student(self) -> Any:
        """Return the student, or its compiled form if the wiring leaves it as it is."""
        return self.student if self.wiring.eager else super()._student()

    @classmethod
    def baseline(cls, config: MethodConfig) -> MethodConfig:
        """Return `config` with cross-entropy alone: no term on logits, maps or embeddings, no wiring."""
        plain = {"embeddings": "none", "wiring": "chained"}
        return super().baseline(config).model_copy(update=plain)

    def phases(self) -> list[Phase]:
        """Return one phase: the student's parameters, and the learned weights, which are not decayed."""
        student = Group(list(self.student.named_parameters()))
        learned = Group(list(self.loss.named_parameters()), self.loss.lr_scale, decay=False)
        return [Phase("student", [student, learned])]

    def losses(self, batch: Batch, progress: Progress, phase: str) -> dict[str, Tensor]:
        """Return the parts of `DistillationLoss`; a part with weight zero is left out."""
        assert batch.labels is not None
        try:
            signals = self.teach(batch.images, batch.index)
            with self.wiring.applied(self.student, signals.inputs, progress):
                logits = self.logits(batch.images)
            self._mixed = self._mixed or self.wiring.mixes(progress)
            parts: dict[str, Tensor] = self.loss(
                logits,
                signals.logits,
                batch.labels,
                self.wiring.maps(self.student, self.maps, signals.inputs) if self._shown else [],
                self._target_maps(signals),
                self._embedded(signals),
                progress.done,
            )
        finally:
            self.maps.clear()  # free the maps of a pass that ran out of memory
            self.inputs.clear()
        return parts

    def _target_maps(self, signals: Signals) -> list[list[Tensor]]:
        """Return the maps that may supervise each span, the one that the wiring gives it first."""
        found = [[signals.maps[path] for path in paths] for paths in self._targets]
        for index, maps in enumerate(found):
            maps[0] = self.wiring.target(index, maps[0], signals.inputs)
        return found

    def _embedded(self, signals: Signals) -> tuple[Tensor, Tensor] | None:
        """Return the embeddings of student and teacher if the loss reads them."""
        if signals.embedding is None:
            return None
        return self.inputs[self._classifiers[0]], signals.embedding

    def metrics(self) -> dict[str, float]:
        """Return the entropy, the learned weight of every span and the shares of the maps in its target."""
        found = {"entropy": self.loss.entropy()}
        if self.loss.adaptive:
            names = ["+".join(span.blocks) for span in self.spans]
            found |= {
                f"weight/{name}": w for name, w in zip(names, self.loss.weights().tolist(), strict=True)
            }
            for index, (name, paths) in enumerate(zip(names, self._targets, strict=True)):
                shares = self.loss.log_mix(index).exp().tolist() if len(paths) > 1 else []
                found |= {f"mix/{name}/{path}": share for path, share in zip(paths, shares)}
        return found


def candidate_maps(span: Span, blocks: Sequence[Block], loss: LossConfig) -> list[str]:
    """Return the teacher's paths whose maps may supervise a span, the span's own first.

    Adaptive supervision adds the outputs of the blocks nearest in execution order that have the same shape,
    up to `MAX_CANDIDATES` in all.
    """
    if loss.supervision != "adaptive":
        return [span.last]
    outputs = [block.members[-1] for block in blocks]
    own = outputs.index(span.last)
    alike = [
        index
        for index, block in enumerate(blocks)
        if (block.out_shape, block.layout) == (span.out_shape, span.layout) and index != own
    ]
    nearest = sorted(alike, key=lambda index: (abs(index - own), index))[: MAX_CANDIDATES - 1]
    return [span.last, *(outputs[index] for index in nearest)]
