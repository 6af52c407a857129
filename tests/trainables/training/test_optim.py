"""The SGD recipe: groups, schedule."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from trainables.methods.base import Group, Phase
from trainables.training.optim import WAYS, lr_at, make_optimizer, phase_optimizer, set_lr


@pytest.fixture
def model() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))


def test_norms_and_biases_are_not_decayed(model: nn.Module) -> None:
    decayed, plain = make_optimizer(model, 0.1, 0.9, 5e-4).param_groups
    assert [tuple(p.shape) for p in decayed["params"]] == [(4, 3, 3, 3), (2, 4)]
    assert [tuple(p.shape) for p in plain["params"]] == [(4,), (4,), (4,), (2,)]
    assert (decayed["weight_decay"], plain["weight_decay"]) == (5e-4, 0.0)
    assert decayed["nesterov"] and decayed["momentum"] == 0.9


def test_frozen_parameters_are_left_out_and_named_pairs_work(model: nn.Module) -> None:
    model[0].requires_grad_(False)
    decayed, plain = make_optimizer(model.named_parameters(), 0.1, 0.0, 5e-4).param_groups
    assert len(decayed["params"]) == 1 and len(plain["params"]) == 3
    assert not decayed["nesterov"]  # SGD refuses Nesterov without momentum


def test_decay_shrinks_matrices_alone(model: nn.Module) -> None:
    optimizer = make_optimizer(model, lr=0.1, momentum=0.0, weight_decay=0.5)
    before = [p.detach().clone() for p in model.parameters()]
    for param in model.parameters():
        param.grad = torch.zeros_like(param)
    optimizer.step()
    for old, new in zip(before, model.parameters(), strict=True):
        torch.testing.assert_close(new.detach(), old * (0.95 if old.ndim > 1 else 1.0))


def test_schedule_closed_form() -> None:
    rates = [lr_at(step, total_steps=14, warmup_steps=4, peak=1.0) for step in range(15)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates[9] == pytest.approx(0.5)
    assert rates[13] == pytest.approx(0.5 * (1 + math.cos(math.pi * 0.9)))
    assert rates[14] == pytest.approx(0.0, abs=1e-12)
    assert rates[4:] == sorted(rates[4:], reverse=True)


@pytest.mark.parametrize(("total", "warmup"), [(1, 0), (1, 5), (3, 100), (2, 2)])
def test_schedule_never_leaves_zero_to_peak(total: int, warmup: int) -> None:
    rates = [lr_at(step, total, warmup, 0.3) for step in range(total)]
    assert all(0.0 < rate <= 0.3 for rate in rates)
    assert rates[-1] == pytest.approx(0.3) if warmup >= total - 1 else True


def test_set_lr_scales_groups(model: nn.Module) -> None:
    optimizer = make_optimizer(model, 0.1, 0.9, 0.0)
    optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(2))], "lr_scale": 0.5})
    set_lr(optimizer, 0.02)
    assert [group["lr"] for group in optimizer.param_groups] == [0.02, 0.02, 0.01]


@pytest.mark.parametrize("walk", WAYS)
def test_a_phase_with_adam_keeps_its_rate_through_the_schedule(model: nn.Module, walk: str) -> None:
    convolution, linear = (list(model[index].named_parameters()) for index in (0, 3))
    groups = [Group(convolution, decay=False), Group(linear, lr_scale=3.0)]
    optimizer = phase_optimizer(Phase("judge", groups, adam=1e-3), 0.1, 0.9, 5e-4, walk)
    assert isinstance(optimizer, torch.optim.Adam)
    set_lr(optimizer, 7.0)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([1e-3, 3e-3, 3e-3])
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.0, 5e-4, 0.0]
    before = [parameter.detach().clone() for _, parameter in convolution]
    for _, parameter in convolution:
        parameter.grad = torch.full_like(parameter, 5.0)
    optimizer.step()
    for old, (_, new) in zip(before, convolution, strict=True):  # Adam's first step has the size of its rate
        torch.testing.assert_close(old - new.detach(), torch.full_like(old, 1e-3), rtol=1e-3, atol=0)
