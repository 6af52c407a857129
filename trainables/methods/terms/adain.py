"""Adaptive instance normalisation (AdaIN): channel statistics of maps, their transfer and the losses on it.

After Yang et al. 2020, "Knowledge Distillation via Adaptive Instance Normalization" (arXiv:2003.04289). A
statistic is of one channel of one image, over the positions of its map.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from trainables.methods.terms.logits import logit_loss
from trainables.methods.terms.numerics import at_least_fp32

EPSILON = 1e-5  # added to a variance before the root: a channel of zeros has no slope without it


@dataclass(frozen=True)
class Statistics:
    """Channel means and standard deviations of a map, both (B, C) in fp32."""

    mean: Tensor
    std: Tensor

    @property
    def energy(self) -> Tensor:
        """Σ (μ² + σ²) over images and channels, 0-d: |map|² / positions, but for `EPSILON`."""
        return (self.mean.square() + self.std.square()).sum()


def channels_first(x: Tensor, layout: str | None = None) -> Tensor:
    """View a map as (B, C, positions).

    Args:
        x: (B, C, H, W), (B, H, W, C), tokens (B, L, D), or (B, C) with one position.
        layout: nchw, nhwc or tokens; None: nchw for four axes, tokens for three.
    """
    if x.ndim == 2:
        return x.unsqueeze(2)
    return x.flatten(1, -2).transpose(1, 2) if _channels_last(x, layout) else x.flatten(2)


def _channels_last(x: Tensor, layout: str | None) -> bool:
    return layout in ("nhwc", "tokens") or (layout is None and x.ndim == 3)


def channel_statistics(x: Tensor, layout: str | None = None) -> Statistics:
    """Return mean μ and standard deviation σ = sqrt(biased variance + ε) of every image's channels.

    Args:
        x: as `channels_first` takes it, in any precision; one position gives σ = sqrt(ε).
        layout: see `channels_first`.
    """
    variance, mean = torch.var_mean(at_least_fp32(channels_first(x, layout)), 2, correction=0)
    return Statistics(mean, (variance + EPSILON).sqrt())


def statistics_error(student: Statistics, teacher: Statistics) -> Tensor:
    """Σ [(μs - μt)² + (σs - σt)²] / Σ [μt² + σt²] over images and channels, 0-d.

    It is at most `relative_error` of the two maps. If the teacher's map is zero but for rounding, the sum is
    divided by the number of statistics' pairs instead, as a mean square.
    """
    gaps = (student.mean - teacher.mean).square() + (student.std - teacher.std).square()
    energy, count = teacher.energy, teacher.mean.numel()
    return gaps.sum() / torch.where(energy > 2 * EPSILON * count, energy, float(count))


def with_statistics(
    teacher_map: Tensor, teacher: Statistics, student: Statistics, layout: str | None = None
) -> Tensor:
    """Return the teacher's map with the student's channel statistics: (map - μt) / σt · σs + μs.

    Gradients reach the student through μs and σs alone. Shape and precision are those of `teacher_map`.
    """
    ones = (1,) * (teacher_map.ndim - 2)
    last = _channels_last(teacher_map, layout)

    def spread(each: Tensor) -> Tensor:  # (B, C) to the map's axes
        images, channels = each.shape
        return each.view(images, *ones, channels) if last else each.view(images, channels, *ones)

    normal = (at_least_fp32(teacher_map) - spread(teacher.mean)) / spread(teacher.std)
    return (normal * spread(student.std) + spread(student.mean)).to(teacher_map.dtype)


def reaction(answer: Tensor, logits: Tensor, react: str, tau: float) -> Tensor:
    """Compare the teacher's logits after `with_statistics` with its own, both (B, classes): 0-d, fp32.

    Args:
        answer: logits for the map with the student's statistics.
        logits: the teacher's own.
        react: mse, the mean over images and classes of the squared difference; or kl, `logit_loss`.
        tau: softmax temperature of kl.
    """
    if react == "kl":
        return logit_loss(answer, logits, tau)
    return (at_least_fp32(answer) - at_least_fp32(logits)).square().mean()
