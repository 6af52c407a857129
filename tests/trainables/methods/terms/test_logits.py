"""Logit terms against slow references in float64, another implementation, and their closed forms."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from trainables.errors import InputError
from trainables.loss_config import LogitTerm
from trainables.methods.terms.logits import (
    CORRELATION,
    LOGIT_TERMS,
    STANDARDISED,
    decoupled,
    dist,
    dkd,
    logit_loss,
    ramp,
    standardised,
)

ABSENT = "torchdistill is not installed (extra bench)"
IMAGES, CLASSES = 6, 5


def drawn(dtype: torch.dtype = torch.float32, scale: float = 2.0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    student, teacher = (
        torch.randn(IMAGES, CLASSES, generator=generator, dtype=torch.float64) * scale for _ in "st"
    )
    return student.to(dtype), teacher.to(dtype), torch.tensor([0, 1, 2, 3, 4, 0])


def softmax(row: list[float], tau: float) -> list[float]:
    powers = [math.exp(value / tau) for value in row]
    return [power / sum(powers) for power in powers]


def divergence(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def slow_kl(student: list[float], teacher: list[float], label: int, tau: float) -> float:
    return tau**2 * divergence(softmax(teacher, tau), softmax(student, tau))


def slow_dkd(student: list[float], teacher: list[float], label: int, tau: float) -> float:
    ours, theirs = softmax(student, tau)[label], softmax(teacher, tau)[label]
    target = divergence([theirs, 1 - theirs], [ours, 1 - ours])
    rest = [[value for k, value in enumerate(row) if k != label] for row in (student, teacher)]
    return tau**2 * (target + 8 * divergence(softmax(rest[1], tau), softmax(rest[0], tau)))


def slow_standardised(student: list[float], teacher: list[float], label: int, tau: float) -> float:
    def standard(row: list[float]) -> list[float]:
        mean = sum(row) / len(row)
        deviation = math.sqrt(sum((value - mean) ** 2 for value in row) / (len(row) - 1))
        return [(value - mean) / (deviation + 1e-7) for value in row]

    return 10 * slow_kl(standard(student), standard(teacher), label, tau)


def pearson(a: list[float], b: list[float]) -> float:
    mean_a, mean_b = sum(a) / len(a), sum(b) / len(b)
    together = sum((x - mean_a) * (y - mean_b) for x, y in zip(a, b, strict=True))
    return together / math.sqrt(sum((x - mean_a) ** 2 for x in a) * sum((y - mean_b) ** 2 for y in b))


def by_image(slow: Callable[[list[float], list[float], int, float], float]) -> Callable[..., float]:
    def mean(student: Tensor, teacher: Tensor, labels: Tensor, tau: float) -> float:
        rows = zip(student.tolist(), teacher.tolist(), labels.tolist(), strict=True)
        return sum(slow(ours, theirs, label, tau) for ours, theirs, label in rows) / len(labels)

    return mean


def slow_dist(student: Tensor, teacher: Tensor, labels: Tensor, tau: float) -> float:
    ours, theirs = ([softmax(row, tau) for row in each.tolist()] for each in (student, teacher))
    inter = sum(map(pearson, ours, theirs)) / len(ours)
    columns = [list(zip(*rows, strict=True)) for rows in (ours, theirs)]
    intra = sum(pearson(list(a), list(b)) for a, b in zip(*columns, strict=True)) / len(columns[0])
    return 2 * tau**2 * ((1 - inter) + (1 - intra))


SLOW = {
    "kl": by_image(slow_kl),
    "dkd": by_image(slow_dkd),
    "standardised": by_image(slow_standardised),
    "dist": slow_dist,
}


@pytest.mark.parametrize("tau", [1.0, 4.0])
@pytest.mark.parametrize("name", LOGIT_TERMS)
def test_every_term_equals_its_formula(name: str, tau: float) -> None:
    student, teacher, labels = drawn()
    expected = SLOW[name](student.double(), teacher.double(), labels, tau)
    assert expected > 0.01
    assert LOGIT_TERMS[name](student, teacher, labels, tau).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", LOGIT_TERMS)
def test_equal_logits_give_zero_and_constants_do_not_matter(name: str) -> None:
    student, teacher, labels = drawn(torch.float64)
    term = LOGIT_TERMS[name]
    assert term(teacher, teacher + 3.0, labels, 2.0).item() == pytest.approx(0.0, abs=1e-12)
    moved = term(student - torch.arange(6.0)[:, None], teacher + 7.0, labels, 2.0).item()
    assert moved == pytest.approx(term(student, teacher, labels, 2.0).item(), rel=1e-9)


@pytest.mark.parametrize("name", LOGIT_TERMS)
def test_gradients_equal_finite_differences(name: str) -> None:
    student, teacher, labels = drawn(torch.float64)
    term = LOGIT_TERMS[name]
    assert torch.autograd.gradcheck(lambda s: term(s, teacher, labels, 2.0), student.requires_grad_())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", LOGIT_TERMS)
def test_half_precision_is_computed_in_fp32(name: str, dtype: torch.dtype) -> None:
    student, teacher, labels = drawn(dtype, scale=8.0)  # beyond fp16's range once exponentiated
    student.requires_grad_()
    value = LOGIT_TERMS[name](student, teacher, labels, 1.0)
    exact = LOGIT_TERMS[name](student.detach().double(), teacher.double(), labels, 1.0)
    assert value.dtype == torch.float32 and value.ndim == 0
    assert value.item() == pytest.approx(exact.item(), rel=1e-4)
    value.backward()
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("name", LOGIT_TERMS)
def test_teacher_logits_of_inference_mode_can_be_learned_from(name: str) -> None:
    student, teacher, labels = drawn()
    with torch.inference_mode():
        teacher = teacher * 1
    LOGIT_TERMS[name](student.requires_grad_(), teacher, labels, 2.0).backward()
    assert student.grad.abs().sum() > 0


@pytest.mark.parametrize("constant", [0.0, 0.3, 1e4])
@pytest.mark.parametrize("name", LOGIT_TERMS)
def test_a_classifier_that_answers_the_same_for_every_class_has_moderate_gradients(
    name: str, constant: float
) -> None:
    _, teacher, labels = drawn()
    student = torch.full((IMAGES, CLASSES), constant, requires_grad=True)
    value = LOGIT_TERMS[name](student, teacher, labels, 2.0)
    value.backward()
    assert value.isfinite() and student.grad.abs().max() < 100


def test_logits_are_decoupled_into_their_divergence() -> None:
    student, teacher, labels = drawn(torch.float64)
    for image in range(IMAGES):
        ours, theirs, label = (
            student[image : image + 1],
            teacher[image : image + 1],
            labels[image : image + 1],
        )
        target, others = decoupled(ours, theirs, label, 3.0)
        right = (theirs / 3.0).softmax(1)[0, label]
        whole = logit_loss(ours, theirs, 3.0)
        assert (target + (1 - right) * others).item() == pytest.approx(whole.item(), abs=1e-9)
    # It is the image's own class that is set apart: another label gives another value.
    assert dkd(student, teacher, labels, 3.0) != dkd(student, teacher, (labels + 1) % CLASSES, 3.0)


def test_a_certain_teacher_leaves_the_other_classes_their_divergence() -> None:
    student, teacher, labels = drawn()
    teacher[torch.arange(IMAGES), labels] = 500.0  # 1 - p is zero in fp32
    target, others = decoupled(student, teacher, labels, 1.0)
    assert target.isfinite() and others.item() > 0.1


def test_standardised_logits_have_neither_scale_nor_shift() -> None:
    student, teacher, labels = drawn(torch.float64)
    expected = standardised(student, teacher, labels, 2.0).item()
    assert standardised(5 * student + 2, teacher, labels, 2.0).item() == pytest.approx(expected, rel=1e-5)
    assert standardised(student, 0.1 * teacher - 3, labels, 2.0).item() == pytest.approx(expected, rel=1e-5)
    assert logit_loss(5 * student, teacher, 2.0).item() != pytest.approx(expected, rel=0.1)


def test_dist_ignores_the_scale_of_probabilities_and_takes_one_image() -> None:
    student, teacher, labels = drawn()
    alone = dist(student[:1].requires_grad_(), teacher[:1], labels[:1], 1.0)
    # One image: its classes correlate, and the correlation over images is none.
    p, q = ((each[0]).softmax(0).tolist() for each in (student, teacher))
    assert alone.item() == pytest.approx(2 * (2 - pearson(p, q)), rel=1e-5)


def test_only_dkd_warms_up() -> None:
    assert [ramp("dkd", done) for done in (0.0, 1 / 24, 1 / 12, 1.0)] == pytest.approx([0.0, 0.5, 1.0, 1.0])
    assert {ramp(name, 0.0) for name in LOGIT_TERMS if name != "dkd"} == {1.0}


def test_terms_that_say_nothing_are_refused() -> None:
    with pytest.raises(InputError, match=r"dkd .* needs 3 or more; the data have 2.*Use kl"):
        LogitTerm(logits="dkd").check(classes=2, batch_size=64)
    with pytest.raises(InputError, match=r"dist .* optim.batch_size >= 32, got 31"):
        LogitTerm(logits="dist").check(classes=10, batch_size=31)
    for name in LOGIT_TERMS:
        LogitTerm(logits=name).check(classes=3, batch_size=32)
    LogitTerm(logits="dist", alpha=0.0).check(classes=10, batch_size=1)
    for name in ("kl", "standardised"):
        LogitTerm(logits=name).check(classes=2, batch_size=1)


def torchdistill_loss(name: str, *args: Any, **settings: Any) -> Callable[[Tensor, Tensor], float]:
    losses = pytest.importorskip("torchdistill.losses.mid_level", reason=ABSENT)
    loss = getattr(losses, name)("head", "output", "head", "output", **settings)

    def value(student: Tensor, teacher: Tensor) -> float:
        found: Tensor = loss({"head": {"output": student}}, {"head": {"output": teacher}})
        return found.item()

    return value


@pytest.mark.parametrize("seed", range(3))
def test_standardised_equals_torchdistill(seed: int) -> None:
    theirs = torchdistill_loss("LogitStdKDLoss", temperature=2.0, alpha=0.0)
    student, teacher = torch.randn(2, 16, 10, generator=torch.Generator().manual_seed(seed)) * 4
    expected = STANDARDISED * 2.0**2 * theirs(student, teacher)  # its soft part alone, without τ²
    assert standardised(student, teacher, torch.zeros(16).long(), 2.0).item() == pytest.approx(
        expected, rel=1e-5
    )


@pytest.mark.parametrize("seed", range(3))
def test_dist_equals_torchdistill(seed: int) -> None:
    theirs = torchdistill_loss("DISTLoss", beta=1.0, gamma=1.0, tau=3.0)
    student, teacher = torch.randn(2, 32, 10, generator=torch.Generator().manual_seed(seed)) * 4
    expected = CORRELATION * theirs(student, teacher)
    assert dist(student, teacher, torch.zeros(32).long(), 3.0).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_kl_equals_torchdistill(seed: int) -> None:
    theirs = torchdistill_loss("KDLoss", temperature=4.0, alpha=0.0)
    student, teacher = torch.randn(2, 16, 10, generator=torch.Generator().manual_seed(seed)) * 4
    expected = 4.0**2 * theirs(student, teacher)
    assert logit_loss(student, teacher, 4.0).item() == pytest.approx(expected, rel=1e-5)
