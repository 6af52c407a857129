"""Which validation images the library is scored on, and how much is read for that."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from trainables.config import RuntimeConfig
from trainables.data.augment import Augment
from trainables.data.dataset import ImageData
from trainables.data.row_file import RowFile, Rows
from trainables.data.split import AnySplit, StreamedSplit, split_of
from trainables.library.build import SOLO_BATCH, SOLO_IMAGES, _some
from trainables.runtime.runtime import Runtime, resolve

SIZE = 4


@pytest.fixture(scope="module", params=["contiguous", "channels_last"])
def runtime(request: pytest.FixtureRequest) -> Runtime:
    return resolve(RuntimeConfig(device="cpu", precision="fp32", threads=1, layout=request.param))


class CountingFile(RowFile):
    """A file of images that counts those that were read."""

    count = 0

    def __getitem__(self, rows: Rows) -> np.ndarray:
        self.count += len(rows)
        return super().__getitem__(rows)


class Largest(TorchDispatchMode):
    """The most images of fp32 pixels that any single operation made."""

    images = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, torch.Tensor) and leaf.dtype == torch.float32 and leaf.ndim == 4:
                self.images = max(self.images, len(leaf))
        return made


def pixels(count: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, 3, SIZE, SIZE), dtype=np.uint8)


def images_of(val: AnySplit) -> ImageData:
    train = split_of(pixels(2), np.arange(2))
    mean, std = (0.49137, 0.48235, 0.44667), (0.24706, 0.24353, 0.26157)
    return ImageData("toy", train, val, None, ("a", "b"), mean, std, Augment(), "hash", workers=0)


@contextmanager
def streamed(folder: Path, count: int) -> Iterator[tuple[ImageData, CountingFile]]:
    np.save(folder / "rows.npy", pixels(count))
    rows = CountingFile.of(folder / "rows.npy")
    assert isinstance(rows, CountingFile)
    yield images_of(StreamedSplit(rows, np.arange(count), torch.arange(count))), rows


@pytest.mark.parametrize("count", [1, 100, SOLO_IMAGES, 2 * SOLO_IMAGES - 1, 3 * SOLO_IMAGES, 5000])
def test_the_images_are_those_of_the_whole_split_at_even_distances(count: int, runtime: Runtime) -> None:
    data = images_of(split_of(pixels(count), np.arange(count)))
    images, labels = (torch.cat(part) for part in zip(*data.eval_batches("val", runtime), strict=True))
    stride = max(1, count // SOLO_IMAGES)
    batches = _some(data, runtime)
    assert torch.equal(torch.cat([batch for batch, _ in batches]), images[::stride])
    assert torch.equal(torch.cat([batch for _, batch in batches]), labels[::stride])
    assert all(len(batch) == SOLO_BATCH for batch, _ in batches[:-1])


def test_no_image_is_converted_that_is_not_used(runtime: Runtime) -> None:
    data = images_of(split_of(pixels(10 * SOLO_IMAGES), np.arange(10 * SOLO_IMAGES)))
    with Largest() as made:
        _some(data, runtime)
    assert 0 < made.images <= SOLO_BATCH


def test_no_image_is_read_from_a_file_that_is_not_used(tmp_path: Path, runtime: Runtime) -> None:
    with streamed(tmp_path, 10 * SOLO_IMAGES) as (data, rows):
        kept = sum(len(images) for images, _ in _some(data, runtime))
        assert rows.count == kept == SOLO_IMAGES
        memory = images_of(split_of(pixels(len(data.val)), np.arange(len(data.val))))
        for ours, theirs in zip(_some(data, runtime), _some(memory, runtime), strict=True):
            assert torch.equal(ours[0], theirs[0]) and torch.equal(ours[1], theirs[1])
