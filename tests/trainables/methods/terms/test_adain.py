"""Channel statistics, and what a network answers to maps that carry another network's."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from trainables.methods.terms.adain import (
    EPSILON,
    Statistics,
    channel_statistics,
    channels_first,
    reaction,
    statistics_error,
    with_statistics,
)
from trainables.methods.terms.logits import logit_loss

SHAPES = {"nchw": (3, 4, 5, 2), "nhwc": (3, 5, 2, 4), "tokens": (3, 10, 4)}


def drawn(layout: str, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    student, teacher = torch.randn(
        2, *SHAPES[layout], generator=torch.Generator().manual_seed(4), dtype=torch.float64
    )
    return (2 * student + 1).to(dtype), teacher.to(dtype)


@pytest.mark.parametrize("layout", SHAPES)
def test_statistics_are_of_an_images_channels(layout: str) -> None:
    x, _ = drawn(layout)
    found = channel_statistics(x, layout)
    for image in range(3):
        for channel in range(4):
            values = (x[image, channel] if layout == "nchw" else x[image, ..., channel]).flatten()
            assert len(values) == 10
            assert found.mean[image, channel].item() == pytest.approx(values.mean().item())
            variance = (values - values.mean()).square().mean() + EPSILON
            assert found.std[image, channel].item() == pytest.approx(variance.sqrt().item())


@pytest.mark.parametrize("layout", SHAPES)
def test_energy_is_the_squared_norm_of_the_map(layout: str) -> None:
    x, _ = drawn(layout)
    assert channel_statistics(x, layout).energy.item() == pytest.approx(
        x.square().sum().item() / 10 + 12 * EPSILON
    )


@pytest.mark.parametrize("layout", SHAPES)
def test_a_map_takes_over_the_statistics(layout: str) -> None:
    student, teacher = drawn(layout)
    ours, theirs = (channel_statistics(each, layout) for each in (student, teacher))
    moved = with_statistics(teacher, theirs, ours, layout)
    assert moved.shape == teacher.shape
    found = channel_statistics(moved, layout)
    assert torch.allclose(found.mean, ours.mean)
    assert torch.allclose(found.std, ours.std, rtol=1e-4)
    # The pattern stays the teacher's: every channel is a stretched and shifted copy.
    a, b = (channels_first(each, layout) for each in (moved, teacher))
    expected = (b - theirs.mean[..., None]) / theirs.std[..., None] * ours.std[..., None] + ours.mean[
        ..., None
    ]
    assert torch.allclose(a, expected)


@pytest.mark.parametrize("layout", SHAPES)
def test_a_map_keeps_its_own_statistics(layout: str) -> None:
    _, teacher = drawn(layout)
    own = channel_statistics(teacher, layout)
    assert torch.allclose(with_statistics(teacher, own, own, layout), teacher)


def test_gradients_reach_the_student_alone_and_equal_finite_differences() -> None:
    student, teacher = drawn("nchw")
    with torch.inference_mode():
        fixed = teacher * 1
    weight = torch.randn(4, 6, dtype=torch.float64)

    def answer(x: Tensor) -> Tensor:
        moved = with_statistics(fixed, channel_statistics(fixed), channel_statistics(x))
        return reaction(moved.tanh().mean((2, 3)) @ weight, torch.ones(3, 6, dtype=torch.float64), "mse", 1.0)

    assert torch.autograd.gradcheck(answer, student.requires_grad_())


def test_statistics_error_equals_finite_differences() -> None:
    student, teacher = drawn("tokens")

    def error(x: Tensor) -> Tensor:
        return statistics_error(channel_statistics(x), channel_statistics(teacher))

    assert torch.autograd.gradcheck(error, student.requires_grad_())


def test_at_the_last_map_the_answer_is_that_to_the_students_means() -> None:
    student, teacher = drawn("nchw")
    head = nn.Linear(4, 7, dtype=torch.float64)
    ours = channel_statistics(student.requires_grad_())
    moved = with_statistics(teacher, channel_statistics(teacher), ours)
    answer = head(moved.mean((2, 3)))
    assert torch.allclose(answer, head(student.mean((2, 3))), rtol=0, atol=1e-12)
    # So the standard deviations teach nothing there.
    other = Statistics(ours.mean, ours.std * 5)
    assert torch.allclose(
        head(with_statistics(teacher, channel_statistics(teacher), other).mean((2, 3))), answer
    )


def test_reactions_are_the_mean_square_or_the_divergence() -> None:
    answer, logits = torch.randn(2, 5, 3)
    assert reaction(answer, logits, "mse", 4.0).item() == pytest.approx(
        (answer - logits).square().mean().item()
    )
    assert reaction(answer, logits, "kl", 4.0).item() == logit_loss(answer, logits, 4.0).item()
    assert reaction(logits, logits, "mse", 4.0).item() == reaction(logits, logits, "kl", 4.0).item() == 0.0


@pytest.mark.parametrize("shape", [(2, 3, 1, 1), (2, 1, 3), (2, 3)])
def test_one_position_has_no_deviation_and_moves_by_the_mean(shape: tuple[int, ...]) -> None:
    student, teacher = torch.randn(2, *shape)
    student.requires_grad_()
    ours, theirs = channel_statistics(student), channel_statistics(teacher)
    assert ours.std.detach().flatten().tolist() == pytest.approx([EPSILON**0.5] * 6)
    moved = with_statistics(teacher, theirs, ours)
    assert torch.allclose(moved, student)
    moved.square().sum().backward()
    assert student.grad.isfinite().all()


def test_dead_channels_and_half_precision_stay_finite() -> None:
    student, teacher = (300 * each for each in drawn("nchw", torch.float16))
    student[:, 0], teacher[:, 0] = 0.0, 0.0
    student.requires_grad_()
    ours, theirs = channel_statistics(student), channel_statistics(teacher)
    assert ours.mean.dtype == ours.std.dtype == torch.float32
    moved = with_statistics(teacher, theirs, ours)
    assert moved.dtype == torch.float16 and moved.isfinite().all()
    (moved.float().square().mean() + statistics_error(ours, theirs)).backward()
    assert student.grad.isfinite().all()
