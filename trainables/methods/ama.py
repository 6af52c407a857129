"""The distillation objective, in named parts.

Feature supervision by the teacher's activation maps, weighed adaptively during training, follows Wu et al.
2020, "Activation Map Adaptation for Effective Knowledge Distillation" (arXiv:2010.13500); the logit term is
that of Hinton et al. 2015, "Distilling the Knowledge in a Neural Network" (arXiv:1503.02531).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainables.blocks.blocks import Block
from trainables.config import LossConfig
from trainables.methods.adaptive import log_prior, mixed_map
from trainables.methods.loss_terms import logit_loss, relative_error
from trainables.student.spans import Span

# Maps in a learned mix: each is held in fp32 at every step, and a long residual stage has dozens alike.
MAX_CANDIDATES = 4


class LossParts(NamedTuple):
    """total = (1-α) ce + α kl + β (feature + regulariser); 0-d fp32 tensors but for per_span.

    A part whose weight is zero is not computed and is 0. All but `total` are detached.
    """

    total: Tensor
    ce: Tensor  # cross-entropy, nats
    kl: Tensor  # τ² KL(teacher || student), nats
    feature: Tensor  # sum over spans of weight x relative squared error
    regulariser: Tensor  # what the learned weights and mixes pay for leaving the prior
    per_span: Tensor  # (spans,) relative squared errors, unweighted
    entropy: Tensor  # of the span weights, 0..1 of its maximum; 1 for uniform


class DistillationLoss(nn.Module):
    """(1-α) CE(y, s) + α τ² KL(softmax(t/τ) || softmax(s/τ)) + β Σᵢ wᵢ |fˢᵢ - fᵗᵢ|² / |fᵗᵢ|².

    Uniform supervision has wᵢ = 1 and the replaced block's own map as the target fᵗᵢ. Adaptive supervision
    learns w = n softmax(a) and, for a span with several candidate maps, the target as a convex mix p of them.

    Why the learned weights do not collapse onto what is easiest: the regulariser is λ Σᵢ wᵢ log wᵢ, that is
    λ n KL(w/n || uniform), with λ = entropy_weight. Over the simplex, Σᵢ wᵢ Lᵢ + λ Σᵢ wᵢ log wᵢ has its one
    minimum at wᵢ ∝ exp(-Lᵢ/λ), so two weights differ at most by the factor exp(|Lᵢ - Lⱼ| / λ): by e for
    relative errors within 0..1 and λ = 1. With λ = 0 the minimum is a vertex.
    Each mix pays λ KL(p || prior): at the minimum L(p) + λ KL(p || prior) <= L(prior), hence
    KL(p || prior) <= L(prior) / λ whatever the maps are.
    Both pulls carry the factor β of the feature term, so the bounds are the same at every β.
    """

    def __init__(
        self, config: LossConfig, candidates: Sequence[int] = (), label_smoothing: float = 0.0
    ) -> None:
        """Make the loss for spans of which the i-th has candidates[i] >= 1 teacher maps, its own first."""
        super().__init__()
        self.config = config
        self.label_smoothing = label_smoothing
        self.candidates = tuple(candidates)
        self.reads_logits = config.alpha > 0
        self.reads_maps = config.beta > 0 and len(self.candidates) > 0
        self.adaptive = self.reads_maps and config.supervision == "adaptive"
        if self.adaptive:
            self.weight_logits = nn.Parameter(torch.zeros(len(self.candidates)))
            # Logits are relative to the prior: zero is the prior itself.
            self.mix_logits = nn.ParameterList(torch.zeros(count) for count in self.candidates)
            for index, count in enumerate(self.candidates):
                self.register_buffer(f"log_prior_{index}", log_prior(count), persistent=False)

    @property
    def lr_scale(self) -> float:
        """Step size of the learned weights relative to the network's: they move alike at every beta."""
        return 1.0 / (self.config.beta * (1.0 + self.config.entropy_weight)) if self.adaptive else 1.0

    def weights(self) -> Tensor:
        """(spans,) weights of the spans in the feature term, of mean 1."""
        if self.adaptive:
            return len(self.candidates) * self.weight_logits.softmax(0)
        return torch.ones(len(self.candidates))

    def log_mix(self, span: int) -> Tensor:
        """(candidates of the span,) logarithms of the shares of the teacher maps in the span's target."""
        logits: Tensor = self.mix_logits[span] + self.get_buffer(f"log_prior_{span}")
        return logits.log_softmax(0)

    def forward(
        self,
        student_logits: Tensor,
        teacher_logits: Tensor | None,
        labels: Tensor,
        student_maps: Sequence[Tensor] = (),
        teacher_maps: Sequence[Sequence[Tensor]] = (),
    ) -> LossParts:
        """The loss of one batch, computed in fp32 whatever comes; call it outside autocast.

        Args:
            student_logits: (B, classes).
            teacher_logits: (B, classes); not read when alpha is 0.
            labels: (B,) int64.
            student_maps: one map a span; not read when beta is 0.
            teacher_maps: for every span its candidate maps, each shaped as the student's, the own one first.
        """
        alpha, beta = self.config.alpha, self.config.beta
        student_logits = student_logits.float()
        zero = student_logits.new_zeros(())
        ce = kl = feature = regulariser = zero
        entropy = torch.ones_like(zero)
        errors = zero.new_zeros(len(self.candidates))
        if alpha < 1:
            ce = F.cross_entropy(student_logits, labels, label_smoothing=self.label_smoothing)
        if self.reads_logits:
            assert teacher_logits is not None
            kl = logit_loss(student_logits, teacher_logits, self.config.tau)
        if self.reads_maps:
            feature, regulariser, errors, entropy = self._features(student_maps, teacher_maps)
        total = (1 - alpha) * ce + alpha * kl + beta * (feature + regulariser)
        parts = (ce, kl, feature, regulariser, errors, entropy)
        return LossParts(total, *(part.detach() for part in parts))

    def _features(
        self, student_maps: Sequence[Tensor], teacher_maps: Sequence[Sequence[Tensor]]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        if not self.adaptive:
            pairs = zip(student_maps, teacher_maps, strict=True)
            errors = torch.stack([relative_error(student, own) for student, (own, *_) in pairs])
            return errors.sum(), errors.new_zeros(()), errors, errors.new_ones(())
        weights = self.weights()
        kept = (weights * weights.clamp_min(1e-12).log()).sum()  # n KL(w/n || uniform) = Σ w log w
        errors_, mixes = [], []
        for index, (student, maps) in enumerate(zip(student_maps, teacher_maps, strict=True)):
            log_mix = self.log_mix(index)
            target = maps[0] if len(maps) == 1 else mixed_map(maps, log_mix.exp())
            errors_.append(relative_error(student, target))
            mixes.append((log_mix.exp() * (log_mix - self.get_buffer(f"log_prior_{index}"))).sum())
        errors = torch.stack(errors_)
        # A span's mix feels its error times its weight; the same factor on its pull keeps the bound above.
        regulariser = self.config.entropy_weight * (kept + (weights.detach() * torch.stack(mixes)).sum())
        spans = len(self.candidates)
        entropy = 1 - kept / (spans * math.log(spans)) if spans > 1 else torch.ones_like(kept)
        return (weights * errors).sum(), regulariser, errors, entropy


def candidate_maps(span: Span, blocks: Sequence[Block], loss: LossConfig) -> list[str]:
    """Paths in the teacher of the maps that may supervise a span, its own first.

    Adaptive supervision adds the outputs of the blocks nearest in execution order that have the same shape,
    up to `MAX_CANDIDATES` in all.
    """
    if loss.supervision == "uniform":
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
