"""Write files atomically, delete files, shorten an error to one line, return this package's version."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary file beside `path` to write to; it replaces `path` when the block succeeds.

    Readers see the old file or the new one, never a part. Missing folders are made. After an error `path` is
    unchanged and the temporary file is deleted.

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


_listeners: list[Callable[[Path], None]] = []


def remove(path: Path) -> None:
    """Delete a file and inform the listeners of `removals`. A missing file is not an error."""
    path.unlink(missing_ok=True)
    for tell in list(_listeners):
        tell(path)


@contextmanager
def removals(tell: Callable[[Path], None]) -> Iterator[None]:
    """Call `tell` with the path of every file that `remove` deletes inside the block, in any thread.

    Use it for the working copy of a remote folder. A missing file alone does not mean that it was deleted
    on purpose: the system may clean temporary folders.
    """
    _listeners.append(tell)
    try:
        yield
    finally:
        _listeners.remove(tell)


def write_text(path: Path, text: str) -> None:
    """Write `text` (UTF-8) to `path` atomically."""
    with replacing(path) as fresh:
        fresh.write_text(text, encoding="utf-8")


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type if the message is empty."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def code_version() -> str:
    """Return the installed version of `ama-search`."""
    return version("ama-search")
