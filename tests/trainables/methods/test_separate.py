"""Modules in the teacher for a separate student: the two losses by hand, pairs of maps, refusals, metrics."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from trainables.blocks.blocks import find_blocks
from trainables.config import DataConfig, DistillConfig, OptimConfig, RuntimeConfig, StudentSpec
from trainables.data.load import load_data
from trainables.errors import InputError
from trainables.methods.base import Batch, Progress, Setup
from trainables.methods.separate import MODULES, Separate
from trainables.network.architectures import build_model
from trainables.network.evaluate import evaluate
from trainables.network.taps import Taps
from trainables.runtime.runtime import resolve
from trainables.runtime.seeds import seeded
from trainables.student.pairs import Point, paired, points_of, stage_ends, student_taps
from trainables.student.regressor import Regressor
from trainables.training.loop import Distiller, distill
from trainables.training.step import Stepper


@pytest.fixture(scope="module")
def setup() -> Setup:
    data = load_data(DataConfig(name="digits", train_limit=100))
    with seeded(0):
        teacher = build_model("cifar_resnet14", 10, data.image_shape).eval()
    runtime = resolve(RuntimeConfig(device="cpu", precision="fp32", threads=1, eval_batch=64))
    return Setup.of(teacher, find_blocks(teacher, data.image_shape), data, runtime)


def config_of(
    setup: Setup, method: str = "separate", arch: str | None = "wrn10_2", **loss: Any
) -> DistillConfig:
    names = ["layer1.1", "layer2.0", "layer3.0", "layer3.1"] if method == "separate" else []
    student = StudentSpec(arch=arch, widths=dict.fromkeys(names, 0.5))
    optim = OptimConfig(batch_size=32, lr=0.02)
    return DistillConfig(student=student, method=method, loss=loss, optim=optim, epochs=2)  # type: ignore[arg-type]


def first_batch(setup: Setup) -> Batch:
    return Batch(*next(setup.data.train_steps(32, 0, 0, setup.runtime)))


def error(ours: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return (ours - target).square().sum() / target.square().sum()


def test_both_losses_are_those_of_the_formula(setup: Setup) -> None:
    loss = {"alpha": 0.3, "tau": 2.0, "beta": 1.5, "eta": 0.2, "rho": 0.7}
    method = Distiller(config_of(setup, **loss), setup).method
    assert isinstance(method, Separate)
    assert [span.blocks for span in method.spans] == [("layer1.1",), ("layer2.0",), ("layer3.0", "layer3.1")]
    batch, progress = first_batch(setup), Progress(0, 8, 4)
    with method.reading():
        modules = method.losses(batch, progress, MODULES)
        student = method.losses(batch, progress, "student")
    # By hand, with a teacher whose spans are walked through one after the other.
    teacher, images, labels = setup.teacher, batch.images, batch.labels
    ends = [span.last for span in method.spans]
    with Taps(teacher, ends) as taps, torch.no_grad():
        z, targets = teacher(images), [taps.outputs[end] for end in ends]
    taps_of = [f"layer{stage}.0" for stage in (1, 2, 3)]
    with Taps(method.student, taps_of) as seen:
        s, maps = method.student(images), [seen.outputs[path] for path in taps_of]
    one, two, three = method.stands
    x = teacher.layer1[0](teacher.relu(teacher.bn1(teacher.conv1(images))))
    a1 = one.adapt(x)
    r1 = one.restore(a1)
    a2 = two.adapt(r1)
    r2 = two.restore(a2)
    a3 = three.adapt(teacher.layer2[1](r2))
    r3 = three.restore(a3)
    z_a = teacher.fc(teacher.avgpool(r3).flatten(1))
    made, restored = [a1, a2, a3], [r1, r2, r3]

    def kl(student_logits: torch.Tensor) -> torch.Tensor:
        log = (student_logits / 2).log_softmax(1)
        return 4 * F.kl_div(log, (z / 2).softmax(1), reduction="batchmean")

    expected = {
        "modules_ce": F.cross_entropy(z_a, labels),
        "modules_kl": kl(z_a),
        "modules_teacher": 0.7 * sum(error(r, f) for r, f in zip(restored, targets, strict=True)),
        "modules_student": 0.2 * sum(error(a, f) for a, f in zip(made, maps, strict=True)),
        "ce": 0.7 * F.cross_entropy(s, labels),
        "kl": 0.3 * kl(s),
        "feature": 1.5 * sum(error(f, a) for f, a in zip(maps, made, strict=True)),
    }
    found = modules | student
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)


def test_each_phase_moves_its_own_networks_and_nothing_of_the_teacher(setup: Setup) -> None:
    method = Distiller(config_of(setup), setup).method
    before = {name: value.clone() for name, value in setup.teacher.state_dict().items()}
    batch, progress = first_batch(setup), Progress(0, 8, 4)
    with method.reading():
        for phase, ours, others in (
            (MODULES, method.stands, method.student),
            ("student", method.student, method.stands),
        ):
            total = torch.stack(list(method.losses(batch, progress, phase).values())).sum()
            mine = torch.autograd.grad(total, list(ours.parameters()), retain_graph=True)
            assert all(grad.abs().sum() > 0 for grad in mine if grad.numel() > 1)
            none = torch.autograd.grad(total, list(others.parameters()), allow_unused=True)
            assert all(grad is None for grad in none)
    after = setup.teacher.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert not any("teacher" in name or "grafted" in name for name in method.state_dict())


def test_half_batches_are_computed_in_both_phases(setup: Setup) -> None:
    method = Distiller(config_of(setup), setup).method
    stepper = Stepper(method, setup.runtime, 0.01, 0.9, 0.0)
    stepper.micro_batches = 2
    with method.reading():
        parts = stepper.step(first_batch(setup), Progress(0, 8, 4))
    assert all(torch.isfinite(part) for part in parts.values())


@pytest.mark.parametrize("eta", [0.0, 0.1, 1.0])
def test_the_accuracy_of_the_teacher_with_modules_is_recorded(setup: Setup, eta: float) -> None:
    distiller = Distiller(config_of(setup, eta=eta), setup)
    metrics = distiller.run_epoch()
    method = distiller.method
    assert isinstance(method, Separate)
    expected = evaluate(method._grafted[0], setup.data.eval_batches("val", setup.runtime, 64), setup.runtime)
    assert metrics.metrics["teacher_with_modules"] == expected.accuracy


def test_without_the_feature_term_there_are_no_modules(setup: Setup) -> None:
    method = Distiller(config_of(setup, beta=0.0), setup).method
    assert [phase.name for phase in method.phases()] == ["student"] and method.metrics() == {}
    assert not list(method.stands.parameters())


@pytest.mark.parametrize(
    ("method", "spec", "loss", "message"),
    [
        (
            "separate",
            StudentSpec(widths={"layer1.1": 0.5}),
            {},
            "needs a separate student: set space.student",
        ),
        ("fitnet", StudentSpec(), {}, "needs a separate student"),
        ("separate", StudentSpec(arch="wrn10_1"), {}, "expected blocks of the teacher that modules replace"),
        ("separate", StudentSpec(arch="wrn10_1", widths={"no": 0.5}), {}, "no block no; the blocks are"),
        ("ama", StudentSpec(arch="wrn10_1"), {}, "ama: a separate student .* set beta to 0"),
        ("ama", StudentSpec(arch="wrn10_1", widths={"layer1.1": 0.5}), {"beta": 0.0}, "no effect"),
        ("ama", StudentSpec(arch="wrn11_1"), {"beta": 0.0}, "space.student: wrn11_1: depth must be"),
        ("fitnet", StudentSpec(arch="torchvision:vit_b_32"), {}, "layout nchw, the student gives tokens"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_message(
    method: str, spec: StudentSpec, loss: dict[str, Any], message: str, setup: Setup
) -> None:
    config = DistillConfig.model_validate({"method": method, "student": spec, "loss": loss})
    with pytest.raises(InputError, match=message):
        Distiller(config, setup)


def test_a_separate_student_learns_from_logits_alone_with_ama(setup: Setup) -> None:
    loss = {"beta": 0.0, "supervision": "uniform"}
    result = distill(config_of(setup, "ama", **loss), setup)
    assert {"ce", "kl"} == set(result.history[-1].losses)
    assert sum(p.numel() for p in result.student.parameters()) == sum(
        p.numel() for p in build_model("wrn10_2", 10, setup.data.image_shape).parameters()
    )


def test_maps_are_paired_by_size_and_else_by_depth(setup: Setup) -> None:
    ends = stage_ends(points_of(setup.blocks))
    assert [point.path for point in ends] == ["layer1.1", "layer2.1", "layer3.1"]
    shallow = [Point("early", (8, 5, 5), "nchw", "relu", 0.5), Point("late", (9, 3, 3), "nchw", "relu", 1.0)]
    assert [tap.path for tap in paired(ends, shallow)] == ["early", "early", "late"]
    same = [*shallow, Point("same", (7, 8, 8), "nchw", "relu", 1.0)]
    assert [tap.path for tap in paired(ends, same)] == ["same", "early", "late"]
    student = build_model("torchvision:mobilenet_v2", 10, setup.data.image_shape)
    taps = student_taps(student, setup.data.image_shape)
    assert len({tap.size for tap in taps}) == len(taps) > 1 and student.training


@pytest.mark.parametrize(
    ("before", "after", "layout"),
    [
        ((4, 8, 8), (6, 8, 8), "nchw"),
        ((4, 8, 8), (6, 3, 5), "nchw"),
        ((4, 3, 3), (6, 8, 8), "nchw"),
        ((8, 8, 4), (3, 5, 6), "nhwc"),
        ((10, 4), (7, 6), "tokens"),
    ],
)
def test_regressors_give_another_shape(before: tuple[int, ...], after: tuple[int, ...], layout: str) -> None:
    made = Regressor(before, after, layout, "relu")
    found = made(torch.randn(3, *before))
    assert found.shape == (3, *after) and (found >= 0).all()
    assert sum(isinstance(part, nn.Conv1d | nn.Conv2d) for part in made.modules()) == 1
