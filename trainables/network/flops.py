"""Count parameters and FLOPs of a whole model."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from trainables.network.trace import undisturbed


def count_flops(model: nn.Module, example: torch.Tensor) -> int:
    """Count the FLOPs of one forward pass on one image; a multiply-accumulate is 2.

    Convolutions, matrix products and attention count, as in `torch.utils.flop_counter`; element-wise
    operations and norms do not. The model is not changed.

    Args:
        model: any module.
        example: images (B, 3, H, W) on the model's device; only the first is used.
    """
    with undisturbed(model), torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(example[:1])
    return int(counter.get_total_flops())


def count_params(model: nn.Module) -> int:
    """Count the parameters, shared ones once; buffers do not count."""
    return sum(parameter.numel() for parameter in model.parameters())
