"""Splits: images and their labels, in memory or streamed from a file."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from trainables.data.pixels import resize
from trainables.data.row_file import RowFile
from trainables.data.sources import Images, Labels
from trainables.data.stratify import Indices

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class Split:
    """Images in memory and their labels. The images are never written to: they may be shared memory."""

    images: Tensor  # uint8 (N, 3, H, W)
    labels: Tensor  # int64 (N,)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(3, H, W)."""
        return tuple(self.images.shape[1:])

    def chunks(self, size: int) -> Iterator[Batch]:
        """Yield the images, uint8 (B, 3, H, W), and labels (B,), in order, `size` at a time."""
        return zip(torch.split(self.images, size), torch.split(self.labels, size), strict=True)

    def every(self, stride: int) -> Split:
        """Return every `stride`-th image, from the first on; shares the memory of this split."""
        return Split(self.images[::stride], self.labels[::stride])


@dataclass(frozen=True, eq=False)
class StreamedSplit:
    """Images in a file, and their labels."""

    rows: RowFile
    index: Indices  # (N,), of the images in the file
    labels: Tensor  # int64 (N,)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(3, H, W)."""
        return self.rows.shape[1:]

    def chunks(self, size: int) -> Iterator[Batch]:
        """Yield the images, uint8 (B, 3, H, W), and labels (B,), in order, `size` at a time."""
        for start in range(0, len(self), size):
            images = self.rows[self.index[start : start + size]]
            yield torch.from_numpy(images), self.labels[start : start + size]

    def every(self, stride: int) -> StreamedSplit:
        """Return every `stride`-th image, from the first on, without reading images."""
        return StreamedSplit(self.rows, self.index[::stride], self.labels[::stride])


AnySplit = Split | StreamedSplit


def split_of(images: Images, labels: Labels) -> Split:
    """Make a split of arrays (N, 3, H, W) and (N,) that shares their memory, which may be read-only."""
    with warnings.catch_warnings():
        # Nothing here writes to images, so a read-only array is safe.
        warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)
        return Split(torch.from_numpy(images), torch.from_numpy(labels))


def select(images: Images | RowFile, labels: Labels, rows: Indices, size: int) -> AnySplit:
    """Return the images `rows` of a data set, resized to `size`; images in a file already have that size."""
    if isinstance(images, RowFile):
        return StreamedSplit(images, rows, torch.from_numpy(labels[rows]))
    return split_of(resize(images[rows], size), labels[rows])
