"""Distillation from a bank of synthetic soft targets: targets and controls, draws, the two phases."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainables.blocks.blocks import find_blocks
from trainables.config import DataConfig, DistillConfig, OptimConfig, RuntimeConfig, StudentSpec
from trainables.data.load import load_data
from trainables.errors import InputError
from trainables.methods import lwkd
from trainables.methods.base import Batch, Progress, Setup
from trainables.methods.lwkd import DISCRIMINATOR, STUDENT, Lwkd, LwkdConfig, soft_targets
from trainables.network.architectures import build_model
from trainables.runtime.runtime import resolve
from trainables.runtime.seeds import seeded
from trainables.student.build import build_student
from trainables.training.loop import Distiller
from trainables.training.stages import make_stages
from trainables.training.step import Stepper

SMALL = {"teacher_epochs": 1, "images_per_class": 40}
START, LATE = Progress(0, 40, 4), Progress(20, 40, 4)


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Setup:
    data = load_data(DataConfig(name="digits", train_limit=100))
    with seeded(0):
        architecture = build_model("cifar_resnet8", 10, data.image_shape)
    blocks = find_blocks(architecture, torch.zeros(1, *data.image_shape))
    runtime = resolve(RuntimeConfig(device="cpu", precision="fp32", threads=1, eval_batch=64))
    setup = Setup.of(architecture, blocks, data, runtime)
    stages = make_stages(setup, [("lwkd", LwkdConfig(**SMALL))], tmp_path_factory.mktemp("stages"))
    return replace(setup, stages=stages)


def config_of(setup: Setup, loss: dict[str, Any] | None = None, **fields: Any) -> DistillConfig:
    given = {
        "method": "lwkd",
        "student": StudentSpec(widths={block.name: 0.5 for block in setup.blocks[1:]}),
        "loss": SMALL | (loss or {}),
        "optim": OptimConfig(batch_size=25),
        "epochs": 2,
        "warm_start": "none",
        **fields,
    }
    return DistillConfig.model_validate(given)


def first_batch(setup: Setup, epoch: int = 0) -> Batch:
    return Batch(*next(setup.data.train_steps(25, 0, epoch, setup.runtime)))


def made(setup: Setup, **loss: Any) -> Lwkd:
    method = Lwkd(setup, config_of(setup, loss))
    method.train()
    return method


def target(method: Lwkd, batch: Batch, epoch: int = 0) -> Tensor:
    """The soft targets of a batch as probabilities at the method's temperature."""
    return (method._target(batch, epoch) / method.settings.tau).softmax(1)


def mean_entropy(probabilities: Tensor) -> float:
    return float(-(probabilities * probabilities.clamp_min(1e-30).log()).sum(-1).mean())


# Targets and controls


@pytest.fixture
def bank() -> Tensor:
    draw = torch.Generator().manual_seed(0)
    return torch.randn(4, 7, 4, generator=draw) + 5 * torch.eye(4)[:, None]


def test_rows_of_the_bank_are_the_targets(bank: Tensor) -> None:
    assert torch.equal(soft_targets(bank, LwkdConfig(), 0), bank)


def test_permuted_classes_stand_for_other_numbers(bank: Tensor) -> None:
    found = soft_targets(bank, LwkdConfig(classes="permuted"), seed=1)
    assert torch.equal(found, soft_targets(bank, LwkdConfig(classes="permuted"), seed=1))
    assert (found.mean(1).argmax(1) == torch.arange(4)).all()  # the target is still of the label
    numbers = [next(c for c in range(4) if torch.equal(found[k, :, k], bank[c, :, c])) for k in range(4)]
    assert sorted(numbers) == [0, 1, 2, 3] != numbers
    for k, number in enumerate(numbers):  # and the similarities are those of the numbers
        assert torch.equal(found[k], bank[number][:, numbers])


@pytest.mark.parametrize("tau", [1.0, 4.0])
def test_means_have_no_variation_and_the_same_mean(bank: Tensor, tau: float) -> None:
    found = soft_targets(bank, LwkdConfig(targets="mean", tau=tau), 0)
    assert found.shape == (4, 1, 4)
    torch.testing.assert_close((found[:, 0] / tau).softmax(1), (bank / tau).softmax(2).mean(1))


def test_handmade_targets_have_the_confidence_on_the_label(bank: Tensor) -> None:
    found = soft_targets(bank, LwkdConfig(targets="handmade", confidence=0.85), 0)
    expected = torch.full((4, 4), 0.05).fill_diagonal_(0.85)
    torch.testing.assert_close(found[:, 0].softmax(1), expected)


@pytest.mark.parametrize("tau", [1.0, 4.0, 15.0])
def test_smoothed_targets_have_the_entropy_of_the_bank(bank: Tensor, tau: float) -> None:
    found = (soft_targets(bank, LwkdConfig(targets="smoothing", tau=tau), 0)[:, 0] / tau).softmax(1)
    assert mean_entropy(found) == pytest.approx(mean_entropy((bank / tau).softmax(2)), rel=1e-5)
    for part in (found.diagonal(), found[~torch.eye(4, dtype=torch.bool)]):
        assert part.max() - part.min() < 1e-6
    assert (found.argmax(1) == torch.arange(4)).all()


def test_controls_name_the_settings_without_effect() -> None:
    assert LwkdConfig().unused() == {"confidence"}
    assert LwkdConfig(adversarial=0.0, targets="handmade").unused() == {"conditional", "classes"}


# Draws


def test_an_image_gets_a_row_of_its_class_and_another_in_the_next_epoch(setup: Setup) -> None:
    method, batch = made(setup), first_batch(setup)
    assert batch.labels is not None
    rows = method.stage("lwkd-bank")["logits"]
    first = method._target(batch, 0)
    for row, label in zip(first, batch.labels, strict=True):
        assert (rows[label] == row).all(1).any()
    assert len(first.unique(dim=0)) > 15
    assert (method._target(batch, 1) != first).any(1).float().mean() > 0.8


def test_rows_depend_on_seed_epoch_and_image_alone(setup: Setup) -> None:
    method, batch = made(setup), first_batch(setup)
    whole = method._target(batch, 3)
    method._target(batch, 4)
    again = torch.cat([made(setup)._target(part, 3) for part in batch.split(3)])
    assert torch.equal(whole, again)
    other = Lwkd(setup, config_of(setup, seed=1))
    assert not torch.equal(other._target(batch, 3), whole)


# The loss


@pytest.mark.parametrize("conditional", [False, True])
def test_parts_follow_the_formula(setup: Setup, conditional: bool) -> None:
    method, batch = (
        made(setup, alpha=0.3, tau=2.0, adversarial=0.5, conditional=conditional),
        first_batch(setup),
    )
    twin = copy.deepcopy(method.student)
    parts = method.losses(batch, LATE, STUDENT)
    assert list(parts) == ["ce", "kl", "adversarial"] and batch.labels is not None
    logits = twin(batch.images)
    assert parts["ce"].item() == pytest.approx(0.7 * F.cross_entropy(logits, batch.labels).item(), rel=1e-5)
    t, s = target(method, batch, epoch=5).double(), (logits / 2).double().softmax(1)
    kl = (t * (t.log() - s.log())).sum(1).mean()
    assert parts["kl"].item() == pytest.approx(0.3 * 4 * kl.item(), rel=1e-4)
    labels = F.one_hot(batch.labels, 10)

    def judged(soft: Tensor) -> Tensor:
        soft = soft.float()
        found: Tensor = method.discriminator(torch.cat([soft, labels], 1) if conditional else soft)
        return found[:, 0].sigmoid().double()

    assert parts["adversarial"].item() == pytest.approx(-0.5 * judged(s).log().mean().item(), rel=1e-4)
    (own,) = method.losses(batch, LATE, DISCRIMINATOR).values()
    expected = -(judged(t).log().mean() + (1 - judged(s)).log().mean()) / 2
    assert own.item() == pytest.approx(expected.item(), rel=1e-4)


def test_the_adversarial_weight_rises_over_the_first_tenth(setup: Setup) -> None:
    method, batch = made(setup, adversarial=0.5), first_batch(setup)
    found = [method.losses(batch, Progress(step, 40, 4), STUDENT)["adversarial"].item() for step in range(6)]
    assert found[0] == 0.0
    assert [value / found[5] for value in found[:5]] == pytest.approx([0, 0.25, 0.5, 0.75, 1], rel=0.02)


@pytest.mark.parametrize("loss", [{}, {"conditional": True}])
def test_gradients_of_student_and_discriminator_are_separate(setup: Setup, loss: dict[str, Any]) -> None:
    method, batch = made(setup, **loss), first_batch(setup)
    sum(method.losses(batch, LATE, STUDENT).values(), torch.zeros(())).backward()  # type: ignore[no-untyped-call]
    assert all(parameter.grad is not None for parameter in method.student.parameters())
    method.zero_grad(set_to_none=True)
    method.losses(batch, LATE, DISCRIMINATOR)["discriminator"].backward()  # type: ignore[no-untyped-call]
    assert all(parameter.grad is None for parameter in method.student.parameters())
    assert all(parameter.grad is not None for parameter in method.discriminator.parameters())


def test_the_adversarial_term_moves_the_student_towards_what_passes_for_real(setup: Setup) -> None:
    method, batch = made(setup, alpha=0.0, adversarial=1.0, tau=1.0), first_batch(setup)
    first, last = method.discriminator[0], method.discriminator[2]
    with torch.no_grad():  # a discriminator that takes confidence in class 3 for real: 4 p - 2
        for parameter in method.discriminator.parameters():
            parameter.zero_()
        first.weight[:, 3], last.weight[:], last.bias[:] = 4.0, 1 / len(first.weight), -2.0
    before = method.logits(batch.images).softmax(1)[:, 3].mean().item()
    optimizer = torch.optim.SGD(method.student.parameters(), lr=0.1)
    for _ in range(5):
        optimizer.zero_grad()
        method.losses(batch, LATE, STUDENT)["adversarial"].backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert method.logits(batch.images).softmax(1)[:, 3].mean().item() > before + 0.1


# Training


def test_a_step_trains_both_networks_and_runs_the_student_once(setup: Setup) -> None:
    method, batch = made(setup, adversarial=0.5), first_batch(setup)
    calls: list[int] = []
    method.student.register_forward_hook(lambda *_: calls.append(1))
    stepper = Stepper(method, setup.runtime, 0.1, 0.9, 0.0)
    judge, student = (copy.deepcopy(net.state_dict()) for net in (method.discriminator, method.student))
    soft = None
    with method.reading():
        reference = copy.deepcopy(method.discriminator)
        parts = stepper.step(batch, LATE)
        soft = target(method, batch, epoch=5)
    assert calls == [1] and not method._soft
    assert set(parts) == {"ce", "kl", "adversarial", "discriminator", "total"}
    assert not torch.equal(student["fc.weight"], method.student.state_dict()["fc.weight"])
    # Adam's first step: the constant rate, in the direction of the discriminator's own gradient alone.
    for name, value in method.discriminator.state_dict().items():
        assert ((value - judge[name]).abs() < 1.001e-4).all()
    outputs = (build_twin(setup, method).train()(batch.images) / method.settings.tau).softmax(1).detach()
    real, fake = reference(soft), reference(outputs)
    F.binary_cross_entropy_with_logits(
        torch.cat([real, fake]), torch.cat([torch.ones_like(real), torch.zeros_like(fake)])
    ).backward()  # type: ignore[no-untyped-call]
    for ours, theirs in zip(method.discriminator.parameters(), reference.parameters(), strict=True):
        assert theirs.grad is not None
        moved = ours.detach() - theirs.detach()
        clear = theirs.grad.abs() > 1e-6
        assert torch.equal(moved[clear].sign(), -theirs.grad[clear].sign())


def build_twin(setup: Setup, method: Lwkd) -> nn.Module:
    """The student before any step."""
    return Lwkd(setup, method.config).student


def test_halves_of_a_batch_do_the_same_without_batch_norms(setup: Setup) -> None:
    """Also if memory ends after the student's pass: its outputs are not taken for those of a half."""
    batch = first_batch(setup)

    def trained(parts: int) -> tuple[Lwkd, dict[str, Tensor]]:
        method = Lwkd(setup, config_of(setup))
        method.student.eval()  # batch norms couple the images
        stepper = Stepper(method, setup.runtime, 0.1, 0.9, 0.0)
        stepper.micro_batches = parts
        if parts > 1:
            method.losses(batch, LATE, STUDENT)
        return method, stepper.step(batch, LATE)

    (whole, expected), (halves, found) = trained(1), trained(2)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6)
    for ours, theirs in zip(halves.student.parameters(), whole.student.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("loss", [{}, {"adversarial": 0.0}, {"conditional": True, "classes": "permuted"}])
def test_a_resume_is_exact(setup: Setup, loss: dict[str, Any]) -> None:
    config = config_of(setup, loss)
    whole, broken = Distiller(config, setup), Distiller(config, setup)
    whole.run_epoch(), whole.run_epoch(), broken.run_epoch()
    again = Distiller(config, setup)
    again.load_state_dict(copy.deepcopy(broken.state_dict()))
    again.run_epoch()
    ours, theirs = again.method.state_dict(), whole.method.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours) and ours.keys() == theirs.keys()
    assert ("discriminator.0.weight" in ours) == (loss != {"adversarial": 0.0}) and "targets" not in ours
    assert [m.losses for m in again.history] == [m.losses for m in whole.history]


def test_only_the_student_is_kept_and_the_teacher_is_not_read(setup: Setup) -> None:
    config = config_of(setup)
    other = Setup.of(
        build_model("cifar_resnet8", 10, setup.data.image_shape), setup.blocks, setup.data, setup.runtime,
        stages=setup.stages,
    )  # fmt: skip
    curves = []
    for each in (setup, other):
        distiller = Distiller(config, each)
        curves.append(distiller.run_epoch().losses)
        built = build_student(each.teacher, each.blocks, config.student, config.seed)
        assert distiller.student.state_dict().keys() == built.state_dict().keys()
    assert curves[0] == curves[1] and not Lwkd.needs_teacher


def test_its_baseline_is_cross_entropy_alone(setup: Setup) -> None:
    config = config_of(setup)
    plain = config.model_copy(update={"loss": Lwkd.baseline(config.loss)})
    method = Lwkd(setup, plain)
    assert [phase.name for phase in method.phases()] == [STUDENT]
    assert list(method.losses(first_batch(setup), LATE, STUDENT)) == ["ce"]


@pytest.mark.parametrize("targets", ["mean", "handmade", "smoothing"])
def test_controls_train(setup: Setup, targets: str) -> None:
    metrics = Distiller(config_of(setup, {"targets": targets}), setup).run_epoch()
    assert all(math.isfinite(value) for value in metrics.losses.values())
    assert metrics.losses["kl"] > 0


def test_a_bank_that_does_not_fit_into_memory_is_refused(
    setup: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lwkd, "default_limit", lambda: 4 * 10 * 10 * 40 - 1)
    with pytest.raises(InputError, match=r"40 rows for each of 10 classes .* lower images_per_class"):
        make_stages(setup, [("lwkd", LwkdConfig(**SMALL))], tmp_path)


def test_the_stage_is_made_once_for_settings_that_it_does_not_read(setup: Setup, tmp_path: Path) -> None:
    same = [LwkdConfig(**SMALL, tau=tau, targets=targets) for tau in (1, 5) for targets in ("bank", "mean")]
    found = make_stages(setup, [("lwkd", loss) for loss in same], tmp_path)
    assert len(found) == 1 and set(found) == set(setup.stages)
    (ours,), (theirs,) = found.values(), setup.stages.values()
    assert torch.equal(ours["logits"], theirs["logits"]) and 0 < ours["accuracy"] <= 1
