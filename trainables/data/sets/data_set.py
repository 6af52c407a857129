"""`DataSet`, and the registry of data sets. Importing this module imports neither torch nor NumPy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from trainables.config import DataConfig, Triple
from trainables.registry import Registry

if TYPE_CHECKING:
    from trainables.data.sources import Progress, Source

Augmentation = Literal["none", "flip", "crop", "crop-flip"]


@dataclass(frozen=True)
class DataSet:
    """A data set: how to read, augment and normalise its images.

    Args:
        read: called with the config, whether to read the test images too, and the progress callback (or
            None); returns the images before the train/validation split.
        augment: training augmentation if `data.augment` is auto.
        mean: per-channel mean of inputs in 0..1; None: computed from the training images.
        std: per-channel standard deviation; required with `mean`.

    Example:
        def read(config, test, progress):
            images = np.zeros((20, 8, 8), np.uint8)
            return Source.of(images, np.arange(20) % 2, ["even", "odd"])

        NOUGHTS = DataSet(read, augment="none")  # data.name: "import:<module>:NOUGHTS"
    """

    read: Callable[[DataConfig, bool, Progress | None], Source]
    augment: Augmentation = "crop-flip"
    mean: Triple | None = None
    std: Triple | None = None

    def augmentation(self, choice: str) -> str:
        """Resolve `data.augment` for this data set."""
        return self.augment if choice == "auto" else choice


DATA_SETS: Registry[DataSet] = Registry(
    "data set",
    "ama_search.data",
    {
        "digits": "trainables.data.sets.digits:DIGITS",
        "cifar10": "trainables.data.sets.from_torchvision:CIFAR10",
        "cifar100": "trainables.data.sets.from_torchvision:CIFAR100",
        "svhn": "trainables.data.sets.from_torchvision:SVHN",
        "fashion_mnist": "trainables.data.sets.from_torchvision:FASHION_MNIST",
        "mnist": "trainables.data.sets.from_torchvision:MNIST",
        "imagefolder": "trainables.data.image_files.imagefolder:IMAGEFOLDER",
    },
    expects=DataSet,
)
