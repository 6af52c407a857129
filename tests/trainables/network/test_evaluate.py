"""Scoring a model on data or on batches."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from trainables.config import DataConfig, RuntimeConfig
from trainables.data.dataset import ImageData
from trainables.data.load import load_data
from trainables.errors import InputError
from trainables.network.evaluate import evaluate
from trainables.runtime.runtime import Runtime, resolve


@pytest.fixture(scope="module")
def data() -> ImageData:
    return load_data(DataConfig(name="digits", train_limit=200), test=True)


@pytest.fixture(scope="module")
def runtime() -> Runtime:
    return resolve(RuntimeConfig(device="cpu", precision="fp32"))


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 10))


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_data_and_its_batches_score_alike(
    model: nn.Module, data: ImageData, runtime: Runtime, split: str
) -> None:
    found = evaluate(model, data, split=split)
    assert found == evaluate(model, data.eval_batches(split, runtime), runtime)
    assert found.n == len(getattr(data, split))


def test_validation_images_are_the_default_and_batches_may_be_a_list(
    model: nn.Module, data: ImageData, runtime: Runtime
) -> None:
    batches = list(data.eval_batches("val", runtime))
    assert evaluate(model, data) == evaluate(model, batches) == evaluate(model, data, runtime)


def test_a_model_without_parameters_and_no_such_split(data: ImageData) -> None:
    class Zero(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.new_zeros(len(images), 10)

    assert evaluate(Zero(), data).loss == pytest.approx(torch.tensor(10.0).log().item())
    with pytest.raises(InputError, match="split: expected train, val, test, got 'vall'"):
        evaluate(Zero(), data, split="vall")
