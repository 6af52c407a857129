"""Contrast with the teacher: the formula, its defaults, what gets gradients, what is refused."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from trainables.config import DistillConfig, StudentSpec
from trainables.errors import InputError
from trainables.methods.base import Batch, Progress, Setup
from trainables.methods.crd import Crd, CrdConfig
from trainables.methods.terms.logits import LOGIT_TERMS
from trainables.network.taps import Inputs
from trainables.training.loop import Distiller

LATE = Progress(6, 8, 4)


def config_of(setup: Setup, loss: dict[str, Any], **fields: Any) -> DistillConfig:
    spec = StudentSpec(widths={block.name: 0.5 for block in setup.blocks[1:]})
    given = {"method": "crd", "student": spec, "epochs": 2, "optim": {"batch_size": 25}, "loss": loss}
    return DistillConfig.model_validate(given | fields)


def first_batch(setup: Setup) -> Batch:
    return Batch(*next(setup.data.train_steps(25, 0, 0, setup.runtime)))


def parts_of(method: Crd, batch: Batch) -> dict[str, Tensor]:
    with method.reading():
        return method.losses(batch, LATE, "student")


@pytest.mark.parametrize("term", ["kl", "dkd", "standardised"])
def test_it_is_the_formula(setup: Setup, term: str) -> None:
    method = Crd(setup, config_of(setup, {"alpha": 0.3, "tau": 2.0, "gamma": 0.4, "logits": term}))
    twin, batch = copy.deepcopy(method), first_batch(setup)
    parts = parts_of(method, batch)
    assert list(parts) == ["ce", term, "contrast"]
    with Inputs(twin.student, ["fc"]) as ours, torch.no_grad(), Inputs(setup.teacher, ["fc"]) as theirs:
        student, teacher = twin.student.train()(batch.images), setup.teacher(batch.images)
        pair = [ours.inputs["fc"], theirs.inputs["fc"]]
    assert parts["ce"].item() == pytest.approx(0.7 * F.cross_entropy(student, batch.labels).item())
    expected = 0.3 * LOGIT_TERMS[term](student, teacher, batch.labels, 2.0).item()
    assert parts[term].item() == pytest.approx(expected, rel=1e-4)
    contrast = twin.contrast.loss(pair, batch.labels, batch.index, LATE.step).item()
    assert parts["contrast"].item() == pytest.approx(0.4 * contrast, rel=1e-5)


def test_student_and_both_heads_learn_and_the_teacher_does_not(setup: Setup) -> None:
    method = Crd(setup, config_of(setup, {}))
    parts_of(method, first_batch(setup))["contrast"].backward()
    assert method.student.get_submodule("conv1").weight.grad.any()
    assert len(method.contrast.heads) == len(method.contrast.banks) == 2
    assert all(head.weight.grad.any() for head in method.contrast.heads)
    assert all(p.grad is None for p in setup.teacher.parameters())


def test_banks_follow_the_images_seen(setup: Setup) -> None:
    distiller = Distiller(config_of(setup, {}), setup)
    method = distiller.method
    assert isinstance(method, Crd)
    before = [bank.rows.clone() for bank in method.contrast.banks]
    distiller.run_epoch()
    for bank, rows in zip(method.contrast.banks, before, strict=True):
        assert (bank.rows != rows).any(1).all()
        torch.testing.assert_close(bank.rows.norm(dim=1), torch.ones(len(rows)))


def test_defaults_are_the_published_ones() -> None:
    config = CrdConfig()
    assert (config.gamma, config.negatives, config.contrast_tau, config.logits) == (0.8, 16384, 0.07, "kl")
    assert config.unused() == set()
    assert CrdConfig(gamma=0.0).unused() == {"contrast_tau", "negatives"}
    assert CrdConfig(alpha=0.0).unused() == {"tau", "logits"}


@pytest.mark.parametrize("name", ["PermutedCrd", "PermutedMcl"])
def test_the_benchmarks_control_differs_in_its_positives_alone(setup: Setup, name: str) -> None:
    kind = "crd" if name == "PermutedCrd" else "mcl"
    straight = Distiller(config_of(setup, {}, method=kind), setup).method
    control = Distiller(config_of(setup, {}, method=f"import:benchmarks.permuted:{name}"), setup).method
    assert all(torch.equal(a, b) for a, b in zip(straight.parameters(), control.parameters(), strict=True))
    ours, theirs = parts_of(straight, first_batch(setup)), parts_of(control, first_batch(setup))
    assert [part for part in ours if not torch.equal(ours[part], theirs[part])] == ["contrast"]


def test_what_the_contrast_needs_is_refused_before_training(setup: Setup) -> None:
    with pytest.raises(InputError, match=r"optim.batch_size >= 2, got 1"):
        Crd(setup, config_of(setup, {}, optim={"batch_size": 1}))
    small = dataclasses.replace(setup.data, memory_limit=1e-6)
    with pytest.raises(InputError, match=r"2 memory banks of 100 images .* data.memory_limit"):
        Crd(dataclasses.replace(setup, data=small), config_of(setup, {}))
    with pytest.raises(InputError, match=r"dist .* optim.batch_size >= 32"):
        Crd(setup, config_of(setup, {"logits": "dist"}))
    Crd(dataclasses.replace(setup, data=small), config_of(setup, {"gamma": 0.0}, optim={"batch_size": 1}))
