"""Images that do not fit into the memory: the same numbers, read as they are needed."""

from __future__ import annotations

import itertools
import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from trainables.blocks.blocks import find_blocks
from trainables.config import DataConfig, DistillConfig, OptimConfig, RuntimeConfig, StudentSpec
from trainables.data.dataset import ImageData
from trainables.data.load import default_limit, load_data, streams
from trainables.data.row_file import RowFile
from trainables.data.split import Split, StreamedSplit
from trainables.errors import InputError
from trainables.methods.base import Setup
from trainables.network.architectures import build_model
from trainables.runtime.runtime import Runtime, resolve
from trainables.runtime.seeds import seeded
from trainables.training.loop import distill


@pytest.fixture(scope="module")
def runtime() -> Runtime:
    return resolve(RuntimeConfig(device="cpu", precision="fp32", threads=1))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of 60 random 12-pixel images, and a test split."""
    root: Path = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for split, name, count in itertools.product(("train", "test"), "ab", (60,)):
        (root / split / name).mkdir(parents=True)
        for index in range(count):
            pixels = rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / split / name / f"{index}.png")
    return root


def load(folder: Path, cache: Path, **fields: Any) -> ImageData:
    config = DataConfig(name="imagefolder", root=str(folder), cache=str(cache), **fields)
    return load_data(config, test=True)


def test_a_folder_beyond_the_limit_is_streamed_and_trains_to_the_same_numbers(
    folder: Path, tmp_path: Path, runtime: Runtime
) -> None:
    kept = load(folder, tmp_path)
    size = (120 + 120) * 3 * 12 * 12
    limit = size / 2**30
    assert isinstance(load(folder, tmp_path, memory_limit=limit).train, Split)
    streamed = load(folder, tmp_path, memory_limit=0.99 * limit)
    assert isinstance(streamed.train, StreamedSplit) and isinstance(streamed.val, StreamedSplit)
    assert (streamed.hash, streamed.mean, streamed.std) == (kept.hash, kept.mean, kept.std)
    with seeded(0):
        teacher = build_model("cifar_resnet8", 2, kept.image_shape).eval()
    blocks = find_blocks(teacher, torch.zeros(1, *kept.image_shape))
    config = DistillConfig(
        student=StudentSpec(widths={"layer2.0": 0.5}), epochs=2, optim=OptimConfig(batch_size=32)
    )
    curves = []
    for data in (kept, streamed):
        result = distill(config, Setup.of(teacher, blocks, data, runtime))
        curves.append(
            [(m.train_loss, m.losses["feature"], m.val_loss, m.val_accuracy) for m in result.history]
        )
    assert curves[0] == curves[1]
    assert all(
        torch.equal(ours[0], theirs[0]) and torch.equal(ours[1], theirs[1])
        for ours, theirs in zip(*(d.eval_batches("test", runtime, 50) for d in (kept, streamed)), strict=True)
    )


@pytest.mark.parametrize("augment", ["none", "flip", "crop", "crop-flip"])
def test_every_augmentation_gives_the_same_batches(augment: str, tmp_path: Path, runtime: Runtime) -> None:
    fields: dict[str, Any] = {"name": "digits", "augment": augment, "train_limit": 60, "size": 10}
    kept = load_data(DataConfig(**fields))
    streamed = load_data(DataConfig(**fields, storage="stream", workers=0, cache=str(tmp_path)))
    for seed, epoch in ((0, 0), (0, 1), (5, 0)):
        batches = (data.train_steps(25, seed, epoch, runtime) for data in (kept, streamed))
        for ours, theirs in zip(*batches, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_an_epoch_left_in_the_middle_does_not_spoil_the_next(tmp_path: Path, runtime: Runtime) -> None:
    fields: dict[str, Any] = {"name": "digits", "augment": "crop-flip", "train_limit": 200}
    kept = load_data(DataConfig(**fields))
    streamed = load_data(DataConfig(**fields, storage="stream", workers=1, cache=str(tmp_path)))
    next(streamed.train_batches(20, 0, 0, runtime))
    for ours, theirs in zip(
        kept.train_batches(20, 0, 1, runtime), streamed.train_batches(20, 0, 1, runtime), strict=True
    ):
        assert torch.equal(ours[0], theirs[0]) and torch.equal(ours[1], theirs[1])


def test_what_workers_get_of_streamed_images_is_where_they_are(tmp_path: Path, runtime: Runtime) -> None:
    data = load_data(DataConfig(name="digits", size=64, storage="stream", workers=0, cache=str(tmp_path)))
    first = next(data.train_batches(8, 0, 0, runtime))[0]
    packed = pickle.dumps(data.to_arrays())
    assert len(packed) < 100_000 < 3 * 64 * 64 * len(data.train)
    again = ImageData.from_arrays(pickle.loads(packed))
    assert torch.equal(next(again.train_batches(8, 0, 0, runtime))[0], first)
    assert isinstance(data.train, StreamedSplit)
    data.train.rows.path.unlink()
    with pytest.raises(InputError, match="a folder that all nodes share"):
        next(ImageData.from_arrays(pickle.loads(packed)).train_batches(8, 0, 0, runtime))


def test_a_file_that_was_cut_short_is_named(tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", np.ones((4, 3, 2, 2), dtype=np.uint8))
    rows = RowFile.of(tmp_path / "images.npy")
    assert rows[np.array([3, 0])].sum() == 24 and len(rows) == 4
    with (tmp_path / "images.npy").open("r+b") as file:
        file.truncate(file.seek(0, 2) - 5)
    with pytest.raises(InputError, match="cut short: image 3"):
        rows[np.array([3])]


def test_the_choice_is_made_by_size_and_can_be_forced() -> None:
    limited = DataConfig(memory_limit=1.0)
    assert not streams(limited, 2**30) and streams(limited, 2**30 + 1)
    assert not streams(limited.model_copy(update={"storage": "memory"}), 2**40)
    assert streams(limited.model_copy(update={"storage": "stream"}), 1)
    assert not streams(DataConfig(), 2**20) and streams(DataConfig(), 2**60)
    assert default_limit() > 2**28


LIVES = """
import json, sys, torch
from trainables.blocks.blocks import find_blocks
from trainables.config import *
from trainables.methods.base import Setup
from trainables.data.load import load_data
from trainables.training.loop import Distiller
from trainables.runtime.memory import peaks, reset_peaks
from trainables.network.architectures import build_model
from trainables.runtime.runtime import resolve

class Small(torch.nn.Module):
    "A network that looks at its images from afar."
    def __init__(self):
        super().__init__()
        self.pool, self.net = torch.nn.AvgPool2d(32), build_model("cifar_resnet8", 10, (3, 8, 8))
    def forward(self, images):
        return self.net(self.pool(images))

def train(data, runtime):
    torch.manual_seed(0)
    teacher = Small().eval()
    blocks = find_blocks(teacher, torch.zeros(1, *data.image_shape))
    config = DistillConfig(student=StudentSpec(widths={blocks[0].name: 0.5}), epochs=1,
                           optim=OptimConfig(batch_size=16))
    return Distiller(config, Setup.of(teacher, blocks, data, runtime)).run_epoch()

root, cache, storage = sys.argv[1:]
runtime = resolve(RuntimeConfig(device="cpu", precision="fp32", threads=1, eval_batch=16))
train(load_data(DataConfig(name="digits", size=256, train_limit=64, val_fraction=0.05)), runtime)
config = DataConfig(name="imagefolder", root=root, cache=cache, storage=storage, memory_limit=0.03,
                    workers=1, augment="flip")
reset_peaks(runtime.device)
before, _ = peaks(runtime.device)
data = load_data(config)
metrics = train(data, runtime)
print(json.dumps([peaks(runtime.device)[0] - before, metrics.train_loss, metrics.val_loss]))
"""


def test_memory_does_not_grow_by_the_size_of_streamed_images(tmp_path: Path) -> None:
    root, mib = tmp_path / "images", 800 * 3 * 256 * 256 / 2**20  # 150 MiB
    rng = np.random.default_rng(0)
    for name in "ab":
        (root / "train" / name).mkdir(parents=True)
        for index in range(400):
            # A few large pixels each: quick to write and to read.
            pixels = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8).repeat(64, 0).repeat(64, 1)
            Image.fromarray(pixels).save(root / "train" / name / f"{index}.bmp")
    found = {}
    for storage in ("auto", "memory"):
        command = [sys.executable, "-c", LIVES, str(root), str(tmp_path / "cache"), storage]
        out = subprocess.run(command, capture_output=True, text=True, check=True)
        found[storage] = json.loads(out.stdout)
    assert found["auto"][1:] == found["memory"][1:]
    assert found["memory"][0] > 0.9 * mib
    assert found["auto"][0] < 0.5 * mib
