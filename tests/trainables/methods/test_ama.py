"""Closed forms of every term, and that adaptive supervision does not collapse."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainables.loss_config import LossConfig
from trainables.methods.ama import DistillationLoss
from trainables.methods.terms.adaptive import OWN_SHARE
from trainables.methods.terms.logits import logit_loss
from trainables.methods.terms.maps import relative_error
from trainables.training.optim import make_optimizer, set_lr

LABELS = torch.tensor([0, 1, 1])


@pytest.fixture
def logits() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(3, 2, generator=generator), torch.randn(3, 2, generator=generator)


def total(parts: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(parts.values())).sum()


def test_logit_loss_closed_form() -> None:
    tau = 2.0
    student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[tau * math.log(3.0), 0.0]])
    # Softened teacher (3/4, 1/4), student uniform.
    expected = tau**2 * (0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    assert logit_loss(student, teacher, tau).item() == pytest.approx(expected)
    # The mean over images, not over classes or all elements.
    doubled = logit_loss(student.repeat(2, 1), teacher.repeat(2, 1), tau)
    assert doubled.item() == pytest.approx(expected)


def test_logit_loss_gradient_keeps_its_size_over_temperatures() -> None:
    teacher = torch.tensor([[0.1, -0.1]])
    sizes = []
    for tau in (4.0, 16.0):
        student = torch.zeros(1, 2, requires_grad=True)
        logit_loss(student, teacher, tau).backward()
        sizes.append(student.grad.abs().sum().item())
    assert sizes[0] == pytest.approx(sizes[1], rel=1e-2)


def test_relative_error_closed_form_and_scale_free() -> None:
    teacher = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    student = torch.tensor([[3.0, 4.0], [1.0, 2.0]])
    assert relative_error(student, teacher).item() == pytest.approx(5 / 25)
    assert relative_error(student * 10, teacher * 10).item() == pytest.approx(5 / 25)
    assert relative_error(torch.zeros(2, 2), teacher).item() == pytest.approx(1.0)


def test_relative_error_of_dead_teacher_map_is_mean_square() -> None:
    assert relative_error(torch.full((2, 8), 3.0), torch.zeros(2, 8)).item() == pytest.approx(9.0)


def test_parts_add_up_and_match_their_formulas(logits: tuple[Tensor, Tensor]) -> None:
    student, teacher = logits
    maps = [torch.full((3, 2, 2, 2), 1.5), torch.full((3, 4), 1.0)]
    targets = [[torch.ones(3, 2, 2, 2)], [torch.full((3, 4), 2.0)]]
    loss = DistillationLoss(LossConfig(alpha=0.3, tau=3.0, beta=2.0), [1, 1])
    parts = loss(student, teacher, LABELS, maps, targets)
    assert list(parts) == ["ce", "kl", "feature"]
    assert parts["ce"].item() == pytest.approx(0.7 * F.cross_entropy(student, LABELS).item())
    assert parts["kl"].item() == pytest.approx(0.3 * logit_loss(student, teacher, 3.0).item())
    assert parts["feature"].item() == pytest.approx(2.0 * (0.25 + 0.25))
    assert loss.entropy() == 1.0
    assert not list(loss.parameters())


def test_terms_of_no_weight_are_skipped(logits: tuple[Tensor, Tensor]) -> None:
    student, teacher = logits
    plain = DistillationLoss(LossConfig(alpha=0.0, beta=0.0), [1, 2])
    assert not plain.reads_logits and not plain.reads_maps and not plain.adaptive
    parts = plain(student, None, LABELS)
    assert {name: part.item() for name, part in parts.items()} == {
        "ce": pytest.approx(F.cross_entropy(student, LABELS).item())
    }
    # alpha = 1: cross-entropy is neither computed nor looked at, here with labels it could not take.
    pure = DistillationLoss(LossConfig(alpha=1.0, tau=1.0, beta=0.0))
    parts = pure(student, teacher, torch.full((3,), 99))
    assert {name: part.item() for name, part in parts.items()} == {
        "kl": pytest.approx(logit_loss(student, teacher, 1.0).item())
    }


def test_label_smoothing_reaches_cross_entropy(logits: tuple[Tensor, Tensor]) -> None:
    loss = DistillationLoss(LossConfig(alpha=0.0, beta=0.0), label_smoothing=0.2)
    expected = F.cross_entropy(logits[0], LABELS, label_smoothing=0.2)
    assert loss(logits[0], None, LABELS)["ce"].item() == pytest.approx(expected.item())


def test_half_precision_inputs_are_scored_in_fp32(logits: tuple[Tensor, Tensor]) -> None:
    student, teacher = (each.bfloat16() for each in logits)
    maps = torch.full((3, 4096), 0.1, dtype=torch.bfloat16)
    loss = DistillationLoss(LossConfig(), [1])
    parts = loss(student, teacher, LABELS, [maps * 2], [[maps]])
    assert {part.dtype for part in parts.values()} == {torch.float32}
    assert parts["feature"].item() == pytest.approx(1.0)


def test_teacher_outputs_of_inference_mode_can_be_learned_from(logits: tuple[Tensor, Tensor]) -> None:
    with torch.inference_mode():
        teacher, maps = logits[1] * 1, [torch.ones(3, 4), torch.eye(3, 4)]
    student = [logits[0].clone().requires_grad_(), torch.full((3, 4), 0.5, requires_grad=True)]
    loss = DistillationLoss(LossConfig(supervision="adaptive"), [2])
    total(loss(student[0], teacher, LABELS, [student[1]], [maps])).backward()
    assert all(each.grad.abs().sum() > 0 for each in [*student, loss.mix_logits[0]])


def test_adaptive_starts_at_the_prior() -> None:
    loss = DistillationLoss(LossConfig(supervision="adaptive"), [1, 3])
    assert loss.weights().tolist() == pytest.approx([1.0, 1.0])
    rest = (1 - OWN_SHARE) / 2
    assert loss.log_mix(1).exp().tolist() == pytest.approx([OWN_SHARE, rest, rest])
    parts = loss(
        torch.zeros(3, 2), torch.zeros(3, 2), LABELS, [torch.ones(3, 4)] * 2, [[torch.ones(3, 4)] * 3] * 2
    )
    assert parts["regulariser"].item() == pytest.approx(0.0, abs=1e-6)
    assert loss.entropy() == pytest.approx(1.0)


def test_mix_brings_maps_to_the_norm_of_the_own_one() -> None:
    loss = DistillationLoss(LossConfig(alpha=1.0, supervision="adaptive"), [2])
    own, other = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 50.0]])
    target = torch.tensor([[2 * OWN_SHARE, 2 * (1 - OWN_SHARE)]])
    parts = loss(torch.zeros(1, 2), torch.zeros(1, 2), LABELS[:1], [target], [[own, other]])
    assert parts["feature"].item() == pytest.approx(0.0, abs=1e-10)


def test_entropy_is_that_of_the_weights() -> None:
    loss = DistillationLoss(LossConfig(supervision="adaptive"), [1, 1, 1])
    shares = torch.tensor([0.5, 0.25, 0.25])
    loss.weight_logits.data = shares.log()
    maps = [torch.ones(3, 2)] * 3
    parts = loss(torch.zeros(3, 2), torch.zeros(3, 2), LABELS, maps, [[each] for each in maps])
    entropy = -(shares * shares.log()).sum() / math.log(3)
    assert loss.entropy() == pytest.approx(entropy.item())
    assert parts["regulariser"].item() == pytest.approx(3 * (math.log(3) * (1 - entropy.item())), rel=1e-5)


def train(
    config: LossConfig, candidates: list[int], maps: list[Tensor], targets: list[list[Tensor]]
) -> DistillationLoss:
    """The student's maps themselves are the parameters; those that need no gradient cannot be learned."""
    loss = DistillationLoss(config, candidates)
    student = [(f"map{i}", each) for i, each in enumerate(maps) if isinstance(each, nn.Parameter)]
    optimizer = make_optimizer(student, 0.1, 0.9, 0.0)
    optimizer.add_param_group(
        {"params": list(loss.parameters()), "weight_decay": 0.0, "lr_scale": loss.lr_scale}
    )
    set_lr(optimizer, 0.1)
    nothing = torch.zeros(1, 2)
    for _ in range(600):
        optimizer.zero_grad(set_to_none=True)
        total(loss(nothing, nothing, torch.zeros(1, dtype=torch.int64), maps, targets)).backward()
        optimizer.step()
    return loss


@pytest.fixture
def easy_and_hard() -> tuple[list[Tensor], list[list[Tensor]]]:
    """Two spans: one the student learns to the last bit, one it cannot learn at all (relative error 1)."""
    target = torch.randn(4, 8, generator=torch.Generator().manual_seed(1))
    return [nn.Parameter(torch.zeros(4, 8)), torch.zeros(4, 8)], [[target], [target]]


@pytest.mark.parametrize("beta", [0.1, 1.0, 20.0])
def test_weights_reach_their_closed_form_and_keep_their_entropy(
    easy_and_hard: tuple[list[Tensor], list[list[Tensor]]], beta: float
) -> None:
    config = LossConfig(alpha=1.0, beta=beta, supervision="adaptive", entropy_weight=1.0)
    maps, targets = easy_and_hard
    if beta > 1:
        maps[0] = targets[0][
            0
        ].clone()  # learned already: this rate is too high for the map, not for the weights
    loss = train(config, [1, 1], maps, targets)
    easy, hard = loss.weights().tolist()
    assert easy / hard == pytest.approx(math.e, rel=0.05)  # exp(-L/1) at L = 0 and 1
    assert 0.5 < loss.entropy() < 0.95


def test_weights_collapse_without_the_regulariser(
    easy_and_hard: tuple[list[Tensor], list[list[Tensor]]],
) -> None:
    config = LossConfig(alpha=1.0, supervision="adaptive", entropy_weight=0.0)
    loss = train(config, [1, 1], *easy_and_hard)
    assert loss.entropy() < 0.1


@pytest.mark.parametrize(("entropy_weight", "collapses"), [(1.0, False), (0.0, True)])
def test_mix_keeps_the_own_map(entropy_weight: float, collapses: bool) -> None:
    generator = torch.Generator().manual_seed(2)
    own, easy = torch.randn(4, 8, generator=generator), torch.randn(4, 8, generator=generator)
    easy *= own.norm() / easy.norm()
    config = LossConfig(alpha=1.0, supervision="adaptive", entropy_weight=entropy_weight)
    # The student shows the other map already, and cannot move: only the mix can lower the loss.
    loss = train(config, [2], [easy.clone()], [[own, easy]])
    log_mix = loss.log_mix(0).detach()
    assert (log_mix[0].exp() < 0.1) == collapses
    if not collapses:
        prior = torch.tensor([OWN_SHARE, 1 - OWN_SHARE])
        at_prior = relative_error(easy, prior[0] * own + prior[1] * easy)
        kl = (log_mix.exp() * (log_mix - prior.log())).sum()
        assert 0 < kl <= at_prior  # the bound of the docstring, at entropy_weight 1


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_relative_error_and_its_slopes_equal_plain_double_arithmetic(precision: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(3)
    student, teacher = (
        torch.randn(16, 4, 8, 8, generator=generator).to(precision).requires_grad_() for _ in range(2)
    )
    error = relative_error(student, teacher)
    error.backward()
    exact = [each.detach().double().requires_grad_() for each in (student, teacher)]
    expected = (exact[0] - exact[1]).square().sum() / exact[1].square().sum()
    expected.backward()
    assert error.dtype == torch.float32
    assert error.item() == pytest.approx(expected.item(), rel=1e-6 if precision == torch.float32 else 1e-3)
    for each, other in zip((student, teacher), exact, strict=True):
        assert each.grad is not None and other.grad is not None and each.grad.dtype == precision
        scale = other.grad.abs().max().item()
        tolerance = 1e-6 if precision == torch.float32 else 1e-2
        assert (each.grad.double() - other.grad).abs().max().item() < tolerance * scale


def test_equal_weights_follow_the_loss_to_its_device() -> None:
    """Fault 9: they stayed on the CPU; the meta device stands for any other."""
    assert DistillationLoss(LossConfig(), [1, 2]).to("meta").weights().device.type == "meta"
    assert DistillationLoss(LossConfig(), [1, 2]).weights().tolist() == [1.0, 1.0]
    assert not DistillationLoss(LossConfig(), [1, 2]).state_dict()
