"""Training augmentation as batched tensor operations on uint8 images.

Crops and flips are computed as source indices for each output row and column. A batch then takes two gathers
from the data set: whole rows first (one memory copy each), columns second. Nothing is padded and the images
are never written to. On a CPU this is several times faster than cropping padded copies
(`benchmarks/augmentation.py`). Crops beyond the border are filled by reflection, so there are no black edges.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class Augment:
    """Augmentation of training images: a crop shifted by up to `pad` pixels each way, a horizontal flip."""

    pad: int = 0
    flip: bool = False


def augment_for(kind: str, size: int) -> Augment:
    """Return the augmentation none, flip, crop or crop-flip for images of `size` pixels a side."""
    return Augment(max(1, size // 8) if "crop" in kind else 0, "flip" in kind)


@dataclass(frozen=True, eq=False)
class EpochPlan:
    """Order, crops and flips of the images of one epoch. All tensors are (N,)."""

    order: torch.Tensor  # int64, indices into the split
    down: torch.Tensor  # int64, shift of the crop in rows, -pad..pad
    right: torch.Tensor  # int64, shift in columns, likewise
    flip: torch.Tensor  # bool

    def batches(self, steps: int) -> list[EpochPlan]:
        """Split the plan into `steps` parts whose lengths differ by at most one."""
        parts = (t.tensor_split(steps) for t in (self.order, self.down, self.right, self.flip))
        return [EpochPlan(*part) for part in zip(*parts)]

    def to(self, device: torch.device) -> EpochPlan:
        """Return the plan on `device`."""
        return EpochPlan(*(t.to(device) for t in (self.order, self.down, self.right, self.flip)))


def plan_epoch(n: int, augment: Augment, seed: int, epoch: int) -> EpochPlan:
    """Draw the order and augmentation of `n` images in one epoch; they depend on the arguments alone.

    Random numbers are drawn on the CPU, so that every device sees the same epoch.
    """
    state = np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)
    generator = torch.Generator().manual_seed(int(state[0]) >> 1)
    order = torch.randperm(n, generator=generator)
    shift = torch.zeros(2, n, dtype=torch.int64)
    if augment.pad:
        shift = torch.randint(-augment.pad, augment.pad + 1, (2, n), generator=generator)
    flip = torch.zeros(n, dtype=torch.bool)
    if augment.flip:
        flip = torch.randint(0, 2, (n,), generator=generator).bool()
    return EpochPlan(order, shift[0], shift[1], flip)


def gather_augmented(images: torch.Tensor, plan: EpochPlan, augment: Augment) -> torch.Tensor:
    """Return a batch: the planned images, cropped and flipped.

    Args:
        images: the whole split, uint8 (N, 3, H, W), contiguous; only read.
        plan: B planned images, on the device of `images`.
        augment: what the plan was drawn for.

    Returns:
        New uint8 tensor (B, 3, H, W). A crop is taken from the image shifted by (down, right) with
        reflected borders, then mirrored where `flip` is set.
    """
    if augment == Augment():
        return images.index_select(0, plan.order)
    _, channels, height, width = images.shape
    batch = len(plan.order)
    rows = _reflect(torch.arange(height, device=images.device) + plan.down[:, None], height)  # (B, H)
    columns = torch.arange(width, device=images.device).expand(batch, width)
    columns = torch.where(plan.flip[:, None], width - 1 - columns, columns)
    columns = _reflect(columns + plan.right[:, None], width)  # (B, W)
    channel = torch.arange(channels, device=images.device)[None, :, None]
    row_of_split = (plan.order[:, None, None] * channels + channel) * height + rows[:, None]  # (B, 3, H)
    picked = images.view(-1, width).index_select(0, row_of_split.flatten())
    picked = picked.view(batch, channels, height, width)
    return picked.gather(3, columns[:, None, None].expand_as(picked))


def _reflect(index: torch.Tensor, size: int) -> torch.Tensor:
    """Mirror indices outside 0..size-1 at the border pixel; clamp those more than `size - 1` outside."""
    last = size - 1
    return (last - (last - index.abs()).abs()).clamp_(min=0)
