"""Time the making of a training batch: random crop, flip and normalisation of uint8 images.

    python benchmarks/augmentation.py --threads 1 --batch 256 --size 32

Compares four implementations that give the same pixels; the first is that of `trainables.data.augment`.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from trainables.data.augment import Augment, EpochPlan, gather_augmented, plan_epoch
from trainables.data.pixels import normalisation_constants, normalise


def reflected(images: torch.Tensor, pad: int) -> torch.Tensor:
    """Pad uint8 images (B, 3, H, W) with reflected borders."""
    size = images.shape[-1]
    index = (size - 1) - ((size - 1) - torch.arange(-pad, size + pad).abs()).abs()
    return images.index_select(2, index).index_select(3, index)


def mirrored(images: torch.Tensor, plan: EpochPlan) -> torch.Tensor:
    return torch.where(plan.flip[:, None, None, None], images.flip(3), images)


def advanced_indexing(images: torch.Tensor, plan: EpochPlan, pad: int) -> torch.Tensor:
    size = images.shape[-1]
    padded = reflected(images[plan.order], pad)
    rows = torch.arange(size) + plan.down[:, None] + pad
    columns = torch.arange(size) + plan.right[:, None] + pad
    batch, channel = torch.arange(len(padded)), torch.arange(3)
    cropped = padded[
        batch[:, None, None, None], channel[:, None, None], rows[:, None, :, None], columns[:, None, None]
    ]
    return mirrored(cropped, plan)


def strided_windows(images: torch.Tensor, plan: EpochPlan, pad: int) -> torch.Tensor:
    size = images.shape[-1]
    windows = reflected(images[plan.order], pad).unfold(2, size, 1).unfold(3, size, 1)
    cropped = windows.permute(0, 2, 3, 1, 4, 5)[
        torch.arange(len(plan.order)), plan.down + pad, plan.right + pad
    ]
    return mirrored(cropped, plan)


def grouped_by_offset(images: torch.Tensor, plan: EpochPlan, pad: int) -> torch.Tensor:
    size = images.shape[-1]
    padded = reflected(images[plan.order], pad)
    tall = padded.new_empty(len(padded), 3, size, size + 2 * pad)
    cropped = padded.new_empty(len(padded), 3, size, size)
    for offset in range(2 * pad + 1):
        which = (plan.down + pad == offset).nonzero()[:, 0]
        tall[which] = padded[which, :, offset : offset + size]
    for offset in range(2 * pad + 1):
        which = (plan.right + pad == offset).nonzero()[:, 0]
        cropped[which] = tall[which, :, :, offset : offset + size]
    return mirrored(cropped, plan)


def milliseconds(call: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Return the median and the shortest time of `repeats` calls, in ms."""
    times = []
    for _ in range(repeats + 3):
        start = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times[3:]), min(times[3:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=50)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    augment = Augment(pad=args.size // 8, flip=True)
    images = torch.randint(0, 256, (5000, 3, args.size, args.size), dtype=torch.uint8)
    plan = plan_epoch(len(images), augment, seed=0, epoch=0).batches(len(images) // args.batch)[0]
    constants = normalisation_constants((0.5, 0.5, 0.5), (0.25, 0.25, 0.25), torch.device("cpu"))
    expected = gather_augmented(images, plan, augment)
    ways: dict[str, Callable[[], torch.Tensor]] = {
        "row and column gather": lambda: gather_augmented(images, plan, augment),
        "advanced indexing": lambda: advanced_indexing(images, plan, augment.pad),
        "strided windows": lambda: strided_windows(images, plan, augment.pad),
        "grouped by offset": lambda: grouped_by_offset(images, plan, augment.pad),
    }
    print(
        f"batch {len(plan.order)} of {args.size}x{args.size}, {args.threads} thread(s), median (fastest) ms"
    )
    for name, way in ways.items():
        assert torch.equal(way(), expected), name
        print("{:24s} {:6.2f} ({:.2f})".format(name, *milliseconds(way, args.repeats)))
    normalised = milliseconds(lambda: normalise(expected, constants, torch.contiguous_format), args.repeats)
    print("{:24s} {:6.2f} ({:.2f})".format("normalisation", *normalised))


if __name__ == "__main__":
    main()
