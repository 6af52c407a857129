"""The SGD recipe of teachers and students: parameter groups and learning-rate schedule; and Adam."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from trainables.methods.base import Phase

NamedParams = Iterable[tuple[str, nn.Parameter]]
Ways = tuple[bool | None, bool | None]  # SGD's arguments foreach and fused

WAYS: dict[str, Ways] = {
    "auto": (None, None),
    "single": (False, False),
    "foreach": (True, False),
    "fused": (False, True),
}


def make_optimizer(
    model: nn.Module | NamedParams, lr: float, momentum: float, weight_decay: float, walk: str = "auto"
) -> torch.optim.SGD:
    """Make SGD (Nesterov if momentum is above 0) with two groups: with weight decay and without.

    Norm weights and biases, that is all parameters of fewer than two dimensions, are not decayed. Parameters
    that need no gradient are left out. Both groups exist even when empty, so that state dicts always fit.

    Args:
        model: a module, or its (name, parameter) pairs.
        lr: initial learning rate; `set_lr` later multiplies it by the group's "lr_scale".
        walk: implementation, as `runtime.optimizer`: auto, single, foreach or fused.
    """
    named = model.named_parameters() if isinstance(model, nn.Module) else model
    return _sgd(_groups(named, weight_decay), lr, momentum, walk)


def phase_optimizer(
    phase: Phase, lr: float, momentum: float, weight_decay: float, walk: str = "auto"
) -> torch.optim.Optimizer:
    """Make the optimiser of a method's phase, with its groups in order; otherwise as `make_optimizer`.

    A phase with `adam` gets Adam, whose learning rate `set_lr` leaves alone.
    """
    groups: list[dict[str, Any]] = []
    for group in phase.groups:
        if group.decay:
            groups += [
                {**each, "lr_scale": group.lr_scale} for each in _groups(group.parameters, weight_decay)
            ]
        else:
            params = [param for _, param in group.parameters if param.requires_grad]
            groups.append({"params": params, "weight_decay": 0.0, "lr_scale": group.lr_scale})
    if phase.adam is None:
        return _sgd(groups, lr, momentum, walk)
    foreach, fused = WAYS[walk]
    constant = [{**each, "lr": phase.adam * each["lr_scale"], "constant": True} for each in groups]
    return torch.optim.Adam(constant, lr=phase.adam, foreach=foreach, fused=fused)


def _groups(named: NamedParams, weight_decay: float) -> list[dict[str, Any]]:
    params = [param for _, param in named if param.requires_grad]
    return [
        {"params": [p for p in params if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in params if p.ndim < 2], "weight_decay": 0.0},
    ]


def _sgd(groups: list[dict[str, Any]], lr: float, momentum: float, walk: str) -> torch.optim.SGD:
    foreach, fused = WAYS[walk]
    return torch.optim.SGD(
        groups, lr=lr, momentum=momentum, nesterov=momentum > 0, foreach=foreach, fused=fused
    )


def lr_at(step: int, total_steps: int, warmup_steps: int, peak: float) -> float:
    """Return the learning rate of step `step` (0-based): linear warm-up to `peak`, cosine decay towards 0.

    The first step has peak / (warmup_steps + 1), step `warmup_steps` has the peak, and `total_steps` (one
    after the last) has 0. A warm-up longer than the training ends at its last step.
    """
    warmup_steps = max(0, min(warmup_steps, total_steps - 1))
    if step < warmup_steps:
        return peak * (step + 1) / (warmup_steps + 1)
    done = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    return peak * 0.5 * (1.0 + math.cos(math.pi * done))


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every group to `lr` times the group's "lr_scale" (default 1).

    Groups with a "constant" rate keep it.
    """
    for group in optimizer.param_groups:
        if not group.get("constant"):
            group["lr"] = lr * group.get("lr_scale", 1.0)
