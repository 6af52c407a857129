"""`Source`: the decoded images of a data set in their native size, as its reader returns them.

The data sets are in `trainables.data.sets`, one file each.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainables.config import DataConfig
from trainables.data.row_file import RowFile
from trainables.errors import InputError

Images = NDArray[np.uint8]  # (N, 3, H, W)
Labels = NDArray[np.int64]  # (N,)
Progress = Callable[[str, int, int], None]  # (task, items done, items in all)

DEFAULT_CACHE = Path("~/.cache/ama-search")


@dataclass(frozen=True, eq=False)
class Source:
    """Decoded images before the train/validation split. Arrays may be read-only memory maps, or files.

    Example:
        images = np.random.default_rng(0).integers(0, 256, (40, 8, 8), np.uint8)
        source = Source.of(images, np.arange(40) % 4, ["a", "b", "c", "d"])
        print(source.images.shape, source.classes, source.hash)
    """

    images: Images | RowFile
    labels: Labels
    test: tuple[Images | RowFile, Labels] | None  # None unless requested
    classes: tuple[str, ...]
    hash: str  # of the training images alone, so the same with and without the test images
    skipped: int = 0

    @classmethod
    def of(
        cls,
        images: Images,
        labels: Labels,
        classes: Sequence[str],
        test: tuple[Images, Labels] | None = None,
    ) -> Source:
        """Make a source from arrays and compute its hash.

        Args:
            images: uint8 (N, 3, H, H), or (N, H, H) in grey.
            labels: integers (N,) in 0..len(classes)-1.
            classes: the class names.
            test: test images and labels of the same form; None: not requested, or there are none.

        Raises:
            InputError: arrays of other types or shapes, or labels out of range.
        """
        images, labels = _checked("images", images, labels, len(classes))
        again = None if test is None else _checked("test images", *test, len(classes))
        return cls(images, labels, again, tuple(classes), hash_arrays(images, labels))


def hash_arrays(*arrays: NDArray[Any]) -> str:
    """Return the SHA-256 (hex, 16 characters) of the arrays' types, shapes and values."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()[:16]


def cache_folder(config: DataConfig) -> Path:
    """Return the folder for decoded and downloaded images of this config."""
    return Path(config.cache or DEFAULT_CACHE).expanduser()


def grey_to_rgb(grey: Images) -> Images:
    """Repeat grey images (N, H, W) over three equal channels (N, 3, H, W)."""
    return np.ascontiguousarray(np.repeat(grey[:, None], 3, axis=1))


def _checked(what: str, images: Any, labels: Any, classes: int) -> tuple[Images, Labels]:
    images, labels = np.asarray(images), np.asarray(labels)
    if images.ndim == 3:
        images = grey_to_rgb(images)
    square = images.ndim == 4 and images.shape[1] == 3 and images.shape[2] == images.shape[3]
    if not square or images.dtype != np.uint8:
        raise InputError(
            f"{what}: expected uint8 of shape (N, 3, H, H) or (N, H, H), got {images.dtype} {images.shape}"
        )
    if labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        raise InputError(
            f"{what}: expected {len(images)} whole numbers as labels, got {labels.dtype} {labels.shape}"
        )
    if len(labels) and not 0 <= labels.min() <= labels.max() < classes:
        raise InputError(
            f"{what}: expected labels from 0 to {classes - 1}, got {labels.min()} to {labels.max()}"
        )
    return images, labels.astype(np.int64)
