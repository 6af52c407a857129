"""Call a function periodically in a background thread."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def repeated(action: Callable[[], None], seconds: float, name: str) -> Iterator[None]:
    """Call `action` periodically in a background thread until the block ends.

    A call in progress is finished before the block is left.

    Args:
        action: the function; an exception ends the thread.
        seconds: interval between two calls, and before the first.
        name: name of the thread.
    """
    stop = threading.Event()

    def loop() -> None:
        while not stop.wait(seconds):
            action()

    thread = threading.Thread(target=loop, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
