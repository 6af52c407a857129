"""Measured choice of precision and layout."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from trainables.config import RuntimeConfig
from trainables.models import build_model
from trainables.runtime import Runtime, resolve
from trainables.tuning import measure_steps, tuned

SHAPE = (3, 8, 8)
AUTO = RuntimeConfig(device="cpu", threads=1)


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
    config = AUTO.model_copy(update={"precision": "fp32"})
    found = tuned(config, SlowChannelsLast(), SHAPE, 16, tmp_path)
    assert (found.precision, found.layout, found.device) == ("fp32", "contiguous", "cpu")
    (file,) = tmp_path.iterdir()
    content = json.loads(file.read_text())
    assert len(content["milliseconds"]) == 2 and content["milliseconds"][1] > 100
    # What stands in the file counts, not a new measurement.
    file.write_text(json.dumps({**content, "channels_last": True}))
    assert tuned(config, SlowChannelsLast(), SHAPE, 16, tmp_path).layout == "channels_last"


def test_what_is_given_stays_and_costs_nothing(tmp_path: Path) -> None:
    config = RuntimeConfig(device="cpu", threads=1, precision="bf16", layout="channels_last")
    assert tuned(config, build_model("cifar_resnet8", 10, SHAPE), SHAPE, 16, tmp_path) == config
    assert not list(tmp_path.iterdir())
    half = AUTO.model_copy(update={"layout": "contiguous"})
    found = tuned(half, build_model("cifar_resnet8", 10, SHAPE), SHAPE, 16, tmp_path)
    assert found.layout == "contiguous" and found.precision in ("fp32", "bf16")


def test_other_models_and_batches_are_measured_on_their_own(tmp_path: Path) -> None:
    for arch, batch in (("cifar_resnet8", 8), ("cifar_resnet14", 8), ("cifar_resnet8", 16)):
        tuned(AUTO, build_model(arch, 10, SHAPE), SHAPE, batch, tmp_path)
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("content", ["", "[1]", '{"precision": "int8", "channels_last": true}'])
def test_a_damaged_file_is_passed_over(content: str, tmp_path: Path) -> None:
    model = build_model("cifar_resnet8", 10, SHAPE)
    tuned(AUTO, model, SHAPE, 8, tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_text(content)
    assert tuned(AUTO, model, SHAPE, 8, tmp_path).layout in ("contiguous", "channels_last")
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
