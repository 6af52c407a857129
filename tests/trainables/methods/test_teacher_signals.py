"""The teacher's side of a step: run as far and as often as needed, with the numbers it would have given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trainables.blocks.blocks import Block, find_blocks
from trainables.config import DataConfig, DistillConfig, OptimConfig, StudentSpec
from trainables.data.augment import Augment
from trainables.data.dataset import ImageData
from trainables.data.load import load_data
from trainables.loss_config import LossConfig
from trainables.methods.base import Setup
from trainables.methods.signals.teacher_signals import Supervisor
from trainables.network.architectures import build_model
from trainables.network.fold_batchnorm import folded
from trainables.network.reset import recalibrate_batchnorm
from trainables.network.taps import Taps
from trainables.runtime.runtime import Runtime
from trainables.runtime.seeds import seeded
from trainables.student.build import build_student
from trainables.student.spans import spans_of
from trainables.training.loop import Distiller


@pytest.fixture(scope="module")
def fixed() -> ImageData:
    """Images that are the same in every epoch."""
    return load_data(DataConfig(name="digits", train_limit=100))


@pytest.fixture(scope="module")
def changing() -> ImageData:
    """Images that are cropped and mirrored."""
    return load_data(DataConfig(name="digits", train_limit=100, augment="crop-flip"))


@pytest.fixture(scope="module")
def teacher(fixed: ImageData, runtime: Runtime) -> nn.Module:
    """A ResNet-8 whose batch norms have statistics of their own."""
    with seeded(0):
        model = build_model("cifar_resnet8", 10, fixed.image_shape)
    recalibrate_batchnorm(model, fixed.eval_batches("train", runtime), runtime)
    return model.eval()


@pytest.fixture(scope="module")
def blocks(teacher: nn.Module, fixed: ImageData) -> tuple[Block, ...]:
    return find_blocks(teacher, torch.zeros(1, *fixed.image_shape))


def calls_of(model: nn.Module) -> dict[str, int]:
    """Counts the calls of every module of `model` from here on."""
    counts: dict[str, int] = {}

    def count(path: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            counts[path] = counts.get(path, 0) + 1

        return hook

    for path, module in model.named_modules():
        module.register_forward_pre_hook(count(path))
    return counts


def batch(data: ImageData, runtime: Runtime) -> tuple[Tensor, Tensor]:
    images, _, order = next(data.train_steps(20, 0, 0, runtime))
    return images, order


def test_logits_and_maps_are_the_teachers(
    teacher: nn.Module, blocks: tuple[Block, ...], fixed: ImageData, changing: ImageData, runtime: Runtime
) -> None:
    for data in (fixed, changing):
        images, order = batch(data, runtime)
        with Taps(teacher, ["layer2.0"]) as taps:
            logits = teacher(images)
            expected = taps.outputs["layer2.0"]
        with Supervisor(teacher, blocks, data, runtime).teaching(["layer2.0"], True) as teach:
            signals = teach(images, order)
        assert signals.logits is not None
        torch.testing.assert_close(signals.logits, logits, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(signals.maps["layer2.0"], expected, rtol=1e-4, atol=1e-5)
        assert not signals.logits.requires_grad


def test_the_teacher_stops_after_the_last_map_that_is_read(
    teacher: nn.Module, blocks: tuple[Block, ...], changing: ImageData, runtime: Runtime
) -> None:
    supervisor = Supervisor(teacher, blocks, changing, runtime)
    images, order = batch(changing, runtime)
    counts = calls_of(supervisor.quick)
    with supervisor.teaching(["layer1.0", "layer2.0"], False) as teach:
        signals = teach(images, order)
    assert signals.logits is None and set(signals.maps) == {"layer1.0", "layer2.0"}
    assert counts["layer2.0"] == 1 and "layer3.0" not in counts and "fc" not in counts
    with supervisor.teaching(["layer1.0"], True) as teach:
        assert teach(images, order).logits is not None
    assert counts["fc"] == 1


def test_the_embedding_is_the_input_of_the_classifier(
    teacher: nn.Module, blocks: tuple[Block, ...], fixed: ImageData, changing: ImageData, runtime: Runtime
) -> None:
    for data in (fixed, changing):
        supervisor = Supervisor(teacher, blocks, data, runtime)
        images, order = batch(data, runtime)
        ran: list[int] = []
        supervisor.quick.get_submodule("fc").register_forward_hook(lambda *_, ran=ran: ran.append(1))
        with supervisor.teaching([], False, embedding=True) as teach:
            found = teach(images, order)
        assert found.logits is None and found.embedding is not None and not ran
        logits = teacher.get_submodule("fc")(found.embedding)
        assert logits.requires_grad, "layers can be trained on the embedding"
        torch.testing.assert_close(logits, teacher(images), rtol=1e-4, atol=1e-5)
        with supervisor.teaching(["layer1.0"], True, embedding=True) as teach:
            found = teach(images, order)
        assert found.embedding is not None and found.logits is not None and set(found.maps) == {"layer1.0"}


def test_outputs_for_images_that_never_change_are_computed_once(
    teacher: nn.Module, blocks: tuple[Block, ...], fixed: ImageData, runtime: Runtime
) -> None:
    setup = Setup.of(teacher, blocks, fixed, runtime)
    counts = calls_of(setup.supervisor.quick)
    config = DistillConfig(
        student=StudentSpec(widths={"layer3.0": 0.5}), epochs=2, optim=OptimConfig(batch_size=20)
    )
    for seed in range(2):  # two trials of one actor
        distiller = Distiller(config.model_copy(update={"seed": seed}), setup)
        distiller.run_epoch()
        distiller.run_epoch()
    assert counts[""] == 1  # 100 images are one batch of evaluation


def test_outputs_that_do_not_fit_are_computed_anew(
    teacher: nn.Module,
    blocks: tuple[Block, ...],
    fixed: ImageData,
    runtime: Runtime,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images, order = batch(fixed, runtime)
    for limit, kept_logits in ((100 * 10 * 4, True), (100, False)):
        monkeypatch.setattr("trainables.methods.signals.teacher_signals.KEPT_BYTES", limit)
        supervisor = Supervisor(teacher, blocks, fixed, runtime)
        with supervisor.teaching(["layer1.0"], True) as teach:
            counts = calls_of(supervisor.quick)
            signals = teach(images, order)
        assert signals.logits is not None
        torch.testing.assert_close(signals.logits, teacher(images), rtol=1e-4, atol=1e-5)
        assert counts["layer1.0"] == 1 and ("fc" in counts) is not kept_logits


def test_changing_images_are_never_kept(
    teacher: nn.Module, blocks: tuple[Block, ...], changing: ImageData, runtime: Runtime
) -> None:
    assert changing.augment != Augment()
    supervisor = Supervisor(teacher, blocks, changing, runtime)
    with supervisor.teaching([], True) as teach:
        counts = calls_of(supervisor.quick)
        for images, _, order in changing.train_steps(50, 0, 0, runtime):
            teach(images, order)
    assert counts[""] == 2


def frozen(width: float = 0.5, **loss: Any) -> DistillConfig:
    return DistillConfig(
        student=StudentSpec(widths={"layer2.0": width}),
        train="modules",
        epochs=2,
        optim=OptimConfig(batch_size=20),
        loss=LossConfig(**loss),
    )


def test_a_frozen_prefix_is_computed_once_for_both(
    teacher: nn.Module, blocks: tuple[Block, ...], changing: ImageData, runtime: Runtime
) -> None:
    shared = Distiller(frozen(), Setup.of(teacher, blocks, changing, runtime))
    assert set(shared.method._prefix) == {"conv1", "bn1", "relu", "layer1"}
    counts = calls_of(shared.student.get_submodule("layer1.0"))
    alone = Distiller(frozen(), Setup.of(teacher, blocks, changing, runtime))
    alone.method.__dict__["_prefix"] = ()
    # The same but for the teacher, who is folded where nothing is shared.
    alone.setup.supervisor.__dict__["quick"] = alone.setup.teacher
    for _ in range(2):
        ours, theirs = shared.run_epoch(), alone.run_epoch()
        assert (ours.train_loss, ours.losses) == (theirs.train_loss, theirs.losses)
        assert (ours.val_loss, ours.val_accuracy) == (theirs.val_loss, theirs.val_accuracy)
    # One pass to trace, one to check, and validation: none of the steps.
    validations = 2 * -(-len(changing.val) // runtime.eval_batch)
    assert counts[""] <= 2 + validations
    assert "forward" not in vars(shared.student.get_submodule("layer1"))


def test_a_prefix_that_differs_is_not_shared(
    teacher: nn.Module, blocks: tuple[Block, ...], changing: ImageData, runtime: Runtime
) -> None:
    config = frozen()
    student = build_student(teacher, blocks, config.student)
    supervisor = Supervisor(teacher, blocks, changing, runtime)
    spans = spans_of(blocks, config.student)
    assert supervisor.shared_prefix(student, spans) == ("conv1", "bn1", "relu", "layer1")
    student.get_submodule("bn1").running_mean.add_(0.1)  # type: ignore[union-attr,operator]
    assert supervisor.shared_prefix(student, spans) == ("conv1",)
    assert not any("forward" in vars(module) for module in student.modules())


class Adds(nn.Module):
    """Adds to a map in place outside of any module: a second pass over the same map would add again."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.first, self.second = (nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()) for _ in range(2))
        self.fc = nn.Linear(8, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = self.a(images)
        x += self.b(x)
        logits: Tensor = self.fc(self.second(self.first(x)).mean((2, 3)))
        return logits


def test_a_prefix_that_is_written_in_place_is_not_shared(changing: ImageData, runtime: Runtime) -> None:
    with seeded(0):
        model = Adds().eval()
    blocks = find_blocks(model, torch.zeros(1, *changing.image_shape), ["first*"])
    spec = StudentSpec(widths={blocks[0].name: 0.5})
    student = build_student(model, blocks, spec)
    supervisor = Supervisor(model, blocks, changing, runtime)
    assert supervisor.shared_prefix(student, spans_of(blocks, spec)) == ()


def test_a_folded_teacher_has_no_batch_norms_left_to_run(teacher: nn.Module, fixed: ImageData) -> None:
    images = torch.randn(8, *fixed.image_shape)
    copied = folded(teacher, images, ["layer1.0"])
    assert copied is not None
    assert not any(isinstance(module, nn.BatchNorm2d) for module in copied.modules())
    assert any(isinstance(module, nn.BatchNorm2d) for module in teacher.modules())
    torch.testing.assert_close(copied(images), teacher(images), rtol=1e-4, atol=1e-5)


def test_a_teacher_whose_convolution_is_read_twice_is_not_folded(fixed: ImageData) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
            self.fc = nn.Linear(8, 10)

        def forward(self, images: Tensor) -> Tensor:
            x = self.conv(images)
            logits: Tensor = self.fc((x + self.norm(x)).mean((2, 3)))
            return logits

    model = Twice().eval()
    nn.init.constant_(model.norm.bias, 1.0)
    images = torch.randn(4, *fixed.image_shape)
    assert folded(model, images, []) is None
    assert folded(nn.Sequential(nn.Flatten(), nn.Linear(192, 10)), images, []) is None
