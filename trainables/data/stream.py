"""Images too many for the memory: read from a file and augmented by DataLoader workers, ahead of their use.

A batch holds the very numbers that it would hold in memory. What happens to the image at a place in an epoch
is drawn beforehand, for the whole epoch, by `plan_epoch`; workers only carry it out.
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
    """Batches of a split, prepared by workers that stay from epoch to epoch."""

    def __init__(self, split: StreamedSplit, augment: Augment, workers: int, pin: bool) -> None:
        """Start nothing yet.

        Args:
            augment: what the plans are drawn for.
            workers: processes; 0: none, the images are read when they are asked for.
            pin: put batches into page-locked memory, from where a GPU takes them without waiting.
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
        """The planned images, uint8 (B, 3, H, W), part by part."""
        self._parts.parts = parts
        return iter(self._loader)


class _Parts(Sampler[EpochPlan]):
    """What the workers are to prepare next."""

    def __init__(self) -> None:
        self.parts: list[EpochPlan] = []

    def __iter__(self) -> Iterator[EpochPlan]:
        return iter(self.parts)

    def __len__(self) -> int:
        return len(self.parts)


class _Images(Dataset[Tensor]):
    """Looks up planned batches."""

    def __init__(self, split: StreamedSplit, augment: Augment) -> None:
        self.split, self.augment = split, augment

    def __getitem__(self, part: EpochPlan) -> Tensor:
        images = torch.from_numpy(self.split.rows[self.split.index[part.order.numpy()]])
        if self.augment == Augment():
            return images
        draws = zip(images, part.down.tolist(), part.right.tolist(), part.flip.tolist(), strict=True)
        return torch.stack([_augmented(image, self.augment.pad, *draw) for image, *draw in draws])


def _augmented(image: Tensor, pad: int, down: int, right: int, flip: bool) -> Tensor:
    """One image (3, H, W) cropped from its reflection and mirrored, as `augment.gather_augmented` does it."""
    from torchvision.transforms.v2 import functional as v2

    height, width = image.shape[1:]
    if pad:
        image = v2.pad(image, [pad] * 4, padding_mode="reflect")
        image = v2.crop(image, pad + down, pad + right, height, width)
    return v2.horizontal_flip(image) if flip else image


def in_order(count: int, size: int) -> list[EpochPlan]:
    """A plan of `count` images as they are, `size` at a time."""
    still = torch.zeros(count, dtype=torch.int64)
    whole = (torch.arange(count), still, still, still.bool())
    return [EpochPlan(*part) for part in zip(*(torch.split(each, size) for each in whole), strict=True)]
