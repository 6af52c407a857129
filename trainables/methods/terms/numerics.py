"""Precision of the terms, and a division by a norm that has a slope everywhere."""

from __future__ import annotations

import torch
from torch import Tensor


def at_least_fp32(x: Tensor) -> Tensor:
    """Return `x` in fp32, or unchanged if it is in fp64."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def unit(x: Tensor, least: Tensor | float = 1e-12) -> Tensor:
    """Divide the vectors along the last axis by their norm; return zero, without a slope, for tiny ones.

    Args:
        x: (..., D).
        least: squared norm from which a vector has a direction, (..., 1) or a number. At a zero vector, a
            bound below the norm alone gives slopes as large as the bound is small.
    """
    square = x.square().sum(-1, keepdim=True)
    long = square > least
    return x * torch.where(long, torch.where(long, square, 1.0).rsqrt(), 0.0)
