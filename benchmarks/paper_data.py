"""Load images for the paper's table, with validation images that were not in the teacher's training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from trainables.config import DataConfig
from trainables.config_base import hash_json
from trainables.data.augment import augment_for
from trainables.data.dataset import ImageData
from trainables.data.image_files.imagefolder import read_imagefolder
from trainables.data.load import load_data
from trainables.data.sets.data_set import DATA_SETS
from trainables.data.sources import cache_folder
from trainables.data.split import Split, select
from trainables.data.stratify import LIMIT_STREAM, VAL_STREAM, stratified_sample
from trainables.errors import InputError


def table_data(config: DataConfig, saw: int | None, val_images: int) -> ImageData:
    """Load training, validation and test images.

    Args:
        config: the experiment's data.
        saw: number of files of each training class, from the first, that the teacher was trained on. Students
            train on (a sample of) the same; the others are for validation. None: the split of `config`.
        val_images: most validation images; a stratified sample.

    Raises:
        InputError: as `load_data`; `saw` with data other than a folder of images, or leaving no images.
    """
    data = load_data(config, test=True) if saw is None else _after(config, saw)
    if len(data.val) <= val_images:
        return data
    labels = data.val.labels.numpy()
    some = stratified_sample(labels, val_images, data.num_classes, config.split_seed, VAL_STREAM)
    assert isinstance(data.val, Split), "these benchmarks hold their images in memory"
    val = Split(data.val.images[some], data.val.labels[some])
    return replace(data, val=val, hash=hash_json([data.hash, "val", val_images]))


def _after(config: DataConfig, saw: int) -> ImageData:
    """Split into (a sample of) the first `saw` files of every class for training, and the rest."""
    if config.name != "imagefolder" or config.root is None or config.size is None or config.mean is None:
        raise InputError("--teacher-saw needs data.name=imagefolder with data.root, data.size and data.mean")
    assert config.std is not None, "validated with the mean"
    cache = cache_folder(config)
    source = read_imagefolder(Path(config.root).expanduser(), config.size, cache, False, True, None)
    assert source.test is not None, "asked for"
    places = np.concatenate([np.arange(n) for n in np.bincount(source.labels)])  # files are in class order
    seen, rest = np.flatnonzero(places < saw), np.flatnonzero(places >= saw)
    if len(np.unique(source.labels[rest])) < len(source.classes):
        raise InputError(
            f"--teacher-saw: a class has no more than {saw} training images: none to validate on"
        )
    if config.train_limit is not None:
        seen = seen[
            stratified_sample(
                source.labels[seen], config.train_limit, len(source.classes), config.split_seed, LIMIT_STREAM
            )
        ]
    return ImageData(
        name=config.name,
        train=select(source.images, source.labels, seen, config.size),
        val=select(source.images, source.labels, rest, config.size),
        test=select(*source.test, np.arange(len(source.test[1])), config.size),
        classes=source.classes,
        mean=config.mean,
        std=config.std,
        augment=augment_for(DATA_SETS.get(config.name).augmentation(config.augment), config.size),
        hash=hash_json([source.hash, config.size, "saw", saw, config.train_limit, config.split_seed]),
    )
