"""Decode image files to uint8 arrays, in this process or in a pool. Imports Pillow and NumPy alone."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from trainables.errors import InputError
from trainables.files import first_line

SERIAL_BELOW = 512  # fewer images are decoded faster than a process starts


@dataclass(frozen=True)
class Failure:
    """Why a file gave no image: not decodable, or (`other_size`) of another size than the others."""

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
    exact: bool  # an image that is not already side x side is a failure


Results = list[str | Failure]


def decode_job(job: Job) -> list[str | Failure]:
    """Do the job; return for each file the SHA-256 (hex) of its bytes, or why it gave no image."""
    rows = np.load(job.array, mmap_mode="r+")
    results: list[str | Failure] = []
    for row, name in enumerate(job.files, job.start):
        # Pillow's decoders may raise anything on damaged files.
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
    """Read width and height from the file's header."""
    try:
        with Image.open(path) as image:
            return image.size
    except Exception as error:
        return Failure(_one_line(error))


def to_array(image: Image.Image, side: int) -> NDArray[np.uint8]:
    """Convert an opened image of any mode and size to uint8 (3, side, side).

    Cut out the centre square, as wide as the shorter side, and resize it (bilinear, antialiased). An image
    that already has the size keeps its pixels.
    """
    image.draft(None, (2 * side, 2 * side))  # large JPEG files: decode at a fraction of the size
    rgb = to_rgb(image)
    if rgb.size != (side, side):
        short = min(rgb.size)
        left, top = (rgb.width - short) / 2, (rgb.height - short) / 2
        rgb = rgb.resize((side, side), Image.Resampling.BILINEAR, box=(left, top, left + short, top + short))
    return np.asarray(rgb).transpose(2, 0, 1)


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any mode to 8-bit RGB.

    Transparent images get a white background. 16-bit grey keeps its upper byte. Float grey is in 0..1 if it
    never exceeds 1, else in 0..255.
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
    """Make the error that names the file and what to do."""
    return InputError(
        f"{path}: cannot be decoded as an image ({reason}); remove it, or count and skip such files with"
        " -o data.skip_unreadable=true"
    )


def _one_line(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "no image format that Pillow knows"
    return first_line(error)


def run_jobs(jobs: Sequence[Job]) -> Iterator[tuple[Job, Results]]:
    """Yield every job with its results as it is done; few images are decoded in this process."""
    workers = min(_cores(), len(jobs))
    if workers < 2 or sum(len(job.files) for job in jobs) < SERIAL_BELOW:
        yield from ((job, decode_job(job)) for job in jobs)
        return
    with ExitStack() as stack:
        idle: SimpleQueue[subprocess.Popen[bytes]] = SimpleQueue()
        for _ in range(workers):
            idle.put(stack.enter_context(_process()))
        # One thread per process waits for its results.
        threads = stack.enter_context(ThreadPoolExecutor(workers))
        running = {threads.submit(_hand_over, job, idle): job for job in jobs}
        try:
            for future in as_completed(running):
                yield running[future], future.result()
        finally:
            threads.shutdown(wait=True, cancel_futures=True)


def serve(jobs: BinaryIO, results: BinaryIO) -> None:
    """Run a decoding process: read pickled jobs until the end, write the pickled results of each."""
    while True:
        try:
            job = pickle.load(jobs)
        except EOFError:
            return
        pickle.dump(decode_job(job), results)
        results.flush()


@contextmanager
def _process() -> Iterator[subprocess.Popen[bytes]]:
    """Start a decoding process; end it on exit."""
    code = (
        "import sys; from trainables.data.image_files.decoding import serve; "
        "serve(sys.stdin.buffer, sys.stdout.buffer)"
    )
    paths = [str(Path(__file__).parents[3]), os.environ.get("PYTHONPATH", "")]
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        start_new_session=True,  # Ctrl-C goes to the parent alone, which ends this process
    )
    assert process.stdin and process.stdout
    try:
        yield process
    finally:
        with suppress(BrokenPipeError):  # the process died while a job was written
            process.stdin.close()
        process.stdout.close()
        process.wait()


def _hand_over(job: Job, idle: SimpleQueue[subprocess.Popen[bytes]]) -> Results:
    process = idle.get()
    assert process.stdin and process.stdout
    try:
        pickle.dump(job, process.stdin)
        process.stdin.flush()
        results: Results = pickle.load(process.stdout)
    except (EOFError, BrokenPipeError, pickle.UnpicklingError) as error:
        raise RuntimeError(
            f"a decoding process ended with exit code {process.wait()} between {job.files[0]} and"
            f" {job.files[-1]} of {job.folder}; the memory may have run out"
        ) from error
    finally:
        idle.put(process)
    return results


def _cores() -> int:
    """Return the number of cores this process may use; in a container often fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
