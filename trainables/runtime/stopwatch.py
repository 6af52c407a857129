"""Measure the time of an epoch's parts without waiting for the device."""

from __future__ import annotations

import time
from collections import defaultdict
from typing import Any

import torch


class Stopwatch:
    """Add up time by name; on a GPU with events, which the host does not wait for.

    Every `mark` adds the time since the previous mark to its name.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._seconds: dict[str, float] = defaultdict(float)
        self._events: list[tuple[str, Any]] = []
        self._last = 0.0
        self.start()

    def start(self) -> None:
        """Start timing; ignore the time before."""
        if self._cuda:
            self._events.append(("", _event()))
        self._last = time.perf_counter()

    def mark(self, name: str) -> None:
        """Add the time since the last mark to `name`."""
        if self._cuda:
            self._events.append((name, _event()))
            return
        now = time.perf_counter()
        self._seconds[name] += now - self._last
        self._last = now

    def seconds(self) -> dict[str, float]:
        """Return the seconds by name. Waits for the GPU to finish the marked work."""
        if self._events:
            self._events[-1][1].synchronize()
        for (_, before), (name, event) in zip(self._events, self._events[1:]):
            if name:
                self._seconds[name] += before.elapsed_time(event) / 1e3
        self._events = self._events[-1:]
        return dict(self._seconds)


def _event() -> Any:
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()  # type: ignore[no-untyped-call]
    return event
