"""Cache decoded images on disk: decode each split once, in parallel, then memory-map it.

A split is in `<cache>/imagefolder-<key>/`. The key is a hash of the listing (relative paths, sizes,
modification times) and the image size. The folder is created atomically, so several processes may use it at
once. Does not import torch, so that the decoding processes start quickly.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trainables.data.image_files.decoding import Failure, Job, run_jobs, unreadable
from trainables.data.sources import Images, Labels, Progress
from trainables.errors import InputError

FORMAT = 1
CHUNK = 128  # images a job


@dataclass(frozen=True, eq=False)
class Listing:
    """The image files of one split, sorted by class and path."""

    folder: Path
    files: tuple[str, ...]  # relative to `folder`
    labels: Labels  # (len(files),)
    hash: str  # of relative paths, sizes in bytes and modification times


@dataclass(frozen=True, eq=False)
class Decoded:
    """A split from the cache; `images` is a read-only memory map."""

    images: Images
    labels: Labels
    hash: str  # of relative paths and file contents: the same on every machine
    skipped: int


def decode_split(
    listing: Listing, side: int, exact: bool, cache: Path, skip_unreadable: bool, progress: Progress | None
) -> Decoded:
    """Return the images of `listing` from the cache; decode them into it first if they are not there.

    Args:
        listing: the files.
        side: pixels a side of the decoded images.
        exact: refuse images that are not already `side` x `side`; else resize and crop them.
        cache: folder for decoded images.
        skip_unreadable: leave out and count images that cannot be decoded.
        progress: called with the number of images decoded.

    Raises:
        InputError: see `read_imagefolder`.
    """
    key = hashlib.sha256(f"{FORMAT} {listing.hash} {side} {exact}".encode()).hexdigest()[:16]
    place = cache / f"imagefolder-{key}"
    decoded = _load(place, listing, skip_unreadable)
    if decoded is None:
        shutil.rmtree(place, ignore_errors=True)  # absent, or damaged
        with fresh_folder(place, len(listing.files) * 3 * side * side) as scratch:
            _decode_all(listing, side, exact, scratch, skip_unreadable, progress)
        decoded = _load(place, listing, skip_unreadable)
        assert decoded is not None, f"{place} was just written"
    return decoded


def _decode_all(
    listing: Listing, side: int, exact: bool, out: Path, skip_unreadable: bool, progress: Progress | None
) -> None:
    """Write images.npy, labels.npy and meta.json into `out`."""
    array = out / "images.npy"
    shape = (len(listing.files), 3, side, side)
    np.lib.format.open_memmap(array, mode="w+", dtype=np.uint8, shape=shape).flush()
    failures: dict[str, str] = {}
    digests: dict[str, str] = {}
    for name, result in _results(listing, array, side, exact, progress):
        if isinstance(result, str):
            digests[name] = result
        elif result.other_size:
            raise InputError(
                f"data.size: {listing.folder / name} is {result.reason}, the first image {side}x{side};"
                " give the size to resize images to"
            )
        elif not skip_unreadable:
            raise unreadable(listing.folder / name, result.reason)
        else:
            failures[name] = result.reason
    if not digests:
        raise InputError(f"data.root: none of the {len(failures)} images in {listing.folder} can be decoded")
    kept = np.array([name in digests for name in listing.files])
    if failures:
        _keep_rows(array, kept)
    np.save(out / "labels.npy", listing.labels[kept])
    content = "".join(f"{name}\0{digests[name]}\n" for name in listing.files if name in digests)
    meta = {
        "format": FORMAT,
        "hash": hashlib.sha256(content.encode(errors="surrogateescape")).hexdigest()[:16],
        "unreadable": sorted(failures.items()),
    }
    (out / "meta.json").write_text(json.dumps(meta))


def _results(
    listing: Listing, array: Path, side: int, exact: bool, progress: Progress | None
) -> Iterator[tuple[str, str | Failure]]:
    """Yield every file with its result, in no particular order; write the pixels into `array`."""
    total = len(listing.files)
    jobs = [
        Job(listing.folder, listing.files[start : start + CHUNK], array, start, side, exact)
        for start in range(0, total, CHUNK)
    ]
    done = 0
    for job, results in run_jobs(jobs):
        yield from zip(job.files, results)
        done += len(results)
        if progress:
            progress(f"decoding {listing.folder.name} images", done, total)


def _keep_rows(array: Path, kept: NDArray[np.bool_]) -> None:
    """Rewrite the .npy file `array` (N, ...) without the rows where `kept` (N,) is false."""
    old = np.load(array, mmap_mode="r")
    shape = (int(kept.sum()), *old.shape[1:])
    fresh = array.with_name("kept.npy")
    new = np.lib.format.open_memmap(fresh, mode="w+", dtype=old.dtype, shape=shape)
    rows = np.flatnonzero(kept)
    for start in range(0, len(rows), CHUNK):
        new[start : start + CHUNK] = old[rows[start : start + CHUNK]]
    new.flush()
    fresh.replace(array)


def _load(place: Path, listing: Listing, skip_unreadable: bool) -> Decoded | None:
    """Load the split from `place`; None if there is none that this version can read."""
    try:
        meta = json.loads((place / "meta.json").read_text())
        labels = np.load(place / "labels.npy")
        images = np.load(place / "images.npy", mmap_mode="r")
    except (OSError, ValueError):
        return None
    if meta.get("format") != FORMAT or len(images) != len(labels):
        return None
    if meta["unreadable"] and not skip_unreadable:
        name, reason = meta["unreadable"][0]
        raise unreadable(listing.folder / name, reason)
    return Decoded(images, labels, meta["hash"], len(meta["unreadable"]))


@contextmanager
def fresh_folder(place: Path, size: int) -> Iterator[Path]:
    """Yield a new folder that becomes `place` if the block succeeds; otherwise it is removed.

    Raises:
        InputError: the folder cannot be made or written, or the disk does not have `size` bytes free.
    """
    scratch = place.with_name(f".{place.name}-{os.getpid()}-{secrets.token_hex(4)}")
    try:
        scratch.mkdir(parents=True)
        # Check first: writing a memory map to a full disk kills the process.
        if (free := shutil.disk_usage(scratch).free) < size:
            raise InputError(
                f"data.cache: the decoded images need {size / 1e9:.2f} GB, but {place.parent} has"
                f" {free / 1e9:.2f} GB free"
            )
        yield scratch
        try:
            scratch.replace(place)
        except OSError:
            if not place.is_dir():  # else another process was first; its images are the same
                raise
    except OSError as error:
        raise InputError(
            f"data.cache: decoded images cannot be written to {place.parent}: {error}"
        ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
