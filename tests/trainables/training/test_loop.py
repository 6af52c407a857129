"""The distillation loop on small real models and digits."""

from __future__ import annotations

import dataclasses
import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from trainables.blocks.blocks import Block, find_blocks
from trainables.config import DataConfig, DistillConfig, OptimConfig, RuntimeConfig, StudentSpec
from trainables.data.dataset import ImageData
from trainables.data.load import load_data
from trainables.errors import InputError
from trainables.loss_config import LossConfig
from trainables.methods.ama import MAX_CANDIDATES, candidate_maps
from trainables.methods.base import Setup
from trainables.network.architectures import build_model
from trainables.network.evaluate import evaluate
from trainables.runtime.runtime import Runtime, resolve
from trainables.runtime.seeds import seeded
from trainables.student.build import build_span, build_student
from trainables.student.spans import spans_of
from trainables.training.checkpoint import load_checkpoint, previous_of
from trainables.training.loop import Distiller, TrainingDiverged, distill
from trainables.training.metrics import EpochMetrics
from trainables.training.optim import make_optimizer

TIMES = (
    "seconds",
    "images_per_second",
    "data_seconds",
    "step_seconds",
    "eval_seconds",
    "host_mib",
    "gpu_mib",
)


class Dropped(nn.Module):
    """Two residual blocks with dropout behind them."""

    def __init__(self) -> None:
        super().__init__()
        self.net = build_model("cifar_resnet8", 10, (3, 8, 8))
        self.net.fc = nn.Sequential(nn.Dropout(0.3), self.net.fc)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.net(images)
        return logits


@pytest.fixture(scope="module")
def runtime() -> Runtime:
    return resolve(RuntimeConfig(device="cpu", precision="fp32", threads=1))


@pytest.fixture(scope="module")
def data() -> ImageData:
    return load_data(DataConfig(name="digits", train_limit=250))


@pytest.fixture(scope="module")
def teacher(data: ImageData, runtime: Runtime) -> nn.Module:
    """A ResNet-8 that has learned 250 digits for a second or two."""
    with seeded(0):
        model = build_model("cifar_resnet8", 10, data.image_shape)
    optimizer = make_optimizer(model, 0.05, 0.9, 5e-4)
    for epoch in range(12):
        for images, labels in data.train_batches(50, 0, epoch, runtime):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
    optimizer.zero_grad()
    return model.eval()


@pytest.fixture(scope="module")
def blocks(teacher: nn.Module, data: ImageData) -> tuple[Block, ...]:
    return find_blocks(teacher, torch.zeros(1, *data.image_shape))


def config_of(blocks: tuple[Block, ...], replaced: int = 2, **kwargs: Any) -> DistillConfig:
    """The last blocks replaced, at width 0.5."""
    widths = {block.name: 0.5 for block in blocks[len(blocks) - replaced :]}
    options: dict[str, Any] = {"epochs": 3, "optim": OptimConfig(batch_size=50)}
    return DistillConfig(student=StudentSpec(widths=widths), **{**options, **kwargs})


def numbers(history: Any) -> list[dict[str, Any]]:
    """Everything but the times."""
    return [{k: v for k, v in metrics.as_dict().items() if k not in TIMES} for metrics in history]


def same_weights(a: nn.Module, b: nn.Module) -> bool:
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


def test_student_comes_near_its_teacher(
    teacher: nn.Module, blocks: tuple[Block, ...], data: ImageData, runtime: Runtime
) -> None:
    config = config_of(blocks, epochs=8, loss=LossConfig(alpha=0.5, beta=1.0))
    result = distill(config, Setup.of(teacher, blocks, data, runtime))
    first, last = result.history[0], result.history[-1]
    target = evaluate(teacher, data.eval_batches("val", runtime), runtime)
    assert target.accuracy > 0.9
    assert last.val_accuracy > target.accuracy - 0.05
    assert last.train_loss < first.train_loss
    assert all(last.losses[name] < first.losses[name] for name in ("feature", "kl"))
    assert not result.student.training
    assert [metrics.epoch for metrics in result.history] == list(range(1, 9))
    scored = evaluate(result.student, data.eval_batches("val", runtime), runtime)
    assert (scored.accuracy, scored.loss) == (last.val_accuracy, last.val_loss)


def test_teacher_is_left_as_it_was(
    teacher: nn.Module, blocks: tuple[Block, ...], data: ImageData, runtime: Runtime
) -> None:
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    Distiller(config_of(blocks, epochs=1), Setup.of(teacher, blocks, data, runtime)).run_epoch()
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())
    assert not teacher.training and all(param.grad is None for param in teacher.parameters())
    assert not any(module._forward_hooks for module in teacher.modules())


@pytest.mark.parametrize("supervision", ["uniform", "adaptive"])
def test_the_parts_of_the_loss_add_up(
    supervision: str, teacher: nn.Module, blocks: tuple[Block, ...], data: ImageData, runtime: Runtime
) -> None:
    loss = LossConfig.model_validate({"alpha": 0.3, "beta": 0.5, "supervision": supervision})
    config = config_of(blocks, epochs=1, loss=loss)
    metrics = Distiller(config, Setup.of(teacher, blocks, data, runtime)).run_epoch()
    parts = {"ce", "kl", "feature"} | ({"regulariser"} if supervision == "adaptive" else set())
    assert metrics.losses.keys() == parts and all(value > 0 for value in metrics.losses.values())
    assert metrics.train_loss == pytest.approx(sum(metrics.losses.values()), rel=1e-5)
    row = metrics.as_dict()
    assert row["loss/ce"] == metrics.losses["ce"] and row["entropy"] == metrics.metrics["entropy"]
    assert EpochMetrics.from_dict(row) == metrics
    assert 0 < metrics.lr < config.optim.lr  # warmed up, and on its way down the cosine
    assert metrics.seconds > 0 and metrics.images_per_second > 0


def test_terms_without_weight_do_not_run_the_teacher(
    blocks: tuple[Block, ...], teacher: nn.Module, data: ImageData, runtime: Runtime
) -> None:
    calls = []
    handle = teacher.register_forward_hook(lambda *_: calls.append(1))
    try:
        config = config_of(blocks, epochs=1, loss=LossConfig(alpha=0.0, beta=0.0))
        metrics = Distiller(config, Setup.of(teacher, blocks, data, runtime)).run_epoch()
    finally:
        handle.remove()
    # The student is a deep copy, its hook included: only its own passes were counted.
    batches = data.steps_per_epoch(50) + sum(1 for _ in data.eval_batches("val", runtime))
    assert len(calls) == batches
    assert metrics.losses.keys() == {"ce"}


@pytest.mark.parametrize("adaptive", [False, True])
def test_resume_is_exact(adaptive: bool, data: ImageData, runtime: Runtime, tmp_path: Path) -> None:
    """With dropout, adaptive loss and momentum: nothing may be lost at the break."""
    teacher = Dropped().eval()
    blocks = find_blocks(teacher, torch.zeros(1, *data.image_shape))
    loss = LossConfig(supervision="adaptive" if adaptive else "uniform")
    config = config_of(blocks, loss=loss, epochs=4)
    whole = distill(config, Setup.of(teacher, blocks, data, runtime))
    path = tmp_path / "checkpoint.pt"
    seen: list[int] = []

    def stop_after_two(metrics: EpochMetrics) -> bool:
        seen.append(metrics.epoch)
        return metrics.epoch == 2

    broken = distill(config, Setup.of(teacher, blocks, data, runtime), report=stop_after_two, checkpoint=path)
    assert seen == [1, 2] and len(broken.history) == 2
    torch.rand(7)  # whatever ran in between
    resumed = distill(
        config,
        Setup.of(teacher, blocks, data, runtime),
        report=lambda m: seen.append(m.epoch),
        checkpoint=path,
    )
    assert seen == [1, 2, 3, 4]
    assert numbers(resumed.history) == numbers(whole.history)
    assert same_weights(resumed.student, whole.student)
    if adaptive:
        assert whole.history[-1].metrics["entropy"] < 1.0
    # Finished: read back, nothing trained.
    again = distill(
        config,
        Setup.of(teacher, blocks, data, runtime),
        report=lambda m: seen.append(m.epoch),
        checkpoint=path,
    )
    assert seen == [1, 2, 3, 4] and same_weights(again.student, whole.student)


def test_same_seed_same_numbers_other_seed_others(
    teacher: nn.Module, blocks: tuple[Block, ...], data: ImageData, runtime: Runtime
) -> None:
    runs = [
        numbers(
            distill(config_of(blocks, epochs=1, seed=seed), Setup.of(teacher, blocks, data, runtime)).history
        )
        for seed in (0, 0, 1)
    ]
    assert runs[0] == runs[1] != runs[2]


def test_damaged_checkpoint_falls_back(
    teacher: nn.Module,
    blocks: tuple[Block, ...],
    data: ImageData,
    runtime: Runtime,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    config, path = config_of(blocks), tmp_path / "checkpoint.pt"
    whole = distill(config, Setup.of(teacher, blocks, data, runtime), checkpoint=path)
    assert len(load_checkpoint(previous_of(path))["history"]) == 2
    path.write_bytes(path.read_bytes()[:5000])
    seen: list[int] = []
    with caplog.at_level(logging.WARNING):
        again = distill(
            config,
            Setup.of(teacher, blocks, data, runtime),
            report=lambda m: seen.append(m.epoch),
            checkpoint=path,
        )
    assert seen == [3] and "previous one" in caplog.text
    assert same_weights(again.student, whole.student)


def test_checkpoint_of_another_run_is_refused(
    teacher: nn.Module, blocks: tuple[Block, ...], data: ImageData, runtime: Runtime
) -> None:
    state = Distiller(config_of(blocks), Setup.of(teacher, blocks, data, runtime)).state_dict()
    with pytest.raises(InputError, match="made with another config"):
        Distiller(config_of(blocks, seed=5), Setup.of(teacher, blocks, data, runtime)).load_state_dict(state)
    with pytest.raises(InputError, match="made with another data"):
        other = dataclasses.replace(data, hash="0" * 16)
        Distiller(config_of(blocks), Setup.of(teacher, blocks, other, runtime)).load_state_dict(state)
    with pytest.raises(InputError, match="made with another teacher"):
        fresh = build_model("cifar_resnet8", 10, data.image_shape).eval()
        Distiller(config_of(blocks), Setup.of(fresh, blocks, data, runtime)).load_state_dict(state)
    with pytest.raises(InputError, match="format 2, got None"):
        Distiller(config_of(blocks), Setup.of(teacher, blocks, data, runtime)).load_state_dict({"epoch": 1})


def test_divergence_names_epoch_step_and_part(
    teacher: nn.Module, blocks: tuple[Block, ...], data: ImageData, runtime: Runtime
) -> None:
    config = config_of(blocks, optim=OptimConfig(lr=1e30, batch_size=2, warmup_epochs=0))
    seen: list[EpochMetrics] = []
    with pytest.raises(TrainingDiverged, match=r"epoch 1, by step 50 of 125: not finite: .*ce") as caught:
        distill(config, Setup.of(teacher, blocks, data, runtime), report=seen.append)
    assert "total" not in str(caught.value) and not seen


def test_divergence_of_the_last_step_shows_in_validation(
    teacher: nn.Module, blocks: tuple[Block, ...], data: ImageData, runtime: Runtime
) -> None:
    distiller = Distiller(config_of(blocks, epochs=2), Setup.of(teacher, blocks, data, runtime))
    fc = distiller.student.get_submodule("fc")
    # Only the backward pass of the last step is spoilt: its loss was still finite.
    steps: list[int] = []

    def spoil(grad: torch.Tensor) -> torch.Tensor:
        steps.append(1)
        return grad * math.nan if len(steps) == data.steps_per_epoch(50) else grad

    fc.weight.register_hook(spoil)  # type: ignore[union-attr,operator]
    with pytest.raises(TrainingDiverged, match="epoch 1: the validation loss is nan"):
        distiller.run_epoch()
    assert distiller.epoch == 0


def test_modules_alone_are_trained(
    teacher: nn.Module, blocks: tuple[Block, ...], data: ImageData, runtime: Runtime
) -> None:
    config = config_of(blocks, replaced=1, epochs=1, train="modules")
    distiller = Distiller(config, Setup.of(teacher, blocks, data, runtime))
    distiller.run_epoch()
    (span,) = distiller.method.spans
    start = build_student(teacher, blocks, config.student, config.seed).state_dict()
    changed = {
        key for key, value in distiller.student.state_dict().items() if not torch.equal(value, start[key])
    }
    assert changed and all(key.startswith(span.first + ".") for key in changed)
    kept = {key for key in start if not key.startswith(span.first)}
    assert any("running_mean" in key for key in kept)  # and none of them moved


def test_nothing_replaced_trains_and_starts_as_the_teacher(
    teacher: nn.Module, blocks: tuple[Block, ...], data: ImageData, runtime: Runtime
) -> None:
    score = evaluate(teacher, data.eval_batches("val", runtime), runtime)
    frozen = config_of(blocks, replaced=0, epochs=1, train="modules")
    metrics = Distiller(frozen, Setup.of(teacher, blocks, data, runtime)).run_epoch()
    assert (metrics.val_accuracy, metrics.val_loss) == (score.accuracy, score.loss)
    assert "feature" not in metrics.losses
    trained = Distiller(config_of(blocks, replaced=0, epochs=1), Setup.of(teacher, blocks, data, runtime))
    assert trained.run_epoch().val_loss != score.loss


def test_warm_starts(
    teacher: nn.Module, blocks: tuple[Block, ...], data: ImageData, runtime: Runtime
) -> None:
    stem = teacher.state_dict()["conv1.weight"]

    def start(**kwargs: Any) -> nn.Module:
        modules = kwargs.pop("modules", None)
        return Distiller(
            config_of(blocks, **kwargs), Setup.of(teacher, blocks, data, runtime, modules)
        ).student

    assert torch.equal(start(warm_start="teacher").state_dict()["conv1.weight"], stem)
    assert not torch.equal(start(warm_start="none").state_dict()["conv1.weight"], stem)
    assert not same_weights(start(warm_start="none"), start(warm_start="none", seed=1))
    config = config_of(blocks)
    spans = spans_of(blocks, config.student)
    library = {span.key: build_span(span, seed=77).state_dict() for span in spans}
    student = start(warm_start="library", modules=library)
    weights = student.state_dict()
    first = f"{spans[0].first}.reduce.0.weight"
    assert torch.equal(weights[first], library[spans[0].key]["reduce.0.weight"])
    # Batch-norm statistics were estimated anew, in the kept parts too.
    assert not torch.equal(weights["bn1.running_mean"], teacher.state_dict()["bn1.running_mean"])
    # A library that is there is not read unless asked for.
    plain = start(warm_start="teacher", modules=library).state_dict()
    assert not torch.equal(plain[first], weights[first])


def test_warm_starts_that_cannot_be(
    teacher: nn.Module, blocks: tuple[Block, ...], data: ImageData, runtime: Runtime
) -> None:
    config = config_of(blocks, warm_start="library")
    with pytest.raises(InputError, match="needs a module library"):
        Distiller(config, Setup.of(teacher, blocks, data, runtime))
    with pytest.raises(InputError, match=r"lacks layer.*@0\.5"):
        Distiller(config, Setup.of(teacher, blocks, data, runtime, {}))
    with pytest.raises(InputError, match="freezes the kept parts"):
        Distiller(
            config_of(blocks, warm_start="none", train="modules"), Setup.of(teacher, blocks, data, runtime)
        )


def test_candidate_maps_are_the_nearest_of_the_same_shape() -> None:
    model = build_model("cifar_resnet38", 10, (3, 8, 8)).eval()
    blocks = find_blocks(model, torch.zeros(1, 3, 8, 8))
    (span,) = spans_of(blocks, StudentSpec(widths={"layer2.3": 0.25}))
    assert candidate_maps(span, blocks, LossConfig()) == ["layer2.3"]
    paths = candidate_maps(span, blocks, LossConfig(supervision="adaptive"))
    assert paths == ["layer2.3", "layer2.2", "layer2.4", "layer2.1"]
    assert len(paths) == MAX_CANDIDATES


def test_mixed_precision_trains_and_keeps_fp32_weights(
    teacher: nn.Module, blocks: tuple[Block, ...], data: ImageData
) -> None:
    runtime = resolve(RuntimeConfig(device="cpu", precision="bf16", layout="channels_last", threads=1))
    config = config_of(blocks, epochs=2, loss=LossConfig(supervision="adaptive"))
    result = distill(config, Setup.of(teacher, blocks, data, runtime))
    assert {param.dtype for param in result.student.parameters()} == {torch.float32}
    assert result.history[1].train_loss < result.history[0].train_loss
