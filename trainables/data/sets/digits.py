"""scikit-learn's handwritten digits."""

from __future__ import annotations

import numpy as np

from trainables.config import DataConfig
from trainables.data.sets.data_set import DataSet
from trainables.data.sources import Progress, Source, grey_to_rgb, hash_arrays
from trainables.data.stratify import TEST_STREAM, stratified_split

DIGITS_TEST_FRACTION = 0.2


def read_digits(split_seed: int, test: bool) -> Source:
    """Read scikit-learn's 1,797 handwritten digits, 8x8; 20 % of them become the test set.

    Args:
        split_seed: seed of the test set, a stratified sample.
        test: return the test images; otherwise leave them out.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    grey = np.rint(digits.images * (255 / 16)).astype(np.uint8)  # values 0..16
    images, labels = grey_to_rgb(grey), digits.target.astype(np.int64)
    classes = tuple(str(name) for name in digits.target_names)
    rest, held_out = stratified_split(labels, DIGITS_TEST_FRACTION, classes, split_seed, TEST_STREAM)
    return Source(
        images[rest],
        labels[rest],
        (images[held_out], labels[held_out]) if test else None,
        classes,
        hash_arrays(images[rest], labels[rest]),
    )


def _read(config: DataConfig, test: bool, progress: Progress | None) -> Source:
    return read_digits(config.split_seed, test)


DIGITS = DataSet(_read, augment="none")
