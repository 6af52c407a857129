"""Write files atomically, delete them on purpose, describe an error in one line, name this code's version."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
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


_told: list[Callable[[Path], None]] = []


def remove(path: Path) -> None:
    """Delete a file that is no longer needed, in the copies of its folder too; none there is no error."""
    path.unlink(missing_ok=True)
    for tell in list(_told):
        tell(path)


@contextmanager
def removals(tell: Callable[[Path], None]) -> Iterator[None]:
    """Call `tell` with the path of every file that `remove` deletes inside the block, in any thread.

    For a folder that is the working copy of another place. That a file is missing says nothing: whatever
    cleans temporary folders may have taken it.
    """
    _told.append(tell)
    try:
        yield
    finally:
        _told.remove(tell)


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
