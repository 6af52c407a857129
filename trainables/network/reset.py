"""Re-initialise weights and re-estimate batch-norm statistics."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from trainables.runtime.runtime import Runtime
from trainables.runtime.seeds import seeded


def reset_parameters(model: nn.Module, seed: int) -> None:
    """Re-initialise every parameter of `model` in place: the start of a from-scratch baseline.

    Call `reset_parameters` (or `_reset_parameters`) of every module that has it, children before parents, so
    that a parent can overrule its children. Then initialise convolutions with He's normal distribution by
    fan-in: torch's default is too small for deep networks without norms. A module without such a method may
    hold parameters itself (class tokens, position tables, layer scales). These are set by their kind: tables
    to a truncated normal of standard deviation 0.02, scales (`scale`, `gamma`, `weight` in the name) to one,
    anything else to zero. That is not always the architecture's initialisation, but it trains. To get the
    architecture's own, build the model again and make the student from it.

    Args:
        model: any module, on any device; buffers stay, except those that a module's reset method changes.
        seed: of the new weights; the global generators are not changed.
    """
    # Random numbers are drawn on the parameters' device: a GPU draws others than a CPU.
    with seeded(seed), torch.no_grad():
        for module in reversed(list(model.modules())):
            reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
            if reset is None:
                for name, parameter in module.named_parameters(recurse=False):
                    _reset_by_kind(name, parameter)
                continue
            reset()
            if isinstance(module, nn.modules.conv._ConvNd):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)


def _reset_by_kind(name: str, parameter: nn.Parameter) -> None:
    if sum(side > 1 for side in parameter.shape) > 1:
        nn.init.trunc_normal_(parameter, std=0.02)
    elif any(part in name for part in ("scale", "gamma", "weight")):
        nn.init.ones_(parameter)
    else:
        nn.init.zeros_(parameter)


@torch.no_grad()
def recalibrate_batchnorm(
    model: nn.Module,
    batches: Iterable[tuple[torch.Tensor, torch.Tensor]],
    runtime: Runtime,
    parts: Iterable[nn.Module] | None = None,
) -> int:
    """Re-estimate the running statistics of every batch norm as the plain mean over `batches`.

    A newly built student carries the teacher's statistics, which no longer fit. Everything but the batch
    norms runs in eval mode; training flags and momenta are restored.

    Args:
        model: on the runtime's device; only batch-norm buffers change.
        batches: pairs of images (B, 3, H, W) and labels, which are ignored; B should be 2 or more.
        runtime: its autocast precision is used.
        parts: submodules whose batch norms are re-estimated; None: all.

    Returns:
        Number of batches seen. Without batches or batch norms the model is not changed.
    """
    inside = dict.fromkeys(m for part in ([model] if parts is None else parts) for m in part.modules())
    norms = [m for m in inside if isinstance(m, _BatchNorm) and m.track_running_stats]
    flags = {module: module.training for module in model.modules()}
    momenta = [norm.momentum for norm in norms]
    model.eval()
    seen = 0
    try:
        for images, _ in batches if norms else ():
            if seen == 0:
                for norm in norms:
                    norm.reset_running_stats()
                    norm.momentum = None  # cumulative average
                    norm.train()
            with runtime.autocast():
                model(images)
            seen += 1
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for module, flag in flags.items():
            module.training = flag
    return seen
