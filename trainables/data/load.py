"""Load a data set as `DataConfig` says: in memory or streamed, split and normalised."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from trainables.config import DataConfig, Triple
from trainables.config_base import hash_json
from trainables.data.augment import augment_for
from trainables.data.dataset import ImageData
from trainables.data.image_files.image_cache import fresh_folder
from trainables.data.pixels import channel_statistics, chunk_length, resize
from trainables.data.row_file import RowFile
from trainables.data.sets.data_set import DATA_SETS, DataSet
from trainables.data.sources import Images, Progress, Source, cache_folder
from trainables.data.split import select
from trainables.data.stratify import LIMIT_STREAM, VAL_STREAM, Indices, stratified_sample, stratified_split
from trainables.errors import InputError
from trainables.registry import IMPORT

GIB = 2**30
CGROUPS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def load_data(config: DataConfig | str, *, test: bool = False, progress: Progress | None = None) -> ImageData:
    """Load and split the images of a data set.

    The split is stratified and depends on `split_seed` alone: `val_fraction` of the training images become
    the validation images, then `train_limit` samples the rest. A data set with its own test images keeps
    them for any seed; of digits, 20 % of all images become the test images first.

    Args:
        config: the data set and its options; the name of a data set stands for its defaults.
        test: read the test images too.
        progress: called with (what is being decoded, images done, images in all).

    Returns:
        Training and validation images, uint8 (N, 3, H, W), with their labels, and the test images or None.

    Raises:
        InputError: the data is missing, damaged or does not fit the config.

    Example:
        data = load_data("digits")
        few = load_data(DataConfig(name="digits", train_limit=200), test=True)
        print(data.image_shape, len(data.train), len(data.val), len(few.train), len(few.test))
    """
    if isinstance(config, str):
        config = DataConfig(name=config)
    _check_normalisation(config)
    data_set, source = _read(config, test, progress)
    classes = source.classes
    rest, held_out = stratified_split(
        source.labels, config.val_fraction, classes, config.split_seed, VAL_STREAM
    )
    chosen = rest
    if config.train_limit is not None:
        labels = source.labels[rest]
        sample = stratified_sample(labels, config.train_limit, len(classes), config.split_seed, LIMIT_STREAM)
        chosen = rest[sample]
    size = config.size or source.images.shape[-1]
    count = len(chosen) + len(held_out) + (len(source.test[1]) if source.test else 0)
    if streams(config, count * 3 * size**2):
        source = _in_files(source, size, cache_folder(config))
    mean, std = _normalisation(config, data_set, source.images, rest, size)
    shaping = config.model_dump(include={"name", "train_limit", "val_fraction", "split_seed"})
    return ImageData(
        name=config.name,
        train=select(source.images, source.labels, chosen, size),
        val=select(source.images, source.labels, held_out, size),
        test=select(*source.test, np.arange(len(source.test[1])), size) if source.test else None,
        classes=classes,
        mean=mean,
        std=std,
        augment=augment_for(data_set.augmentation(config.augment), size),
        hash=hash_json(shaping | {"source": source.hash, "size": size}),
        skipped=source.skipped,
        workers=config.workers,
        memory_limit=config.memory_limit,
    )


def _in_files(source: Source, size: int, cache: Path) -> Source:
    """Return the source with images resized to `size` and kept in files."""
    test = source.test and (row_file(source.test[0], size, cache), source.test[1])
    return replace(source, images=row_file(source.images, size, cache), test=test)


def _check_normalisation(config: DataConfig) -> None:
    if (config.mean is None) != (config.std is None):
        given, other = ("mean", "std") if config.mean is not None else ("std", "mean")
        raise InputError(f"data.{other}: data.{given} is given, so data.{other} must be, too")
    if config.std is not None and min(config.std) <= 0:
        raise InputError(f"data.std: expected values above 0, got {list(config.std)}")


def _read(config: DataConfig, test: bool, progress: Progress | None) -> tuple[DataSet, Source]:
    try:
        data_set = DATA_SETS.get(config.name)
    except InputError as error:
        raise InputError(f"data.name: {error}") from error.__cause__
    own = config.name.startswith(IMPORT)
    try:
        source = data_set.read(config, test, progress)
    except Exception as error:
        if not own:
            raise
        what = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
        raise InputError(f"data.name: {config.name}: its reader failed: {what}") from error
    if not isinstance(source, Source):
        raise InputError(
            f"data.name: {config.name}: its reader must give a Source, but gave {type(source).__name__}"
        )
    if test and own and source.test is None:
        raise InputError(f"data.name: {config.name}: its reader gave no test images, which are needed")
    return data_set, source


def _normalisation(
    config: DataConfig, data_set: DataSet, images: Images | RowFile, training: Indices, size: int
) -> tuple[Triple, Triple]:
    """Return mean and standard deviation: as given, the data set's, or computed from the training images.

    They are computed from the images before `train_limit`, so that a teacher's normalisation fits any limit.
    """
    if config.mean is not None and config.std is not None:
        return config.mean, config.std
    if data_set.mean is not None and data_set.std is not None:
        return data_set.mean, data_set.std
    return channel_statistics(images, training, size)


def streams(config: DataConfig, size: int) -> bool:
    """Return whether `size` bytes of decoded images are streamed."""
    if config.storage != "auto":
        return config.storage == "stream"
    return size > limit_bytes(config.memory_limit)


def limit_bytes(memory_limit: float | None) -> float:
    """Return `data.memory_limit` (GiB, or None for this machine's default) in bytes."""
    return default_limit() if memory_limit is None else memory_limit * GIB


def default_limit() -> float:
    """Return the bytes of images that may stay in memory.

    They are the smaller of half of this process's memory and a quarter of its GPU's.
    """
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2]
    for file in map(Path, CGROUPS):
        if file.exists() and (text := file.read_text().strip()).isdigit():
            limits.append(int(text) / 2)
    if torch.cuda.is_available():
        limits.append(torch.cuda.mem_get_info()[1] / 4)
    return min(limits)


def row_file(images: Images | RowFile, size: int, cache: Path) -> RowFile:
    """Return a file of the images (N, 3, H, H) resized to `size`: the given file, or a new one in `cache`.

    Raises:
        InputError: the file cannot be written.
    """
    if isinstance(images, RowFile):
        return images
    if isinstance(images, np.memmap) and images.shape[-1] == size:
        return RowFile.of(Path(str(images.filename)))
    count = chunk_length(max(size, images.shape[-1]))
    parts = range(0, len(images), count)
    digest = hashlib.sha256(f"{images.shape} {size}".encode())
    for start in parts:
        digest.update(np.ascontiguousarray(images[start : start + count]).data)
    place = cache / f"resized-{digest.hexdigest()[:16]}"
    if not place.is_dir():
        with fresh_folder(place, len(images) * 3 * size**2) as scratch:
            shape = (len(images), 3, size, size)
            rows = np.lib.format.open_memmap(scratch / "images.npy", mode="w+", dtype=np.uint8, shape=shape)
            for start in parts:
                rows[start : start + count] = resize(images[start : start + count], size)
            rows.flush()
    return RowFile.of(place / "images.npy")
