"""The contrastive term against its formula, its gradients and torchdistill's CRD; its bank and its draws."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from trainables.errors import InputError
from trainables.methods.terms.contrast import (
    Contrast,
    MemoryBank,
    check_banks,
    contrastive_loss,
    draw_negatives,
    log_probabilities,
)

IMAGES, CLASSES, DIM, TAU = 40, 4, 8, 0.1
LABELS = torch.arange(IMAGES) % CLASSES
DRAWN = torch.tensor([0, 5, 10, 15, 20, 21, 33, 38])
INDEX = torch.tensor([1, 6, 11, 16])  # classes 1, 2, 3, 0


def unit(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1)


def problem(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Anchors, their positives, the negatives, and which of these are of another class; in fp64."""
    bank = unit(IMAGES, DIM, seed=seed + 1)
    usable = LABELS[INDEX][:, None] != LABELS[DRAWN]
    assert not usable.all() and usable.any(1).all()
    return unit(len(INDEX), DIM, seed=seed), bank[INDEX], bank[DRAWN], usable


def slow(
    anchors: Tensor,
    positives: Tensor,
    negatives: Tensor,
    usable: Tensor,
    images: int,
    tau: float,
    z: float = 0.0,
) -> tuple[float, float]:
    """The formula in loops over Python numbers, and Z: computed unless given."""
    count = len(negatives)
    c = count / images

    def score(a: Tensor, b: Tensor) -> float:
        return math.exp(sum(x * y for x, y in zip(a.tolist(), b.tolist(), strict=True)) / tau)

    rows = []
    for anchor, positive, mask in zip(anchors, positives, usable, strict=True):
        others = [score(anchor, row) for row, use in zip(negatives, mask, strict=True) if use]
        rows.append((score(anchor, positive), others, count / len(others)))
    summed = sum(own + times * sum(others) for own, others, times in rows)
    z = z or images * summed / (len(rows) * (count + 1))
    total = 0.0
    for own, others, times in rows:
        total -= math.log(own / z / (own / z + c))
        total -= times * sum(math.log(c / (other / z + c)) for other in others)
    return total / len(rows), z


def test_it_is_the_formula() -> None:
    for seed in range(3):
        parts = problem(seed)
        expected, _ = slow(*parts, IMAGES, TAU)
        assert contrastive_loss(*parts, IMAGES, TAU).item() == pytest.approx(expected, rel=1e-10)
        in_fp32 = [part.float() for part in parts[:3]]
        found = contrastive_loss(*in_fp32, parts[3], IMAGES, TAU).item()
        assert found == pytest.approx(expected, rel=1e-5)


def test_its_gradient_is_that_of_the_formula_with_a_constant_z() -> None:
    anchors, *rest = problem()
    _, z = slow(anchors, *rest, IMAGES, TAU)
    (gradient,) = torch.autograd.grad(contrastive_loss(anchors.requires_grad_(), *rest, IMAGES, TAU), anchors)
    for place in ((0, 0), (2, 5), (3, 7)):
        shift = torch.zeros_like(anchors)
        shift[place] = 1e-6
        above, below = (slow(anchors.detach() + s, *rest, IMAGES, TAU, z)[0] for s in (shift, -shift))
        assert gradient[place].item() == pytest.approx((above - below) / 2e-6, rel=1e-5)


@pytest.mark.parametrize(("count", "expected"), [(256, 6.55), (16384, 10.70)])
def test_at_equal_scores_it_is_that_of_a_coin_for_every_image(count: int, expected: float) -> None:
    usable = torch.ones(2, count, dtype=torch.bool)
    loss = contrastive_loss(
        unit(2, 4), unit(2, 4, seed=1), unit(count, 4, seed=2), usable, 50_000, 1e9
    ).item()
    assert loss == pytest.approx(-math.log(1 / (1 + count)) - count * math.log(count / (1 + count)), rel=1e-6)
    assert loss == pytest.approx(expected, abs=5e-3)


def test_the_mean_probability_is_one_over_the_images() -> None:
    anchors, positives, negatives, usable = problem()
    own, others, times = log_probabilities(anchors, positives, negatives, usable, IMAGES, TAU)
    counts = usable * times
    torch.testing.assert_close(counts.sum(1), torch.full((4,), float(len(DRAWN)), dtype=torch.float64))
    mean = (own.exp().sum() + (others.exp() * counts).sum()) / (len(own) + counts.sum())
    assert mean.item() == pytest.approx(1 / IMAGES, rel=1e-12)


def test_negatives_of_the_anchors_class_count_nothing() -> None:
    anchors, positives, negatives, usable = (part[:1] if k != 2 else part for k, part in enumerate(problem()))
    before = contrastive_loss(anchors, positives, negatives, usable, IMAGES, TAU)
    same = ~usable[0]
    assert same.any()
    negatives[same] = anchors  # as near as can be
    assert torch.equal(contrastive_loss(anchors, positives, negatives, usable, IMAGES, TAU), before)
    negatives[~same] = anchors
    assert contrastive_loss(anchors, positives, negatives, usable, IMAGES, TAU) > before


def test_an_anchor_that_drew_only_its_own_class_has_the_positive_alone() -> None:
    anchors, positives, negatives, usable = problem()
    usable[0] = False
    anchors.requires_grad_()
    loss = contrastive_loss(anchors, positives, negatives, usable, IMAGES, TAU)
    (gradient,) = torch.autograd.grad(loss, anchors)
    assert loss.isfinite() and gradient.isfinite().all() and gradient[0].any()
    torch.testing.assert_close(F.normalize(gradient[0], dim=0), -positives[0], rtol=0, atol=1e-9)


@pytest.mark.parametrize("tau", [1e-3, 1e3])
def test_any_temperature_is_finite_in_fp32(tau: float) -> None:
    anchors, positives, negatives = (part.float() for part in problem()[:3])
    anchors.requires_grad_()
    loss = contrastive_loss(anchors, positives, negatives, problem()[3], IMAGES, tau)
    loss.backward()
    assert loss.isfinite() and anchors.grad.isfinite().all()


def test_torchdistill_computes_the_same_for_crd() -> None:
    """Its scores and its memory; there Z is that of the first call, as it is here."""
    theirs = pytest.importorskip(
        "torchdistill.losses.mid_level", reason="torchdistill is not installed (make bench-engine)"
    ).CRDLoss("s", "empty", "t", DIM, IMAGES, 8, IMAGES, temperature=TAU, momentum=0.3, eps=0.0)
    index, negatives = torch.tensor([1, 5, 9]), torch.tensor([0, 2, 3, 4, 6, 7, 8, 10])  # class 1; others
    student, teacher = unit(3, DIM).float(), unit(3, DIM, seed=1).float()
    contrast = Contrast([DIM, DIM], LABELS, temperature=TAU, dim=DIM)
    for bank, memory in zip(contrast.banks, (theirs.memory_v1, theirs.memory_v2), strict=True):
        bank.momentum = 0.3
        bank.rows.copy_(memory)
    usable = torch.ones(3, 8, dtype=torch.bool)
    student_bank, teacher_bank = (bank.rows for bank in contrast.banks)
    found = [
        contrastive_loss(anchors, rows[index], rows[negatives], usable, IMAGES, TAU)
        for anchors, rows in ((student, teacher_bank), (teacher, student_bank))
    ]
    drawn = torch.cat([index[:, None], negatives.expand(3, 8)], 1)
    expected = theirs(
        {"s": {"output": student}, "empty": {"input": {"pos_idx": index, "contrast_idx": drawn}}},
        {"t": {"output": teacher}},
    )
    torch.testing.assert_close(sum(found), expected.squeeze(), rtol=1e-5, atol=1e-5)
    for bank, vectors, memory in zip(
        contrast.banks, (student, teacher), (theirs.memory_v1, theirs.memory_v2), strict=True
    ):
        bank.update(index, vectors)
        torch.testing.assert_close(bank.rows, memory)


def test_draws_depend_on_seed_and_step_alone() -> None:
    drawn = draw_negatives(1000, 64, seed=3, step=7)
    assert torch.equal(drawn, draw_negatives(1000, 64, seed=3, step=7))
    assert len(drawn.unique()) == 64 and drawn.min() >= 0 and drawn.max() < 1000
    for other in (draw_negatives(1000, 64, seed=4, step=7), draw_negatives(1000, 64, seed=3, step=8)):
        assert not torch.equal(drawn.sort().values, other.sort().values)
    assert draw_negatives(10, 64, 0, 0).sort().values.tolist() == list(range(10))


def test_every_image_is_drawn_equally_often() -> None:
    counts = torch.stack([draw_negatives(20, 5, 0, step).bincount(minlength=20) for step in range(2000)]).sum(
        0
    )
    # 500 expected, deviation sqrt(2000 * 1/4 * 3/4) = 19
    assert (counts - 500).abs().max() < 5 * 19


def test_a_bank_is_random_repeatable_and_keeps_unit_rows() -> None:
    bank = MemoryBank(500, 32, seed=1)
    assert torch.equal(bank.rows, MemoryBank(500, 32, seed=1).rows)
    assert not torch.equal(bank.rows, MemoryBank(500, 32, seed=2).rows)
    assert bank.rows.norm(dim=1).square().mean().item() == pytest.approx(1.0, abs=0.02)
    before, vectors = bank.rows.clone(), unit(2, 32)
    bank.update(torch.tensor([7, 3]), vectors)
    changed = (bank.rows != before).any(1)
    assert changed.nonzero().flatten().tolist() == [3, 7]
    torch.testing.assert_close(bank.rows[7], F.normalize(0.5 * before[7] + 0.5 * vectors[0].float(), dim=0))


@pytest.fixture
def contrast() -> Contrast:
    return Contrast([6, 5], LABELS, negatives=16, temperature=TAU, seed=0, dim=DIM)


def embeddings(count: int = 4) -> list[Tensor]:
    return [unit(count, 6, seed=5).float(), unit(count, 5, seed=6).float()]


def test_the_term_is_the_sum_over_ordered_pairs(contrast: Contrast) -> None:
    given = embeddings()
    drawn = draw_negatives(IMAGES, 16, 0, step=2)
    usable = LABELS[INDEX][:, None] != LABELS[drawn]
    vectors = [F.normalize(head(each)) for head, each in zip(contrast.heads, given, strict=True)]
    expected = sum(
        slow(vectors[ours], bank.rows[INDEX], bank.rows[drawn], usable, IMAGES, TAU)[0]
        for ours, bank in ((0, contrast.banks[1]), (1, contrast.banks[0]))
    )
    assert contrast.loss(given, LABELS[INDEX], INDEX, step=2).item() == pytest.approx(expected, rel=1e-5)


def test_heads_and_networks_get_gradients_and_banks_none(contrast: Contrast) -> None:
    given = [each.requires_grad_() for each in embeddings()]
    contrast.loss(given, LABELS[INDEX], INDEX, step=0).backward()
    assert all(each.grad.any() for each in given)
    assert all(parameter.grad.any() for parameter in contrast.parameters())
    assert not any(bank.rows.requires_grad for bank in contrast.banks)
    assert len(list(contrast.parameters())) == 4


def test_a_teachers_inference_tensor_is_accepted_and_its_head_is_trained(contrast: Contrast) -> None:
    student, teacher = embeddings()
    with torch.inference_mode():
        teacher = teacher * 1
    contrast.loss([student, teacher], LABELS[INDEX], INDEX, step=0).backward()
    assert contrast.heads[1].weight.grad.any()


def _whole(contrast: Contrast, given: list[Tensor]) -> None:
    contrast.loss(given, LABELS[INDEX], INDEX, step=0)


def _halves(contrast: Contrast, given: list[Tensor]) -> None:
    for part in (slice(0, 2), slice(2, 4)):
        contrast.loss([each[part] for each in given], LABELS[INDEX][part], INDEX[part], step=0)


def _retried(contrast: Contrast, given: list[Tensor]) -> None:
    """The whole batch ran out of memory in its backward pass; batch norms then gave halves other vectors."""
    _whole(contrast, [each.flip(1) for each in given])
    _halves(contrast, given)


def _after_a_lost_step(contrast: Contrast, given: list[Tensor]) -> None:
    contrast.loss([each.flip(1) for each in given], LABELS[INDEX], INDEX, step=9)
    _whole(contrast, given)


@pytest.mark.parametrize("computed", [_whole, _halves, _retried, _after_a_lost_step])
def test_banks_change_once_a_step_and_after_it(
    contrast: Contrast, computed: Callable[[Contrast, list[Tensor]], None]
) -> None:
    given, before = embeddings(), [bank.rows.clone() for bank in contrast.banks]
    computed(contrast, given)
    assert all(torch.equal(bank.rows, rows) for bank, rows in zip(contrast.banks, before, strict=True))
    contrast.update(INDEX)
    for bank, rows, head, each in zip(contrast.banks, before, contrast.heads, given, strict=True):
        rows[INDEX] = F.normalize(0.5 * rows[INDEX] + 0.5 * F.normalize(head(each).detach()))
        torch.testing.assert_close(bank.rows, rows)


def test_its_state_is_heads_and_banks(contrast: Contrast) -> None:
    assert set(contrast.state_dict()) == {
        *(f"heads.{view}.{kind}" for view in (0, 1) for kind in ("weight", "bias")),
        *(f"banks.{view}.rows" for view in (0, 1)),
    }
    twin = Contrast([6, 5], LABELS, negatives=16, temperature=TAU, seed=1, dim=DIM)
    assert not torch.equal(twin.heads[0].weight, contrast.heads[0].weight)
    twin.load_state_dict(contrast.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(twin.buffers(), contrast.buffers(), strict=True))


def test_two_networks_banks_and_heads_differ() -> None:
    contrast = Contrast([6, 6], LABELS)
    assert not torch.equal(contrast.banks[0].rows, contrast.banks[1].rows)
    assert not torch.equal(contrast.heads[0].weight, contrast.heads[1].weight)


def test_permuted_positives_are_other_images(contrast: Contrast) -> None:
    """The control of the benchmark: an image is pulled to a row that is not its own, always the same one."""
    straight = contrast.loss(embeddings(), LABELS[INDEX], INDEX, step=0)
    contrast.permute(seed=0)
    permuted = contrast.loss(embeddings(), LABELS[INDEX], INDEX, step=0)
    assert permuted != straight
    assert torch.equal(permuted, contrast.loss(embeddings(), LABELS[INDEX], INDEX, step=0))
    assert contrast.positives.sort().values.tolist() == list(range(IMAGES))


@pytest.mark.parametrize(
    ("views", "images", "limit"), [(2, 1_281_167, 2**30), (4, 50_000, 90 * 2**20), (2, 40, 1000.0)]
)
def test_banks_beyond_the_limit_are_refused(views: int, images: int, limit: float) -> None:
    needed = views * images * 128 * 4
    with pytest.raises(InputError, match=rf"{views} memory banks of {images} images .* data.memory_limit"):
        check_banks(views, images, limit)
    check_banks(views, images, needed)
    check_banks(views, images, None)


def test_the_limit_is_checked_before_banks_are_made() -> None:
    labels = torch.zeros(1, dtype=torch.int64).expand(10**12)  # a copy of it would fill any machine
    with pytest.raises(InputError, match="2 memory banks"):
        Contrast([4, 4], labels, memory_limit=2**30)
