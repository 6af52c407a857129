"""One image file to one uint8 array, and the job of a decoding process. Pillow and NumPy only."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from trainables.errors import InputError


@dataclass(frozen=True)
class Failure:
    """Why one file gave no image: not decodable, or (`other_size`) not of the size all must have."""

    reason: str
    other_size: bool = False


@dataclass(frozen=True)
class Job:
    """Decode `files` (relative to `folder`) into rows `start`, `start + 1`, ... of the .npy file `array`."""

    folder: Path
    files: tuple[str, ...]
    array: Path
    start: int
    side: int
    exact: bool  # an image that is not side x side already is a failure


def decode_job(job: Job) -> list[str | Failure]:
    """Do the job; for each file the SHA-256 (hex) of its bytes, or why it gave no image."""
    rows = np.load(job.array, mmap_mode="r+")
    results: list[str | Failure] = []
    for row, name in enumerate(job.files, job.start):
        # Broken files make Pillow's decoders raise all kinds of exceptions.
        try:
            content = (job.folder / name).read_bytes()
            with Image.open(io.BytesIO(content)) as image:
                if job.exact and image.size != (job.side, job.side):
                    results.append(Failure(f"{image.width}x{image.height}", other_size=True))
                    continue
                rows[row] = to_array(image, job.side)
        except Exception as error:
            results.append(Failure(_one_line(error)))
        else:
            results.append(hashlib.sha256(content).hexdigest())
    return results


def image_size(path: Path) -> tuple[int, int] | Failure:
    """Width and height from the file's header."""
    try:
        with Image.open(path) as image:
            return image.size
    except Exception as error:
        return Failure(_one_line(error))


def to_array(image: Image.Image, side: int) -> NDArray[np.uint8]:
    """An opened image of any mode and size as uint8 (3, side, side).

    The centre square, as wide as the shorter side, is resized (bilinear, antialiased). An image that has the
    size keeps its pixels.
    """
    image.draft(None, (2 * side, 2 * side))  # large JPEG files: decode at a fraction of the size
    rgb = to_rgb(image)
    if rgb.size != (side, side):
        short = min(rgb.size)
        left, top = (rgb.width - short) / 2, (rgb.height - short) / 2
        rgb = rgb.resize((side, side), Image.Resampling.BILINEAR, box=(left, top, left + short, top + short))
    return np.asarray(rgb).transpose(2, 0, 1)


def to_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB of an image of any mode.

    Transparent images are laid over white, 16-bit grey keeps its upper byte, and float grey is taken as 0..1
    if it never exceeds 1, else as 0..255.
    """
    if image.mode.startswith("I"):
        # Pillow's own conversion clips 16-bit values at 255.
        values = np.asarray(image).astype(np.int64)
        return Image.fromarray((values.clip(0, 0xFFFF) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        grey = np.nan_to_num(np.asarray(image))
        grey = grey * 255 if grey.max() <= 1 else grey
        return Image.fromarray(np.rint(grey.clip(0, 255)).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def unreadable(path: Path, reason: str) -> InputError:
    """The error that names the file and the way out."""
    return InputError(
        f"{path}: cannot be decoded as an image ({reason}); remove it, or count and skip such files with"
        " -o data.skip_unreadable=true"
    )


def _one_line(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "no image format that Pillow knows"
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0]
