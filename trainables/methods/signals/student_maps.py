"""The maps of a separate student that a method compares with the teacher's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor

from trainables.methods.base import Method
from trainables.network.taps import Taps
from trainables.student.pairs import Point


class StudentMaps:
    """Run a method's student and read its maps at some points.

    Args:
        method: whose student; its `logits` runs it.
        taps: one point for each map; points may repeat.
    """

    def __init__(self, method: Method, taps: Sequence[Point]) -> None:
        self._method, self._taps = method, tuple(taps)
        self._outputs: dict[str, Tensor] = {}

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Attach the hooks; remove them on exit."""
        paths = list(dict.fromkeys(tap.path for tap in self._taps))
        copied = {tap.path for tap in self._taps if tap.overwritten}
        with Taps(self._method.student, paths, copied) as taps:
            self._outputs = taps.outputs
            yield

    def __call__(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return logits (B, classes) and the map at every point, (B, *shape), with their graph."""
        try:
            logits = self._method.logits(images)
            return logits, [self._outputs[tap.path] for tap in self._taps]
        finally:
            self._outputs.clear()  # also frees the maps of a pass that ran out of memory
