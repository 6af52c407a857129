"""Map terms against slow references in float64, another implementation, and their closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from trainables.methods.terms.maps import ATTENTION, MAP_TERMS, attention, relative_error, statistics

ABSENT = "torchdistill is not installed (extra bench)"
SHAPES = {"nchw": (3, 4, 5, 2), "nhwc": (3, 5, 2, 4), "tokens": (3, 6, 4)}
NEW = ("attention", "statistics")


def drawn(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    student, teacher = torch.randn(2, *shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return student.to(dtype), teacher.to(dtype)


def channels(image: Tensor, layout: str) -> list[list[float]]:
    """The values of every channel of one image, position by position."""
    if layout == "nchw":
        return [channel.flatten().tolist() for channel in image]
    return [[position[c] for position in image.flatten(0, -2).tolist()] for c in range(image.shape[-1])]


def slow_attention(student: Tensor, teacher: Tensor, layout: str) -> float:
    def attended(image: Tensor) -> list[float]:
        rows = channels(image, layout)
        means = [sum(row[i] ** 2 for row in rows) / len(rows) for i in range(len(rows[0]))]
        norm = math.sqrt(sum(mean**2 for mean in means))
        return [mean / norm for mean in means]

    gaps = [
        (a - b) ** 2
        for ours, theirs in zip(student, teacher, strict=True)
        for a, b in zip(attended(ours), attended(theirs), strict=True)
    ]
    return 1000 * sum(gaps) / len(gaps)


def slow_statistics(student: Tensor, teacher: Tensor, layout: str) -> float:
    def pair(values: list[float]) -> tuple[float, float]:
        mean = sum(values) / len(values)
        return mean, math.sqrt(sum((value - mean) ** 2 for value in values) / len(values) + 1e-5)

    above = below = 0.0
    for ours, theirs in zip(student, teacher, strict=True):
        for a, b in zip(channels(ours, layout), channels(theirs, layout), strict=True):
            (mean_s, std_s), (mean_t, std_t) = pair(a), pair(b)
            above += (mean_s - mean_t) ** 2 + (std_s - std_t) ** 2
            below += mean_t**2 + std_t**2
    return above / below


SLOW = {"attention": slow_attention, "statistics": slow_statistics}


@pytest.mark.parametrize("layout", SHAPES)
@pytest.mark.parametrize("name", NEW)
def test_new_terms_equal_their_formulas_in_every_layout(name: str, layout: str) -> None:
    student, teacher = drawn(SHAPES[layout])
    expected = SLOW[name](student.double(), teacher.double(), layout)
    assert expected > 0.01
    assert MAP_TERMS[name](student, teacher, layout).item() == pytest.approx(expected, rel=1e-5)


def test_layouts_are_known_by_the_number_of_axes() -> None:
    for layout in ("nchw", "tokens"):
        student, teacher = drawn(SHAPES[layout])
        for term in MAP_TERMS.values():
            assert term(student, teacher, None) == term(student, teacher, layout)


@pytest.mark.parametrize("layout", SHAPES)
@pytest.mark.parametrize("name", MAP_TERMS)
def test_equal_maps_give_zero(name: str, layout: str) -> None:
    _, teacher = drawn(SHAPES[layout])
    assert MAP_TERMS[name](teacher, teacher, layout).item() == 0.0


@pytest.mark.parametrize("layout", SHAPES)
@pytest.mark.parametrize("name", NEW)
def test_gradients_equal_finite_differences(name: str, layout: str) -> None:
    student, teacher = drawn(SHAPES[layout], torch.float64)
    assert torch.autograd.gradcheck(lambda s: MAP_TERMS[name](s, teacher, layout), student.requires_grad_())


@pytest.mark.parametrize("name", MAP_TERMS)
def test_maps_of_half_precision_are_scored_in_fp32(name: str) -> None:
    student, teacher = (300 * each for each in drawn((3, 4, 16, 16), torch.float16))  # squares overflow
    student.requires_grad_()
    value = MAP_TERMS[name](student, teacher, "nchw")
    exact = MAP_TERMS[name](student.detach().float(), teacher.float(), "nchw")
    assert value.dtype == torch.float32 and value.ndim == 0
    assert value.item() == pytest.approx(exact.item(), rel=2e-3)
    value.backward()
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("name", MAP_TERMS)
def test_maps_of_zeros_have_finite_values_and_gradients(name: str) -> None:
    student, teacher = drawn((3, 4, 5, 2))
    student[1], teacher[2, 1] = 0.0, 0.0
    for target in (teacher, torch.zeros_like(teacher)):
        ours = student.clone().requires_grad_()
        value = MAP_TERMS[name](ours, target, "nchw")
        value.backward()
        assert value.isfinite() and value < 1000 and ours.grad.isfinite().all()


def test_statistics_of_a_teacher_map_of_zeros_are_a_mean_square() -> None:
    ones = torch.ones(2, 3, 4, 4)
    assert statistics(3 * ones, 0 * ones).item() == pytest.approx(9.0, rel=1e-4)
    assert relative_error(3 * ones, 0 * ones).item() == pytest.approx(9.0)


@pytest.mark.parametrize("name", MAP_TERMS)
def test_teacher_maps_of_inference_mode_can_be_learned_from(name: str) -> None:
    student, teacher = drawn(SHAPES["nchw"])
    with torch.inference_mode():
        teacher = teacher * 1
    MAP_TERMS[name](student.requires_grad_(), teacher, "nchw").backward()
    assert student.grad.abs().sum() > 0


@pytest.mark.parametrize("layout", SHAPES)
def test_statistics_are_a_relaxation_of_the_relative_error(layout: str) -> None:
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        student, teacher = torch.randn(2, *SHAPES[layout], generator=generator)
        teacher = teacher * 10.0 ** (seed % 5 - 2)
        assert statistics(student, teacher, layout) <= relative_error(student, teacher) * (1 + 1e-5)


def test_attention_has_no_scale_and_takes_other_widths() -> None:
    student, teacher = drawn(SHAPES["nchw"])
    assert attention(7 * student, 0.1 * teacher).item() == pytest.approx(
        attention(student, teacher).item(), rel=1e-5
    )
    narrow = student[:, :1]
    assert attention(narrow, teacher) > 0
    assert attention(narrow.repeat(1, 3, 1, 1), teacher).item() == pytest.approx(
        attention(narrow, teacher).item()
    )


@pytest.mark.parametrize("seed", range(3))
def test_attention_equals_torchdistill(seed: int) -> None:
    losses = pytest.importorskip("torchdistill.losses.mid_level", reason=ABSENT)
    place = {"io": "output", "path": "map"}
    loss = losses.ATLoss({"pair": {"teacher": place, "student": place, "weight": ATTENTION}}, mode="code")
    student, teacher = torch.randn(2, 8, 6, 7, 7, generator=torch.Generator().manual_seed(seed))
    expected = loss({"map": {"output": student}}, {"map": {"output": teacher}})
    assert attention(student, teacher).item() == pytest.approx(expected.item(), rel=1e-5)
