"""What a data set is, and the data sets by name. Importing this module loads neither torch nor NumPy."""

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
    """A data set: where its images come from and how they are prepared.

    Args:
        read: called with the config, whether the test images are wanted too, and whom to tell of progress
            (or None); gives the images before the train/validation split.
        augment: training augmentation where `data.augment` is auto.
        mean: per-channel mean of inputs in 0..1; None: computed from the training images.
        std: per-channel deviation; given where `mean` is.

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
        """The augmentation that `data.augment` means for this data set."""
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
        "imagefolder": "trainables.data.imagefolder:IMAGEFOLDER",
    },
    expects=DataSet,
)
