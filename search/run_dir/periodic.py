"""Something done again and again beside the work of a `with` block."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def repeated(action: Callable[[], None], seconds: float, name: str) -> Iterator[None]:
    """Call `action` every so often in a thread; the last call is over when the block is left.

    Args:
        action: raises nothing that it does not mean to end with.
        seconds: between two calls, and before the first.
        name: of the thread.
    """
    over = threading.Event()

    def keep() -> None:
        while not over.wait(seconds):
            action()

    thread = threading.Thread(target=keep, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
