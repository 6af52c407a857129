"""What the tests of methods share. A module that needs another teacher or other data has its own."""

from __future__ import annotations

import pytest
import torch

from trainables.blocks.blocks import find_blocks
from trainables.config import DataConfig, RuntimeConfig
from trainables.data.dataset import ImageData
from trainables.data.load import load_data
from trainables.methods.base import Setup
from trainables.network.architectures import build_model
from trainables.runtime.runtime import Runtime, resolve
from trainables.runtime.seeds import seeded


@pytest.fixture(scope="module")
def runtime() -> Runtime:
    return resolve(RuntimeConfig(device="cpu", precision="fp32", threads=1))


@pytest.fixture(scope="module")
def data() -> ImageData:
    """Images that are cropped and mirrored."""
    return load_data(DataConfig(name="digits", train_limit=100, augment="crop-flip"))


@pytest.fixture(scope="module")
def setup() -> Setup:
    """A ResNet-8 with random weights, and images that are the same in every epoch."""
    data = load_data(DataConfig(name="digits", train_limit=100))
    runtime = resolve(RuntimeConfig(device="cpu", precision="fp32", threads=1, eval_batch=64))
    with seeded(0):
        teacher = build_model("cifar_resnet8", 10, data.image_shape).eval()
    return Setup.of(teacher, find_blocks(teacher, torch.zeros(1, *data.image_shape)), data, runtime)
