"""Write files atomically, describe an error in one line, name the version of this code."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` to write to; it takes the place of `path` when the block ends well.

    Readers see the old file or the new one, never a part. Missing folders are made. After an error `path` is
    as it was and the temporary file is gone.

        with replacing(Path("costs.json")) as fresh:
            fresh.write_text("{}")

    Raises:
        OSError: the folder cannot be made or written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        yield fresh
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` (UTF-8) to `path` atomically."""
    with replacing(path) as fresh:
        fresh.write_text(text, encoding="utf-8")


def first_line(error: BaseException) -> str:
    """The first line of an error's message; its type where it has none."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def code_version() -> str:
    """The version of `ama-search` that runs."""
    return version("ama-search")
