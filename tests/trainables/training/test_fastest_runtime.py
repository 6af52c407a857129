"""Measured choice of precision and layout."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from trainables.config import RuntimeConfig
from trainables.network.architectures import build_model
from trainables.runtime.runtime import Runtime, resolve
from trainables.training.fastest_runtime import tuned, wins_back, worth_trying
from trainables.training.step_times import measure_optimizers, measure_scoring, measure_steps

SHAPE = (3, 8, 8)
AUTO = RuntimeConfig(device="cpu", threads=1)
QUICK = AUTO.model_copy(update={"optimizer": "single", "eval_batch": 64})


class SlowChannelsLast(nn.Module):
    """Stalls on maps in channels_last, so that the other layout must win."""

    def __init__(self) -> None:
        super().__init__()
        self.net = build_model("cifar_resnet8", 10, SHAPE)
        self.calls = 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if not images.is_contiguous():
            until = time.process_time() + 0.1
            while time.process_time() < until:
                pass
        logits: torch.Tensor = self.net(images)
        return logits


def test_the_faster_layout_is_found_and_read_back(tmp_path: Path) -> None:
    config = AUTO.model_copy(update={"precision": "fp32", "optimizer": "single", "eval_batch": 64})
    found = tuned(config, SlowChannelsLast(), SHAPE, 16, tmp_path)
    assert (found.precision, found.layout, found.device) == ("fp32", "contiguous", "cpu")
    (file,) = tmp_path.iterdir()
    content = json.loads(file.read_text())
    assert len(content["milliseconds"]["step"]) == 2 and content["milliseconds"]["step"][1] > 100
    # What stands in the file counts, not a new measurement.
    content["found"]["layout"] = "channels_last"
    file.write_text(json.dumps(content))
    assert tuned(config, SlowChannelsLast(), SHAPE, 16, tmp_path).layout == "channels_last"


class OneLayout(nn.Module):
    """Views its maps, which those in channels_last do not allow."""

    def __init__(self, layouts: int) -> None:
        super().__init__()
        self.conv, self.layouts = nn.Conv2d(3, 4, 3), layouts

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if not self.layouts:
            raise RuntimeError("trains nowhere")
        return self.conv(images).view(len(images), -1)


def test_a_layout_in_which_the_model_fails_is_not_chosen(tmp_path: Path) -> None:
    assert tuned(QUICK, OneLayout(1), SHAPE, 16, tmp_path).layout == "contiguous"
    with pytest.raises(RuntimeError, match="trains nowhere"):
        tuned(QUICK, OneLayout(0), SHAPE, 16, tmp_path / "other")


class SlowInLargeBatches(nn.Module):
    """Stalls on more than 128 images, so that smaller batches of evaluation must win."""

    def __init__(self) -> None:
        super().__init__()
        self.net = build_model("cifar_resnet8", 10, SHAPE)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        until = time.process_time() + (0.08 if len(images) > 128 else 0.0)
        while time.process_time() < until:
            pass
        logits: torch.Tensor = self.net(images)
        return logits


def test_everything_left_open_is_chosen(tmp_path: Path) -> None:
    fixed = AUTO.model_copy(update={"precision": "fp32", "layout": "contiguous"})
    found = tuned(fixed, SlowInLargeBatches(), SHAPE, 16, tmp_path, images=100)
    assert found.eval_batch in (64, 128)
    assert found.optimizer in ("single", "foreach", "fused")
    assert found.compile == "off", "seven steps cannot win a start-up back"
    runtime = resolve(found)
    assert (runtime.eval_batch, runtime.optimizer, runtime.compiled) == (
        found.eval_batch,
        found.optimizer,
        False,
    )
    (file,) = tmp_path.iterdir()
    assert tuned(fixed, SlowInLargeBatches(), SHAPE, 16, tmp_path, images=100) == found
    assert list(tmp_path.iterdir()) == [file]


def test_compiling_pays_where_trials_are_long() -> None:
    # A step of 0.1 s that compiling makes 0.07 s, after a start-up of 30 s.
    assert not worth_trying(0.1, 100) and worth_trying(0.1, 10_000)
    assert not wins_back(0.1, 30.0, 0.07, 1000)  # 100 s against 100 s
    assert wins_back(0.1, 30.0, 0.07, 2000)  # 200 s against 170 s
    assert not wins_back(0.1, 30.0, 0.0999, 100_000)
    assert not wins_back(0.1, float("inf"), float("inf"), 1e9)


def test_a_way_of_the_optimiser_that_fails_here_is_not_chosen() -> None:
    runtime = resolve(AUTO)
    double_complex = nn.Linear(4, 4, dtype=torch.complex64)
    single, _, fused = measure_optimizers(double_complex, runtime, ("single", "foreach", "fused"))
    assert single < float("inf") and fused == float("inf")


def test_batches_that_do_not_fit_are_not_chosen() -> None:
    class Short(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            if len(images) > 8:
                raise torch.OutOfMemoryError
            return images.flatten(1)

    times = measure_scoring(Short(), resolve(AUTO), (4, 8, 16, 32), SHAPE)
    assert times[0] < float("inf") and times[2:] == [float("inf")] * 2


def test_what_is_given_stays_and_costs_nothing(tmp_path: Path) -> None:
    config = RuntimeConfig(
        device="cpu", threads=1, precision="bf16", layout="channels_last", optimizer="fused", eval_batch=32
    )
    config = config.model_copy(update={"compile": "on"})
    assert tuned(config, build_model("cifar_resnet8", 10, SHAPE), SHAPE, 16, tmp_path) == config
    assert not list(tmp_path.iterdir())
    half = AUTO.model_copy(update={"layout": "contiguous"})
    found = tuned(half, build_model("cifar_resnet8", 10, SHAPE), SHAPE, 16, tmp_path)
    assert found.layout == "contiguous" and found.precision in ("fp32", "bf16")


def test_other_models_and_batches_are_measured_on_their_own(tmp_path: Path) -> None:
    for arch, batch in (("cifar_resnet8", 8), ("cifar_resnet14", 8), ("cifar_resnet8", 16)):
        tuned(QUICK, build_model(arch, 10, SHAPE), SHAPE, batch, tmp_path)
    assert len(list(tmp_path.iterdir())) == 3


OTHER = {
    "precision": "int8",
    "layout": "contiguous",
    "optimizer": "fused",
    "compile": "off",
    "eval_batch": 64,
}


@pytest.mark.parametrize(
    "content", ["", "[1]", json.dumps({"found": OTHER}), json.dumps({"found": OTHER | {"precision": "auto"}})]
)
def test_a_damaged_file_is_passed_over(content: str, tmp_path: Path) -> None:
    model = build_model("cifar_resnet8", 10, SHAPE)
    tuned(QUICK, model, SHAPE, 8, tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_text(content)
    assert tuned(QUICK, model, SHAPE, 8, tmp_path).layout in ("contiguous", "channels_last")
    assert json.loads(file.read_text())["key"]["shape"] == [8, *SHAPE]
    assert list(tmp_path.iterdir()) == [file]


def test_a_cache_that_cannot_be_written_is_no_fault(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    found = tuned(AUTO, build_model("cifar_resnet8", 10, SHAPE), SHAPE, 8, blocked / "folder")
    assert found.precision != "auto" and found.layout != "auto"


def test_the_model_and_the_generators_stay_as_they_were() -> None:
    model = build_model("cifar_resnet8", 10, SHAPE).eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    state = torch.get_rng_state()
    runtime = resolve(AUTO)
    times = measure_steps(model, [Runtime(runtime.device, "fp32", True, 1)], 4, SHAPE)
    assert len(times) == 1 and times[0] > 0
    assert torch.equal(state, torch.get_rng_state())
    assert not model.training and all(p.grad is None for p in model.parameters())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
