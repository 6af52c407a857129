"""AMA modules: shapes, sizes and starting points."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from trainables.student.ama_module import (
    SMALL,
    MapAdaptation,
    TokenAdaptation,
    hidden_channels,
    make_module,
    strides,
)

ENDS = ["relu", "relu6", "silu", "hardswish", "gelu", "none"]


@pytest.mark.parametrize(
    ("width", "c_out", "hidden"),
    [
        (0.25, 64, 16),
        (0.5, 64, 32),
        (0.125, 16, 8),
        (0.25, 20, 8),
        (0.3, 64, 16),
        (0.32, 64, 24),
        (1.0, 3, 8),
    ],
)
def test_hidden_channels_are_the_nearest_multiple_of_eight(width: float, c_out: int, hidden: int) -> None:
    assert hidden_channels(width, c_out) == hidden


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ((32, 32), (32, 32), (1, 1)),
        ((32, 32), (16, 16), (2, 2)),
        ((7, 7), (4, 4), (2, 2)),
        ((7, 7), (3, 3), (3, 3)),
        ((8, 6), (4, 6), (2, 1)),
        ((32, 32), (8, 8), None),
        ((7, 7), (5, 5), None),
        ((4, 4), (8, 8), None),
    ],
)
def test_stride_reproduces_the_size_or_there_is_none(
    before: tuple[int, int], after: tuple[int, int], expected: tuple[int, int] | None
) -> None:
    assert strides(before, after) == expected
    if expected:
        out = nn.Conv2d(1, 1, 3, expected, padding=1)(torch.zeros(1, 1, *before))
        assert tuple(out.shape[2:]) == after


side = st.integers(1, 9)
channels = st.integers(1, 20)


@settings(max_examples=60, deadline=None)
@given(channels, channels, side, side, side, side, st.sampled_from(ENDS), st.sampled_from(["nchw", "nhwc"]))
def test_any_map_becomes_any_map(
    c: int, c_out: int, h: int, w: int, h_out: int, w_out: int, ends: str, layout: str
) -> None:
    before, after = (
        ((c, h, w), (c_out, h_out, w_out)) if layout == "nchw" else ((h, w, c), (h_out, w_out, c_out))
    )
    module = make_module(before, after, 0.5, layout, ends)
    out = module.eval()(torch.randn(2, *before))
    assert tuple(out.shape) == (2, *after) and out.is_contiguous() and out.isfinite().all()
    if ends in ("relu", "relu6"):
        assert out.min() >= 0
    out.sum().backward()
    assert all(p.grad is not None for p in module.parameters())


@settings(max_examples=30, deadline=None)
@given(channels, channels, side, side, st.sampled_from(ENDS))
def test_any_tokens_become_any_tokens(d: int, d_out: int, length: int, length_out: int, ends: str) -> None:
    module = make_module((length, d), (length_out, d_out), 0.25, "tokens", ends)
    out = module(torch.randn(3, length, d))
    assert tuple(out.shape) == (3, length_out, d_out)
    out.sum().backward()
    assert all(p.grad is not None for p in module.parameters())


def test_size_in_closed_form() -> None:
    module = make_module((64, 8, 8), (128, 4, 4), 0.25, "nchw", "relu")
    convs = 64 * 32 + 9 * 32 * 32 + 32 * 128 + 64 * 128
    norms = 2 * (32 + 32 + 128 + 128)
    assert sum(p.numel() for p in module.parameters()) == convs + norms
    same = make_module((64, 8, 8), (64, 8, 8), 0.25)
    assert sum(p.numel() for p in same.parameters()) == 64 * 16 * 2 + 9 * 16 * 16 + 2 * (16 + 16 + 64)
    tokens = make_module((5, 32), (5, 32), 0.5, "tokens")
    assert sum(p.numel() for p in tokens.parameters()) == 2 * 32 + (32 * 16 + 16) + (16 * 32 + 32)


def test_shape_keeping_module_starts_near_its_input() -> None:
    x = torch.randn(8, 16, 6, 6).relu()
    module = make_module((16, 6, 6), (16, 6, 6), 1.0, "nchw", "relu")
    difference = module(x) - x
    assert 0 < difference.abs().mean() < 2 * SMALL
    tokens = torch.randn(8, 5, 16)
    module = make_module((5, 16), (5, 16), 1.0, "tokens")
    difference = module(tokens) - tokens
    assert 0 < difference.abs().mean() < 2 * SMALL


def test_projecting_module_starts_with_both_branches_at_full_size() -> None:
    module = make_module((16, 6, 6), (32, 3, 3), 1.0)
    assert isinstance(module, MapAdaptation)
    x = torch.randn(64, 16, 6, 6)
    branch = module.expand(module.spatial(module.reduce(x)))
    assert branch.std().item() == pytest.approx(1.0, rel=0.05)
    assert module.shortcut(x).std().item() == pytest.approx(1.0, rel=0.05)


def test_channel_that_was_dead_can_come_alive() -> None:
    # Where the input map is all zero, an identity shortcut with a zero branch would give a zero under the
    # final ReLU and no gradient, so the module could never learn a positive output there.
    torch.manual_seed(0)
    module = make_module((8, 4, 4), (8, 4, 4), 1.0, "nchw", "relu")
    x = torch.rand(16, 8, 4, 4)
    x[:, 3] = 0
    module(x)[:, 3].sum().backward()
    weight = module.get_parameter("expand.1.weight")
    assert weight.grad is not None and weight.grad[3] != 0


def test_channels_last_is_the_same_module_between_permutations() -> None:
    torch.manual_seed(0)
    maps = make_module((6, 4, 5), (9, 2, 5), 1.0, "nchw", "gelu").eval()
    torch.manual_seed(0)
    last = make_module((4, 5, 6), (2, 5, 9), 1.0, "nhwc", "gelu").eval()
    x = torch.randn(2, 6, 4, 5)
    assert torch.equal(last(x.permute(0, 2, 3, 1)), maps(x).permute(0, 2, 3, 1))


def test_tokens_do_not_mix() -> None:
    module = make_module((4, 8), (4, 8), 1.0, "tokens")
    x = torch.randn(1, 4, 8)
    y = x.clone()
    y[:, 2] += 1
    changed = (module(x) != module(y)).any(-1)[0]
    assert changed.tolist() == [False, False, True, False]


@pytest.mark.parametrize(("ends", "inner"), [("silu", nn.SiLU), ("relu6", nn.ReLU), ("none", nn.ReLU)])
def test_inner_activation(ends: str, inner: type[nn.Module]) -> None:
    module = make_module((8, 4, 4), (8, 4, 4), 1.0, "nchw", ends)
    assert isinstance(module.get_submodule("reduce.2"), inner)


def test_flags_of_the_replaced_block_are_ignored() -> None:
    x = torch.randn(2, 5, 8)
    module = make_module((5, 8), (5, 8), 1.0, "tokens")
    assert isinstance(module, TokenAdaptation)
    assert torch.equal(module(x, None, is_causal=False), module(x))


@pytest.mark.parametrize("layout", ["nchw", "nhwc", "tokens"])
def test_same_generator_state_same_weights(layout: str) -> None:
    shape = (8, 8) if layout == "tokens" else (8, 8, 8)
    made = []
    for _ in range(2):
        torch.manual_seed(3)
        made.append(make_module(shape, shape, 0.5, layout).state_dict())
    assert all(torch.equal(made[0][key], made[1][key]) for key in made[0])


def test_learns_a_residual_block() -> None:
    """A few steps of regression onto a block's map get well below what passing the input on achieves."""
    torch.manual_seed(0)
    branch = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8))
    x = torch.randn(32, 8, 6, 6).relu()
    target = (branch(x) + x).relu().detach()
    module = make_module((8, 6, 6), (8, 6, 6), 1.0, "nchw", "relu")
    optimizer = torch.optim.SGD(module.parameters(), 0.1, momentum=0.9)
    errors = []
    for _ in range(200):
        loss = (module(x) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        errors.append(loss.item())
    assert errors[0] < 1.2 * (x - target).square().mean()
    assert errors[-1] < 0.6 * errors[0]
