"""The method adain: where it compares, what its parts are, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trainables.blocks.blocks import Block, find_blocks
from trainables.config import DataConfig, DistillConfig, OptimConfig, StudentSpec
from trainables.data.dataset import ImageData
from trainables.data.load import load_data
from trainables.errors import InputError
from trainables.methods.adain import Adain, AdainConfig
from trainables.methods.base import Batch, Progress, Setup
from trainables.methods.terms.logits import logit_loss
from trainables.network.architectures import build_model
from trainables.network.reset import recalibrate_batchnorm
from trainables.network.taps import Taps
from trainables.runtime.runtime import Runtime
from trainables.runtime.seeds import seeded
from trainables.training.loop import Distiller

START = Progress(0, 10, 5)


@pytest.fixture(scope="module")
def teacher(data: ImageData, runtime: Runtime) -> nn.Module:
    """Two blocks a stage, and batch norms with statistics of their own."""
    with seeded(0):
        model = build_model("cifar_resnet14", 10, data.image_shape)
    recalibrate_batchnorm(model, data.eval_batches("train", runtime), runtime)
    return model.eval()


@pytest.fixture(scope="module")
def setup(teacher: nn.Module, data: ImageData, runtime: Runtime) -> Setup:
    return Setup.of(teacher, find_blocks(teacher, data.image_shape), data, runtime)


def method_of(setup: Setup, replaced: list[int] | None = None, **settings: Any) -> Adain:
    blocks = [setup.blocks[i] for i in (range(6) if replaced is None else replaced)]
    spec = StudentSpec(widths={block.name: 0.5 for block in blocks}, fuse=False)
    loss = AdainConfig(**settings)
    config = DistillConfig(method="adain", student=spec, loss=loss, optim=OptimConfig(batch_size=32))
    return Adain(setup, config)


def first_batch(setup: Setup) -> Batch:
    return Batch(*next(setup.data.train_steps(32, 0, 0, setup.runtime)))


def parts_of(method: Adain, progress: Progress = START) -> dict[str, Tensor]:
    with method.reading():
        return method.losses(first_batch(method.setup), progress, "student")


def names(method: Adain) -> list[str]:
    return [block for span in method.points for block in span.blocks]


def test_points_are_span_ends_or_the_last_of_each_resolution(setup: Setup) -> None:
    blocks = [block.name for block in setup.blocks]
    assert len(blocks) == 6
    # The last map goes through an average and a linear layer: its deviations have no effect.
    assert names(method_of(setup, points="spans")) == blocks[:5]
    assert names(method_of(setup, points="random")) == blocks[:5]
    assert names(method_of(setup)) == [blocks[1], blocks[3], blocks[4]]
    # Where the teacher goes on after the last replaced block, its map has effect.
    assert names(method_of(setup, replaced=[0, 2, 4], points="spans")) == [blocks[0], blocks[2], blocks[4]]


def slow_parts(setup: Setup, method: Adain, react: str) -> tuple[float, float]:
    """Both terms at every point, in float64, with hooks on the teacher."""
    batch = first_batch(setup)
    double = setup.teacher.double()
    try:
        with torch.no_grad(), Taps(double, [span.last for span in method.points]) as theirs:
            logits = double(batch.images.double())
            teacher_maps = dict(theirs.outputs)
        method.student.train()
        with torch.no_grad(), Taps(method.student, [span.first for span in method.points]) as ours:
            method.student(batch.images)
            student_maps = {path: each.double() for path, each in ours.outputs.items()}
        stat = answers = 0.0
        for span in method.points:
            a, b = student_maps[span.first], teacher_maps[span.last]
            means = [each.mean((2, 3), keepdim=True) for each in (a, b)]
            stds = [
                ((each - mean).square().mean((2, 3), keepdim=True) + 1e-5).sqrt()
                for each, mean in zip((a, b), means, strict=True)
            ]
            gaps = (means[0] - means[1]).square().sum() + (stds[0] - stds[1]).square().sum()
            stat += float(gaps / (means[1].square().sum() + stds[1].square().sum()))
            changed = (b - means[1]) / stds[1] * stds[0] + means[0]
            module = double.get_submodule(span.last)
            hook = module.register_forward_hook(lambda *_, changed=changed: changed)
            with torch.no_grad():
                answer = double(batch.images.double())
            hook.remove()
            if react == "mse":
                answers += float((answer - logits).square().mean())
            else:
                answers += float(logit_loss(answer, logits, 4.0))
        return stat, answers
    finally:
        setup.teacher.float()


@pytest.mark.parametrize("react", ["mse", "kl"])
@pytest.mark.parametrize("points", ["spans", "stages"])
def test_parts_are_weighted_sums_over_the_points(setup: Setup, points: str, react: str) -> None:
    settings = {"points": points, "react": react}
    method = method_of(setup, beta_stat=0.5, beta_adain=3.0, alpha=0.3, **settings)
    stat, answers = slow_parts(setup, method, react)
    parts = parts_of(method_of(setup, beta_stat=0.5, beta_adain=3.0, alpha=0.3, **settings))
    assert list(parts) == ["ce", "kl", "stat", "adain"]
    assert parts["stat"].item() == pytest.approx(0.5 * stat, rel=1e-3)
    assert parts["adain"].item() == pytest.approx(3 * answers, rel=1e-3)


def test_a_random_point_stands_for_all(setup: Setup) -> None:
    method = method_of(setup, points="random")
    seen: dict[float, float] = {}
    for step in range(40):
        parts = parts_of(method, Progress(step, 40, 40))
        seen[round(parts["stat"].item(), 4)] = parts["adain"].item()
    whole = parts_of(method_of(setup, points="spans"))
    assert len(seen) == len(method.points) == 5
    assert sum(seen) / 5 == pytest.approx(whole["stat"].item(), rel=1e-2)
    assert sum(seen.values()) / 5 == pytest.approx(whole["adain"].item(), rel=1e-2)
    again = [parts_of(method, Progress(step, 40, 40))["stat"].item() for step in (7, 8, 7)]
    assert again[0] == pytest.approx(again[2], rel=1e-5)


def test_equal_maps_teach_nothing(setup: Setup) -> None:
    method, batch = method_of(setup, points="spans"), first_batch(setup)
    with method.reading():
        signals = method.teach(batch.images, batch.index)
        method.maps.update({span.first: signals.maps[span.last] for span in method.points})
        parts = method._transfer(batch.images, signals, START)
    assert parts["stat"].item() == 0.0
    assert parts["adain"].item() == pytest.approx(0.0, abs=1e-6)


def test_gradients_reach_the_student_before_each_point_alone(setup: Setup) -> None:
    method = method_of(setup, replaced=[0, 2, 4], points="spans", alpha=0.0, beta_stat=0.0)
    parts = parts_of(method)
    parts["adain"].backward()
    assert all(p.grad is None for p in setup.teacher.parameters())
    for index in (0, 2, 4):
        module = method.student.get_submodule(setup.blocks[index].members[0])
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())
    # Behind the last point there is nothing to learn from statistics.
    assert all(p.grad is None for p in method.student.get_submodule("fc").parameters())


def test_clamped_maps_have_no_negative_values_where_blocks_end_in_a_relu(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    lowest = {}
    for clamp in (False, True):
        method = method_of(setup, points="spans", clamp=clamp)
        answer, found = method._tails.answer, []

        def watch(
            images: Tensor, maps: Any, point: str, changed: Tensor, answer: Any = answer, found: Any = found
        ) -> Tensor:
            found.append(changed.min().item())
            out: Tensor = answer(images, maps, point, changed)
            return out

        monkeypatch.setattr(method._tails, "answer", watch)
        parts_of(method)["adain"].backward()
        lowest[clamp] = min(found)
    assert {span.activation for span in method.points} == {"relu"}
    assert lowest[False] < -0.01 and lowest[True] == 0.0


def test_terms_without_weight_are_not_computed(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    only_stat = method_of(setup, alpha=0.0, beta_adain=0.0)
    monkeypatch.setattr(only_stat._tails, "answer", None)
    with only_stat.reading():
        batch = first_batch(setup)
        signals = only_stat.teach(batch.images, batch.index)
        assert signals.logits is None
        assert set(signals.maps) == {span.last for span in only_stat.points}
    assert list(parts_of(only_stat)) == ["ce", "stat"]
    assert list(parts_of(method_of(setup, beta_stat=0.0))) == ["ce", "kl", "adain"]
    assert list(parts_of(method_of(setup, beta_stat=0.0, beta_adain=0.0))) == ["ce", "kl"]


@pytest.mark.parametrize("replaced", [[], [5]])
def test_a_student_without_a_point_learns_from_logits(setup: Setup, replaced: list[int]) -> None:
    method = method_of(setup, replaced=replaced)
    assert not method.points and list(parts_of(method)) == ["ce", "kl"]


def test_frozen_kept_parts_and_images_without_augmentation(teacher: nn.Module, runtime: Runtime) -> None:
    fixed = load_data(DataConfig(name="digits", train_limit=100))
    blocks: tuple[Block, ...] = find_blocks(teacher, fixed.image_shape)
    setup = Setup.of(teacher, blocks, fixed, runtime)
    spec = StudentSpec(widths={blocks[i].name: 0.5 for i in (2, 4)})
    config = DistillConfig(
        method="adain", student=spec, epochs=2, train="modules", optim=OptimConfig(batch_size=50)
    )
    distiller = Distiller(config, setup)
    kept = {name: p.clone() for name, p in distiller.student.named_parameters() if not p.requires_grad}
    before, _ = distiller.run_epoch(), distiller.run_epoch()
    assert distiller.history[1].losses["adain"] < before.losses["adain"]
    assert kept and all(
        torch.equal(p, kept[name]) for name, p in distiller.student.named_parameters() if name in kept
    )


@pytest.mark.parametrize(
    ("settings", "size", "message"), [({"logits": "dist"}, 31, "batch_size"), ({"logits": "dkd"}, 32, None)]
)
def test_logit_terms_are_checked(setup: Setup, settings: Any, size: int, message: str | None) -> None:
    config = DistillConfig(method="adain", loss=AdainConfig(**settings), optim=OptimConfig(batch_size=size))
    if message is None:
        assert "dkd" in parts_of(Adain(setup, config))
    else:
        with pytest.raises(InputError, match=message):
            Adain(setup, config)


def test_settings_without_effect_are_named() -> None:
    assert AdainConfig(beta_adain=0.0).unused() >= {"react", "clamp"}
    assert "points" in AdainConfig(beta_adain=0.0, beta_stat=0.0).unused()
    assert not AdainConfig().unused()
