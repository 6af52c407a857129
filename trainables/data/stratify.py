"""Draw seeded, stratified samples of labelled images. Imports NumPy alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from trainables.errors import InputError

Indices = NDArray[np.int64]

# Each use of `split_seed` draws from a separate random stream, so one split does not change another.
TEST_STREAM, VAL_STREAM, LIMIT_STREAM = 0, 1, 2


def allocate(counts: Indices, total: int, low: Indices, high: Indices) -> Indices:
    """Compute how many images of each class to take: `total` in all, in proportion to `counts`.

    Args:
        counts: images of each class, (classes,).
        total: images wanted; clamped to `low.sum()`..`high.sum()`.
        low: fewest to take of each class, (classes,).
        high: most to take of each class, (classes,); at least `low`.

    Returns:
        (classes,), each within its bounds, with the smallest deviations from proportional shares.
    """
    total = int(np.clip(total, low.sum(), high.sum()))
    share = counts * (total / counts.sum())
    taken: Indices = np.clip(np.floor(share).astype(np.int64), low, high)
    while (missing := total - int(taken.sum())) != 0:
        step = 1 if missing > 0 else -1
        movable = taken < high if step > 0 else taken > low
        gap = np.where(movable, step * (share - taken), -np.inf)
        taken[np.argmax(gap)] += step
    return taken


def stratified_split(
    labels: NDArray[np.int64], fraction: float, classes: Sequence[str], seed: int, stream: int
) -> tuple[Indices, Indices]:
    """Hold out `fraction` of the images, in proportion from every class.

    Args:
        labels: class of every image, (N,), values 0..len(classes)-1.
        fraction: share to hold out, in 0..1 exclusive.
        classes: names, for the error message.
        seed: the same seed gives the same split.
        stream: which of the independent random streams of `seed` to use.

    Returns:
        Indices of the rest and of the held-out images, both ascending, disjoint, together all N. Every
        class has at least one image in each.

    Raises:
        InputError: a class has fewer than two images.
    """
    counts = np.bincount(labels, minlength=len(classes))
    if counts.min() < 2:
        rare = classes[int(counts.argmin())]
        raise InputError(
            f"data: class {rare!r} has {counts.min()} usable training image(s); at least 2 are needed, one to"
            " train on and one to hold out for validation"
        )
    taken = allocate(counts, round(fraction * len(labels)), np.ones_like(counts), counts - 1)
    held_out = _draw(labels, taken, seed, stream)
    rest = np.setdiff1d(np.arange(len(labels)), held_out, assume_unique=True)
    return rest, held_out


def stratified_sample(
    labels: NDArray[np.int64], size: int, num_classes: int, seed: int, stream: int
) -> Indices:
    """Sample `size` images, in proportion and at least one from every class; return ascending indices.

    Raises:
        InputError: `size` is below the number of classes or above the number of images.
    """
    if size > len(labels):
        raise InputError(
            f"data.train_limit: {size} is more than the {len(labels)} training images left after the"
            " validation split"
        )
    if size < num_classes:
        raise InputError(
            f"data.train_limit: expected at least one image per class ({num_classes}), got {size}"
        )
    counts = np.bincount(labels, minlength=num_classes)
    return _draw(labels, allocate(counts, size, np.ones_like(counts), counts), seed, stream)


def _draw(labels: NDArray[np.int64], taken: Indices, seed: int, stream: int) -> Indices:
    rng = np.random.default_rng([seed, stream])
    chosen = [
        rng.permutation(np.flatnonzero(labels == label))[:count] for label, count in enumerate(taken.tolist())
    ]
    return np.sort(np.concatenate(chosen)).astype(np.int64)
