"""Regressors: a 1x1 convolution that gives a map another network's shape.

Source: Romero et al. 2015, "FitNets: Hints for Thin Deep Nets" (arXiv:1412.6550).
"""

from __future__ import annotations

import torch
from torch import nn

from trainables.student.ama_module import ACTIVATIONS


class Regressor(nn.Module):
    """Average pooling to the size (repeats pixels if it is larger), 1x1 convolution, batch norm, activation.

    Args:
        in_shape: of the map without the batch: (C, H, W), (H, W, C) or (L, D) by `layout`.
        out_shape: of the result, likewise.
        layout: nchw, nhwc or tokens.
        activation: how the result ends; as the block whose map it approximates.
    """

    def __init__(
        self, in_shape: tuple[int, ...], out_shape: tuple[int, ...], layout: str, activation: str = "none"
    ) -> None:
        super().__init__()
        self.channels_last = layout != "nchw"
        if self.channels_last:
            in_shape, out_shape = (in_shape[-1], *in_shape[:-1]), (out_shape[-1], *out_shape[:-1])
        (c_in, *size), (c_out, *new_size) = in_shape, out_shape
        steps: list[nn.Module] = []
        if layout == "tokens":
            steps += [] if size == new_size else [nn.AdaptiveAvgPool1d(new_size[0])]
            steps += [nn.Conv1d(c_in, c_out, 1, bias=False), nn.BatchNorm1d(c_out)]
        else:
            steps += [] if size == new_size else [nn.AdaptiveAvgPool2d((new_size[0], new_size[1]))]
            steps += [nn.Conv2d(c_in, c_out, 1, bias=False), nn.BatchNorm2d(c_out)]
        self.steps = nn.Sequential(*steps, ACTIVATIONS[activation]())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, *in_shape) to (N, *out_shape)."""
        if not self.channels_last:
            return self.steps(x)  # type: ignore[no-any-return]
        mapped: torch.Tensor = self.steps(x.movedim(-1, 1))
        return mapped.movedim(1, -1)
