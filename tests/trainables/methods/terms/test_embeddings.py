"""Embedding terms against slow references in float64, another implementation, and their limits."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from trainables.methods.terms.embeddings import ANGLES, DISTANCES, EMBEDDING_TERMS, SIMILARITIES, pkt, rkd

ABSENT = "torchdistill is not installed (extra bench)"


def drawn(images: int = 5, dtype: torch.dtype = torch.float32, seed: int = 3) -> tuple[Tensor, Tensor]:
    """A student's embeddings (B, 3) and a teacher's (B, 4)."""
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (torch.randn(images, d, generator=generator, dtype=torch.float64) for d in (3, 4))
    return student.to(dtype), teacher.to(dtype)


def smooth(x: float) -> float:
    return 0.5 * x * x if abs(x) < 1 else abs(x) - 0.5


def slow_rkd(student: list[list[float]], teacher: list[list[float]]) -> float:
    count = range(len(student))

    def distances(rows: list[list[float]]) -> list[float]:
        found = [math.dist(rows[i], rows[j]) for i in count for j in count]
        mean = sum(found) / (len(rows) * (len(rows) - 1))
        return [distance / mean for distance in found]

    def angles(rows: list[list[float]]) -> list[float]:
        found = []
        for i in count:
            for j in count:
                for k in count:
                    a, b = ([x - y for x, y in zip(rows[n], rows[i], strict=True)] for n in (j, k))
                    size = math.hypot(*a) * math.hypot(*b)
                    found.append(sum(x * y for x, y in zip(a, b, strict=True)) / size if size else 0.0)
        return found

    def compared(ours: list[float], theirs: list[float]) -> float:
        return sum(smooth(a - b) for a, b in zip(ours, theirs, strict=True)) / len(ours)

    near = compared(distances(student), distances(teacher))
    return 25 * near + 50 * compared(angles(student), angles(teacher))


def slow_pkt(student: list[list[float]], teacher: list[list[float]]) -> float:
    def shares(rows: list[list[float]]) -> list[float]:
        found = []
        for a in rows:
            row = [sum(x * y for x, y in zip(a, b)) / math.hypot(*a) / math.hypot(*b) for b in rows]
            scaled = [(each + 1) / 2 for each in row]
            found += [each / sum(scaled) for each in scaled]
        return found

    pairs = list(zip(shares(teacher), shares(student), strict=True))
    return 30000 * sum(p * math.log((p + 1e-7) / (q + 1e-7)) for p, q in pairs) / len(pairs)


SLOW = {"rkd": slow_rkd, "pkt": slow_pkt}


@pytest.mark.parametrize("name", EMBEDDING_TERMS)
def test_every_term_equals_its_formula(name: str) -> None:
    student, teacher = drawn()
    expected = SLOW[name](student.tolist(), teacher.tolist())
    assert expected > 1
    assert EMBEDDING_TERMS[name](student, teacher).item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("name", EMBEDDING_TERMS)
def test_equal_embeddings_give_zero_and_scale_and_rotation_do_not_matter(name: str) -> None:
    _, teacher = drawn(dtype=torch.float64)
    turned = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64))[0]
    assert EMBEDDING_TERMS[name](teacher, teacher).item() == pytest.approx(0.0, abs=1e-12)
    assert EMBEDDING_TERMS[name](3 * teacher @ turned, teacher).item() == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("name", EMBEDDING_TERMS)
def test_gradients_equal_finite_differences(name: str) -> None:
    student, teacher = drawn(dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda s: EMBEDDING_TERMS[name](s, teacher), student.requires_grad_())


@pytest.mark.parametrize("name", EMBEDDING_TERMS)
def test_half_precision_is_computed_in_fp32(name: str) -> None:
    student, teacher = (300 * each.half() for each in drawn())  # squares overflow
    student.requires_grad_()
    value = EMBEDDING_TERMS[name](student, teacher)
    exact = EMBEDDING_TERMS[name](student.detach().double(), teacher.double())
    assert value.dtype == torch.float32 and value.ndim == 0
    assert value.item() == pytest.approx(exact.item(), rel=1e-4)
    value.backward()
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("name", EMBEDDING_TERMS)
def test_teacher_embeddings_of_inference_mode_can_be_learned_from(name: str) -> None:
    student, teacher = drawn()
    with torch.inference_mode():
        teacher = teacher * 1
    EMBEDDING_TERMS[name](student.requires_grad_(), teacher).backward()
    assert student.grad.abs().sum() > 0


@pytest.mark.parametrize("kind", ["two alike", "two of zeros", "all alike", "one image"])
@pytest.mark.parametrize("name", EMBEDDING_TERMS)
def test_embeddings_without_distance_or_norm_have_moderate_gradients(name: str, kind: str) -> None:
    student, teacher = drawn()
    if kind == "two alike":
        student[1] = student[0]
    elif kind == "two of zeros":
        student[:2] = 0.0
    elif kind == "all alike":
        student[:] = 1.0
    else:
        student, teacher = student[:1], teacher[:1]
    student.requires_grad_()
    value = EMBEDDING_TERMS[name](student, teacher)
    value.backward()
    assert value.isfinite() and student.grad.abs().max() < 1e5
    if kind == "one image":
        assert value.item() == pytest.approx(0.0, abs=1e-9)


def test_angles_are_compared_in_groups_of_at_most_128_images() -> None:
    student, teacher = drawn(images=130)
    halves = [rkd(student[part], teacher[part]) for part in (slice(65), slice(65, None))]
    assert rkd(student, teacher).item() == pytest.approx(torch.stack(halves).mean().item(), rel=1e-6)
    whole = rkd(student[:128], teacher[:128])
    assert whole.item() != pytest.approx(torch.stack([rkd(student[:64], teacher[:64])] * 2).mean().item())


@pytest.mark.parametrize("seed", range(3))
def test_rkd_equals_torchdistill(seed: int) -> None:
    losses = pytest.importorskip("torchdistill.losses.mid_level", reason=ABSENT)
    loss = losses.RKDLoss("pooled", "pooled", DISTANCES, ANGLES, "mean")
    student, teacher = drawn(images=12, seed=seed)
    expected = loss({"pooled": {"output": student}}, {"pooled": {"output": teacher}})
    assert rkd(student, teacher).item() == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_pkt_equals_torchdistill(seed: int) -> None:
    losses = pytest.importorskip("torchdistill.losses.mid_level", reason=ABSENT)
    loss = losses.PKTLoss("head", "input", "head", "input")
    student, teacher = drawn(images=12, seed=seed)
    expected = SIMILARITIES * loss({"head": {"input": student}}, {"head": {"input": teacher}})
    assert pkt(student, teacher).item() == pytest.approx(expected.item(), rel=1e-4)
