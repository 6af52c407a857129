"""Data sets that torchvision reads. torchvision is imported when one is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from trainables.config import DataConfig
from trainables.data.sets.data_set import DataSet
from trainables.data.sources import (
    Images,
    Labels,
    Progress,
    Source,
    cache_folder,
    grey_to_rgb,
    hash_arrays,
)
from trainables.errors import InputError
from trainables.files import first_line

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


def read_torchvision(name: str, root: Path, download: bool, test: bool) -> Source:
    """Read one of torchvision's data sets with its official test split.

    Args:
        name: cifar10, cifar100, svhn, fashion_mnist or mnist.
        root: folder in torchvision's layout.
        download: download missing files.
        test: read the test split too; otherwise the test files are not opened.

    Raises:
        InputError: files are missing or damaged, or cannot be downloaded.
    """
    images, labels, classes = _read_split(name, root, download, train=True)
    test_pair = None
    if test:
        test_images, test_labels, _ = _read_split(name, root, download, train=False)
        test_pair = (test_images, test_labels)
    return Source(images, labels, test_pair, classes, hash_arrays(images, labels))


def _read_split(name: str, root: Path, download: bool, train: bool) -> tuple[Images, Labels, tuple[str, ...]]:
    try:
        data = _open_torchvision(name, root, download, train)
    # Exceptions of torchvision and its readers for missing or damaged files, and without a network.
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
        images = grey_to_rgb(raw)
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


def _read(config: DataConfig, test: bool, progress: Progress | None) -> Source:
    root = Path(config.root).expanduser() if config.root else cache_folder(config) / "torchvision"
    return read_torchvision(config.name, root, config.download, test)


# Mean and deviation of the training images.
CIFAR10 = DataSet(_read, "crop-flip", (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
CIFAR100 = DataSet(_read, "crop-flip", (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))
SVHN = DataSet(_read, "crop", (0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970))
FASHION_MNIST = DataSet(_read, "crop-flip", (0.2860, 0.2860, 0.2860), (0.3530, 0.3530, 0.3530))
MNIST = DataSet(_read, "crop", (0.1307, 0.1307, 0.1307), (0.3081, 0.3081, 0.3081))
