"""Where decoded images stay: in memory, or in a file from which they are streamed."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import torch

from trainables.config import DataConfig
from trainables.data.image_cache import fresh_folder
from trainables.data.pixels import chunk_length, resize
from trainables.data.row_file import RowFile
from trainables.data.sources import Images

GIB = 2**30
CGROUPS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def streams(config: DataConfig, size: int) -> bool:
    """Whether `size` bytes of decoded images are streamed."""
    if config.storage != "auto":
        return config.storage == "stream"
    limit = default_limit() if config.memory_limit is None else config.memory_limit * GIB
    return size > limit


def default_limit() -> float:
    """Bytes of images that may stay in memory: half of what this process may use, a quarter of its GPU's."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2]
    for file in map(Path, CGROUPS):
        if file.exists() and (text := file.read_text().strip()).isdigit():
            limits.append(int(text) / 2)
    if torch.cuda.is_available():
        limits.append(torch.cuda.mem_get_info()[1] / 4)
    return min(limits)


def row_file(images: Images | RowFile, size: int, cache: Path) -> RowFile:
    """Images (N, 3, H, H) brought to `size` pixels a side, in a file: their own, or one made in `cache`.

    Raises:
        InputError: the file cannot be written there.
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
