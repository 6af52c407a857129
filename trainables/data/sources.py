"""Data sets that scikit-learn and torchvision know, as NumPy arrays in their native size.

Importing this module is cheap: scikit-learn and torchvision are imported by the function that needs them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainables.data.row_file import RowFile
from trainables.data.stratify import TEST_STREAM, stratified_split
from trainables.errors import InputError
from trainables.files import first_line

Images = NDArray[np.uint8]  # (N, 3, H, W)
Labels = NDArray[np.int64]  # (N,)
Progress = Callable[[str, int, int], None]  # what is being done, how many are done, of how many

DIGITS_TEST_FRACTION = 0.2
FASHION_CLASSES = (
    "t-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "boot",
)


@dataclass(frozen=True, eq=False)
class Source:
    """Decoded images before the train/validation split. Arrays may be read-only memory maps, or files."""

    images: Images | RowFile
    labels: Labels
    test: tuple[Images | RowFile, Labels] | None  # None unless asked for
    classes: tuple[str, ...]
    hash: str  # of the training content alone, so the same with and without the test images
    skipped: int = 0


def read_digits(split_seed: int, test: bool) -> Source:
    """scikit-learn's 1,797 handwritten digits, 8x8, of which 20 % become the test set.

    Args:
        split_seed: the test images are a stratified sample drawn with it.
        test: return the test images; without it they are left out.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    grey = np.rint(digits.images * (255 / 16)).astype(np.uint8)  # values 0..16
    images, labels = _grey_to_rgb(grey), digits.target.astype(np.int64)
    classes = tuple(str(name) for name in digits.target_names)
    rest, held_out = stratified_split(labels, DIGITS_TEST_FRACTION, classes, split_seed, TEST_STREAM)
    return Source(
        images[rest],
        labels[rest],
        (images[held_out], labels[held_out]) if test else None,
        classes,
        hash_arrays(images[rest], labels[rest]),
    )


def read_torchvision(name: str, root: Path, download: bool, test: bool) -> Source:
    """One of torchvision's data sets with its official test split.

    Args:
        name: cifar10, cifar100, svhn, fashion_mnist or mnist.
        root: folder in the layout that torchvision keeps.
        download: fetch what is missing.
        test: read the test split too; without it the test files are not opened for reading.

    Raises:
        InputError: files are missing or damaged, or cannot be downloaded.
    """
    images, labels, classes = _read_split(name, root, download, train=True)
    test_pair = None
    if test:
        test_images, test_labels, _ = _read_split(name, root, download, train=False)
        test_pair = (test_images, test_labels)
    return Source(images, labels, test_pair, classes, hash_arrays(images, labels))


def hash_arrays(*arrays: NDArray[Any]) -> str:
    """SHA-256 (hex, 16 characters) of the arrays' types, shapes and values."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()[:16]


def _read_split(name: str, root: Path, download: bool, train: bool) -> tuple[Images, Labels, tuple[str, ...]]:
    try:
        data = _open_torchvision(name, root, download, train)
    # What torchvision and its readers raise for missing or damaged files, and without a network.
    except (RuntimeError, OSError, ValueError, AssertionError, EOFError) as error:
        reason = first_line(error)
        if download:
            raise InputError(
                f"data.download: {name} could not be downloaded into {root}: {reason}"
            ) from error
        raise InputError(
            f"data.root: {name} is missing or damaged in {root}; download it with -o data.download=true"
            f" ({reason})"
        ) from error
    raw = np.asarray(data.data)
    if name == "svhn":
        return np.ascontiguousarray(raw), data.labels.astype(np.int64), tuple("0123456789")
    if name.startswith("cifar"):
        images = np.ascontiguousarray(raw.transpose(0, 3, 1, 2))
    else:
        images = _grey_to_rgb(raw)
    classes = FASHION_CLASSES if name == "fashion_mnist" else tuple(str(c) for c in data.classes)
    if name == "mnist":
        classes = tuple("0123456789")
    return images, np.asarray(data.targets, dtype=np.int64), classes


def _open_torchvision(name: str, root: Path, download: bool, train: bool) -> Any:
    from torchvision import datasets

    if name == "svhn":
        return datasets.SVHN(root, split="train" if train else "test", download=download)
    kinds = {
        "cifar10": datasets.CIFAR10,
        "cifar100": datasets.CIFAR100,
        "fashion_mnist": datasets.FashionMNIST,
        "mnist": datasets.MNIST,
    }
    return kinds[name](root, train=train, download=download)


def _grey_to_rgb(grey: Images) -> Images:
    return np.ascontiguousarray(np.repeat(grey[:, None], 3, axis=1))
