"""Learned weights of spans and learned mixes of teacher maps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from trainables.methods.terms.maps import squared_norm

OWN_SHARE = (
    0.9  # prior share of the replaced block's own map in a learned mix; the other maps divide the rest
)


def mixed_map(maps: Sequence[Tensor], shares: Tensor) -> Tensor:
    """Return the convex mix of maps, after scaling each to the first map's norm.

    Maps grow along a residual stage: unscaled, the mix would depend on size instead of content.
    """
    stack = torch.stack(list(maps))  # (candidates, B, ...)
    norms = torch.stack([squared_norm(each) for each in maps]).sqrt()  # (candidates,)
    scales = torch.where(norms > 0, norms[0] / norms, 1.0)
    mixed: Tensor = torch.tensordot((shares * scales).to(stack.dtype), stack, dims=1)
    return mixed


def log_prior(count: int) -> Tensor:
    """Return the logarithms of the prior shares of `count` maps, the span's own map first: (count,)."""
    if count == 1:
        return torch.zeros(1)
    return torch.tensor([OWN_SHARE] + [(1 - OWN_SHARE) / (count - 1)] * (count - 1)).log()
