"""Read folders of images, one sub-folder per class: `train/<class>/*` and `test/<class>/*` (or `val/`).

Does not import torch, so that the decoding processes start quickly.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from trainables.config import DataConfig
from trainables.data.image_files.decoding import Failure, image_size, unreadable
from trainables.data.image_files.image_cache import Listing, decode_split
from trainables.data.sets.data_set import DataSet
from trainables.data.sources import Progress, Source, cache_folder
from trainables.errors import InputError

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})


def read_imagefolder(
    root: Path, size: int | None, cache: Path, skip_unreadable: bool, test: bool, progress: Progress | None
) -> Source:
    """Read `root/train/<class>/*` and, with `test`, `root/test/<class>/*` (`val/` if there is no `test/`).

    Args:
        root: the folder.
        size: side in pixels; None: the first image's, if it is square and all images have the same size.
        cache: folder for decoded images; made if missing.
        skip_unreadable: leave out and count images that cannot be decoded.
        test: decode the test split too; without it only the names of its class folders are checked.
        progress: called with the number of images of a split that are decoded.

    Raises:
        InputError: a folder is missing or empty; there are fewer than two classes; test and train have
            different classes; an image cannot be decoded; images differ in size and `size` is None; or the
            cache cannot be written.
    """
    if not root.is_dir():
        raise InputError(f"data.root: no such folder: {root}")
    if not (root / "train").is_dir():
        found = ", ".join(sorted(p.name for p in root.iterdir())[:8]) or "nothing"
        raise InputError(f"data.root: {root} has no folder train/ (expected train/<class>/*, found {found})")
    classes = class_folders(root / "train")
    if len(classes) < 2:
        raise InputError(f"data.root: {root / 'train'} needs at least 2 class folders, found {len(classes)}")
    test_folder = _test_folder(root, classes, test)
    listing = list_images(root / "train", classes)
    exact = size is None
    side = size or _common_side(listing, skip_unreadable)
    train = decode_split(listing, side, exact, cache, skip_unreadable, progress)
    if not (test and test_folder):
        return Source(train.images, train.labels, None, classes, train.hash, train.skipped)
    held_out = decode_split(list_images(test_folder, classes), side, exact, cache, skip_unreadable, progress)
    skipped = train.skipped + held_out.skipped
    return Source(
        train.images, train.labels, (held_out.images, held_out.labels), classes, train.hash, skipped
    )


def class_folders(folder: Path) -> tuple[str, ...]:
    """Return the names of the sub-folders, sorted, without hidden ones."""
    return tuple(sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")))


def list_images(folder: Path, classes: Sequence[str]) -> Listing:
    """List all image files below `folder/<class>/`, at any depth.

    Raises:
        InputError: a class folder has no image.
    """
    files: list[str] = []
    labels: list[int] = []
    digest = hashlib.sha256()
    for label, name in enumerate(classes):
        found = sorted(_image_files(folder / name))
        if not found:
            raise InputError(
                f"data.root: class folder {folder / name} has no images ({', '.join(sorted(EXTENSIONS))})"
            )
        for path in found:
            relative = os.path.relpath(path, folder)
            stat = os.stat(path)  # noqa: PTH116 -- a Path object a file is slow on a million files
            digest.update(
                f"{relative}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode(errors="surrogateescape")
            )
            files.append(relative)
            labels.append(label)
    return Listing(folder, tuple(files), np.array(labels, dtype=np.int64), digest.hexdigest()[:16])


def _test_folder(root: Path, classes: tuple[str, ...], needed: bool) -> Path | None:
    """Return the test split's folder after checking its class names; None if missing and not `needed`."""
    folder = next((root / name for name in ("test", "val") if (root / name).is_dir()), None)
    if folder is None:
        if needed:
            raise InputError(f"data.root: {root} has neither test/ nor val/, but test images are needed")
        return None
    found = class_folders(folder)
    if found != classes:
        missing = ", ".join(sorted(set(classes) - set(found))[:8]) or "none"
        extra = ", ".join(sorted(set(found) - set(classes))[:8]) or "none"
        raise InputError(
            f"data.root: the class folders of {folder} must be those of train/"
            f" (missing: {missing}; not in train/: {extra})"
        )
    return folder


def _image_files(folder: Path) -> Iterator[str]:
    for where, _, names in os.walk(folder, followlinks=True):
        for name in names:
            if os.path.splitext(name)[1].lower() in EXTENSIONS and not name.startswith("."):  # noqa: PTH122
                yield os.path.join(where, name)  # noqa: PTH118


def _common_side(listing: Listing, skip_unreadable: bool) -> int:
    """Return the side of the first readable image, which must be square."""
    for name in listing.files:
        path = listing.folder / name
        size = image_size(path)
        if isinstance(size, Failure):
            if skip_unreadable:
                continue
            raise unreadable(path, size.reason)
        width, height = size
        if width != height:
            raise InputError(
                f"data.size: {path} is {width}x{height}, not square; give the size to resize images to"
            )
        return width
    raise InputError(f"data.root: none of the {len(listing.files)} images in {listing.folder} can be decoded")


def _read(config: DataConfig, test: bool, progress: Progress | None) -> Source:
    if config.root is None:
        raise InputError("data.root: imagefolder needs the folder that holds train/ and test/ (or val/)")
    root = Path(config.root).expanduser()
    return read_imagefolder(root, config.size, cache_folder(config), config.skip_unreadable, test, progress)


IMAGEFOLDER = DataSet(_read)
