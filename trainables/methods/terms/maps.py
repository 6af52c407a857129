"""Terms on activation maps: a student's map against the teacher's, of one shape, in any precision.

Every term is zero for equal maps and has no unit, so that the weights of maps of any size compare.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from trainables.methods.terms.adain import channel_statistics, channels_first, statistics_error
from trainables.methods.terms.numerics import at_least_fp32, unit

MapTerm = Callable[[Tensor, Tensor, str | None], Tensor]  # student, teacher, layout (`channels_first`)

ATTENTION = 1000.0  # published weight of a map's attention beside cross-entropy of weight 1


def relative_error(student: Tensor, teacher: Tensor) -> Tensor:
    """|student - teacher|^2 / |teacher|^2 over all elements of two maps of one shape, summed in fp32.

    The norm is that of the whole batch. With a norm per image, an image with a teacher map close to zero
    would have a tiny denominator and dominate the mean. A teacher map of zeros gives the mean squared error.
    Maps in half precision are subtracted in half precision, so each difference is rounded once.
    """
    norm = squared_norm(teacher)
    distance: Tensor = _SquaredDistance.apply(student, teacher)  # type: ignore[no-untyped-call]
    return distance / torch.where(norm > 0, norm, float(teacher.numel()))


class _SquaredDistance(torch.autograd.Function):
    """|a - b|^2 with one temporary map in forward and one in backward, in the maps' precision.

    Plain operations in fp32 make seven temporary maps, which took 30 % of a training step on a CPU.
    """

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        difference = a - b
        ctx.save_for_backward(difference)
        ctx.dtypes = a.dtype, b.dtype
        return squared_norm(difference)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None]:
        (difference,) = ctx.saved_tensors
        slope = difference * (2 * grads[0])
        a, b = ctx.needs_input_grad
        return slope.to(ctx.dtypes[0]) if a else None, -slope.to(ctx.dtypes[1]) if b else None


def squared_norm(x: Tensor) -> Tensor:
    """Sum the squares of (B, ...) to 0-d fp32 without a copy in fp32; image by image, for accuracy."""
    norms = torch.linalg.vector_norm(x, dim=tuple(range(1, x.ndim)), dtype=torch.float32)  # (B,)
    total: Tensor = norms.square().sum()
    return total


def relative(student: Tensor, teacher: Tensor, layout: str | None = None) -> Tensor:
    """Return `relative_error`. The layout is not read."""
    return relative_error(student, teacher)


def attention(student: Tensor, teacher: Tensor, layout: str | None = None) -> Tensor:
    """1000 x mean square of the gaps between attention maps (Zagoruyko & Komodakis 2017, arXiv:1612.03928).

    An image's attention map is the mean of its squared channels at every position, divided by its L2 norm.
    The mean is over images and positions. The published weight of 1000 belongs to this form, that of the
    authors' code; the paper's equation has a norm instead. The numbers of channels may differ. Maps with one
    position always have the attention 1, so the term is zero.
    """
    ours, theirs = (_attention(each, layout) for each in (student, teacher))
    return ATTENTION * (ours - theirs).square().mean()


def _attention(x: Tensor, layout: str | None) -> Tensor:
    """Return (B, positions), each row with norm 1; zero for a map of zeros."""
    return unit(at_least_fp32(channels_first(x, layout)).square().mean(1), 1e-24)


def statistics(student: Tensor, teacher: Tensor, layout: str | None = None) -> Tensor:
    """Return `statistics_error` of the maps' channel statistics (Yang et al. 2020, arXiv:2003.04289)."""
    return statistics_error(channel_statistics(student, layout), channel_statistics(teacher, layout))


MAP_TERMS: Mapping[str, MapTerm] = {"relative": relative, "attention": attention, "statistics": statistics}
