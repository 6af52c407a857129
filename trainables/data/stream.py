"""Stream images that do not fit into memory: DataLoader workers read and augment them ahead of use.

Batches are equal to those of images in memory, bit for bit. `plan_epoch` draws the order and augmentation of
the whole epoch in advance; workers only apply them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from trainables.data.augment import Augment, EpochPlan
from trainables.data.split import StreamedSplit

PREFETCH = 2  # batches a worker prepares ahead


class Stream:
    """Batches of a split, prepared by workers that live across epochs."""

    def __init__(self, split: StreamedSplit, augment: Augment, workers: int, pin: bool) -> None:
        """Store the settings; workers start with the first epoch.

        Args:
            augment: the augmentation that the plans are drawn for.
            workers: processes; 0: read images in this process when they are needed.
            pin: put batches into pinned memory, for asynchronous copies to a GPU.
        """
        self._parts = _Parts()
        ahead: dict[str, Any] = {"persistent_workers": True, "prefetch_factor": PREFETCH} if workers else {}
        self._loader: DataLoader[Tensor] = DataLoader(
            _Images(split, augment),
            batch_size=None,
            sampler=self._parts,
            num_workers=workers,
            pin_memory=pin,
            **ahead,
        )

    def batches(self, parts: list[EpochPlan]) -> Iterator[Tensor]:
        """Yield the planned images, uint8 (B, 3, H, W), part by part."""
        self._parts.parts = parts
        return iter(self._loader)


class _Parts(Sampler[EpochPlan]):
    """The parts of the plan that the workers prepare next."""

    def __init__(self) -> None:
        self.parts: list[EpochPlan] = []

    def __iter__(self) -> Iterator[EpochPlan]:
        return iter(self.parts)

    def __len__(self) -> int:
        return len(self.parts)


class _Images(Dataset[Tensor]):
    """A data set whose items are planned batches."""

    def __init__(self, split: StreamedSplit, augment: Augment) -> None:
        self.split, self.augment = split, augment

    def __getitem__(self, part: EpochPlan) -> Tensor:
        images = torch.from_numpy(self.split.rows[self.split.index[part.order.numpy()]])
        if self.augment == Augment():
            return images
        draws = zip(images, part.down.tolist(), part.right.tolist(), part.flip.tolist(), strict=True)
        return torch.stack([_augmented(image, self.augment.pad, *draw) for image, *draw in draws])


def _augmented(image: Tensor, pad: int, down: int, right: int, flip: bool) -> Tensor:
    """Crop (with reflected borders) and flip one image (3, H, W), as `augment.gather_augmented` does."""
    from torchvision.transforms.v2 import functional as v2

    height, width = image.shape[1:]
    if pad:
        image = v2.pad(image, [pad] * 4, padding_mode="reflect")
        image = v2.crop(image, pad + down, pad + right, height, width)
    return v2.horizontal_flip(image) if flip else image


def in_order(count: int, size: int) -> list[EpochPlan]:
    """Return a plan of `count` images in order, without augmentation, `size` at a time."""
    still = torch.zeros(count, dtype=torch.int64)
    whole = (torch.arange(count), still, still, still.bool())
    return [EpochPlan(*part) for part in zip(*(torch.split(each, size) for each in whole), strict=True)]
