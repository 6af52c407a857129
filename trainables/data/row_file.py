"""Decoded images in a file, read image by image; unlike a memory map, it keeps no pages in memory."""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainables.errors import InputError

Rows = NDArray[np.int64]


class RowFile:
    """The images of a .npy file, uint8 (N, 3, H, W); indexing with an array of N' indices reads N' of them.

    Pickling stores the file's path alone: the process that unpickles it must be able to read the file.
    """

    def __init__(self, path: Path, shape: tuple[int, ...], offset: int) -> None:
        """Use `of` instead, which reads shape and offset from the file."""
        self.path, self.shape, self._offset = path, shape, offset

    @classmethod
    def of(cls, path: Path) -> RowFile:
        """Open the images in the file at `path`."""
        array: Any = np.load(path, mmap_mode="r")
        assert array.dtype == np.uint8 and array.ndim == 4 and array.flags.c_contiguous
        return cls(path, array.shape, array.offset)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Rows) -> NDArray[np.uint8]:
        images = np.empty((len(rows), *self.shape[1:]), dtype=np.uint8)
        size = images[:1].nbytes
        for image, row in zip(images, np.asarray(rows).tolist()):
            read = os.preadv(self._file, [image.data], self._offset + row * size)
            if read != size:
                raise InputError(f"{self.path}: cut short: image {row} is missing; delete the file")
        return images

    @cached_property
    def _file(self) -> int:
        try:
            return os.open(self.path, os.O_RDONLY)
        except OSError as error:
            raise InputError(
                f"data.cache: {self.path} cannot be read ({error.strerror}); on a cluster, streamed images "
                "need a folder that all nodes share"
            ) from None

    def __del__(self) -> None:
        if "_file" in self.__dict__:
            os.close(self._file)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_file"}
