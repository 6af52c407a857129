"""Activation-map adaptation (AMA) modules: the small networks that replace the teacher's blocks.

After Wu et al. 2020, "Activation Map Adaptation for Effective Knowledge Distillation".
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "silu": nn.SiLU,
    "hardswish": nn.Hardswish,
    "gelu": nn.GELU,
    "none": nn.Identity,
}
# Initial scale of the branch beside an identity shortcut. A fresh module then nearly returns its input, so a
# residual network keeps working. A scale of exactly zero would stay zero where the map is zero under a final
# ReLU.
# Measured on random residual blocks (200 steps of regression onto the block's map, 3-4 seeds, learning rates
# 0.05 to 0.5): 0.3 starts as close as 0 does (relative error 0.51; 1.0: 0.74) and ends lower than 0 or 0.1 at
# every rate.
SMALL = 0.3
MAX_STRIDE = 3  # up to here a 3x3 kernel sees every pixel; for larger strides, maps are pooled


def hidden_channels(width: float, c_out: int) -> int:
    """Return a module's hidden channels: `width * c_out`, rounded to a multiple of 8, at least 8."""
    return max(8, int(width * c_out / 8 + 0.5) * 8)


def make_module(
    in_shape: tuple[int, ...],
    out_shape: tuple[int, ...],
    width: float,
    layout: str = "nchw",
    activation: str = "none",
) -> nn.Module:
    """Make an AMA module with fresh weights from torch's global generator.

    Args:
        in_shape: of the span's input map without the batch: (C, H, W), (H, W, C) or (L, D) by `layout`.
        out_shape: of the span's output map, likewise.
        width: hidden channels as a share of the output's; see `hidden_channels`.
        layout: nchw, nhwc or tokens.
        activation: how the replaced blocks end: relu, relu6, silu, hardswish, gelu or none.

    Returns:
        A module that maps (N, *in_shape) to (N, *out_shape), on the CPU, in training mode.
    """
    if layout == "tokens":
        return TokenAdaptation(in_shape, out_shape, width, activation)
    if layout == "nhwc":
        (h, w, c), (h_out, w_out, c_out) = in_shape, out_shape
        return ChannelsLastAdaptation((c, h, w), (c_out, h_out, w_out), width, activation)
    return MapAdaptation(in_shape, out_shape, width, activation)


def strides(in_size: tuple[int, ...], out_size: tuple[int, ...]) -> tuple[int, int] | None:
    """Return the stride per axis with which a padded 3x3 convolution gives `out_size`; None if none does."""
    found = []
    for a, b in zip(in_size, out_size, strict=True):
        fitting = [s for s in range(1, MAX_STRIDE + 1) if -(-a // s) == b]
        if not fitting:
            return None
        found.append(fitting[0])
    return found[0], found[1]


class MapAdaptation(nn.Module):
    """(N, C, H, W) to (N, C', H', W'): a convolutional bottleneck beside a shortcut."""

    def __init__(
        self, in_shape: tuple[int, ...], out_shape: tuple[int, ...], width: float, activation: str
    ) -> None:
        super().__init__()
        (c_in, *in_size), (c_out, *out_size) = in_shape, out_shape
        hidden = hidden_channels(width, c_out)
        stride = strides(tuple(in_size), tuple(out_size))
        inner = ACTIVATIONS[activation if activation in ("silu", "gelu", "hardswish") else "relu"]
        pool = [] if stride else [nn.AdaptiveAvgPool2d(tuple(out_size))]
        self.reduce = nn.Sequential(
            nn.Conv2d(c_in, hidden, 1, bias=False), nn.BatchNorm2d(hidden), inner(), *pool
        )
        self.spatial = nn.Sequential(
            nn.Conv2d(hidden, hidden, 3, stride or 1, padding=1, bias=False), nn.BatchNorm2d(hidden), inner()
        )
        self.expand = nn.Sequential(nn.Conv2d(hidden, c_out, 1, bias=False), nn.BatchNorm2d(c_out))
        self.shortcut = nn.Sequential(*_resize(stride, out_size), *_project(c_in, c_out))
        self.activation = ACTIVATIONS[activation]()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Re-initialise: the branch starts small beside an identity, at full scale beside a projection."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            elif isinstance(module, nn.BatchNorm2d):
                module.reset_parameters()
        if not any(isinstance(module, nn.Conv2d) for module in self.shortcut):
            last = self.expand[1]
            assert isinstance(last, nn.BatchNorm2d)
            nn.init.constant_(last.weight, SMALL)

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Map (N, C, H, W) to (N, C', H', W'); ignore further arguments of the block."""
        branch = self.expand(self.spatial(self.reduce(x)))
        return self.activation(branch + self.shortcut(x))  # type: ignore[no-any-return]


class ChannelsLastAdaptation(nn.Module):
    """(N, H, W, C) to (N, H', W', C'): a `MapAdaptation` between permutations."""

    def __init__(
        self, in_shape: tuple[int, ...], out_shape: tuple[int, ...], width: float, activation: str
    ) -> None:
        super().__init__()
        self.maps = MapAdaptation(in_shape, out_shape, width, activation)

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Map (N, H, W, C) to (N, H', W', C')."""
        out: torch.Tensor = self.maps(x.permute(0, 3, 1, 2))  # (N, C', H', W')
        return out.permute(0, 2, 3, 1).contiguous()


class TokenAdaptation(nn.Module):
    """(N, L, D) to (N, L', D'): a linear bottleneck on every token beside a shortcut."""

    def __init__(
        self, in_shape: tuple[int, ...], out_shape: tuple[int, ...], width: float, activation: str
    ) -> None:
        super().__init__()
        (l_in, d_in), (l_out, d_out) = in_shape, out_shape
        hidden = hidden_channels(width, d_out)
        self.length = None if l_in == l_out else l_out
        self.norm = nn.LayerNorm(d_in)
        self.reduce = nn.Linear(d_in, hidden)
        self.expand = nn.Linear(hidden, d_out)
        self.shortcut = nn.Identity() if d_in == d_out else nn.Linear(d_in, d_out)
        self.activation = ACTIVATIONS[activation]()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Re-initialise: the branch starts small beside an identity, at full scale beside a projection."""
        for module in (self.norm, self.reduce, self.expand, self.shortcut):
            if isinstance(module, nn.Linear | nn.LayerNorm):
                module.reset_parameters()
        if isinstance(self.shortcut, nn.Identity):
            with torch.no_grad():
                self.expand.weight.mul_(SMALL)
                self.expand.bias.zero_()

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Map (N, L, D) to (N, L', D'); ignore further arguments of the block (never a mask)."""
        if self.length is not None:
            x = F.adaptive_avg_pool1d(x.transpose(1, 2), self.length).transpose(1, 2)  # (N, L', D)
        branch = self.expand(F.gelu(self.reduce(self.norm(x))))
        return self.activation(branch + self.shortcut(x))  # type: ignore[no-any-return]


def _resize(stride: tuple[int, int] | None, out_size: list[int]) -> list[nn.Module]:
    """Return average pooling to the size of the strided convolution, or to `out_size` without a stride."""
    if stride is None:
        return [nn.AdaptiveAvgPool2d(tuple(out_size))]
    if max(stride) == 1:
        return []
    return [nn.AvgPool2d(stride, ceil_mode=True, count_include_pad=False)]


def _project(c_in: int, c_out: int) -> list[nn.Module]:
    if c_in == c_out:
        return []
    return [nn.Conv2d(c_in, c_out, 1, bias=False), nn.BatchNorm2d(c_out)]
