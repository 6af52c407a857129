"""Where an epoch's time goes and how much memory it took, measured without waiting for the device."""

from __future__ import annotations

import resource
import time
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
_MIB = 2**20


class Stopwatch:
    """Splits a stretch of work into named parts; on a GPU by events, which the host does not wait for.

    Every `mark` gives the time since the one before to its name.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._seconds: dict[str, float] = defaultdict(float)
        self._events: list[tuple[str, Any]] = []
        self._last = 0.0
        self.start()

    def start(self) -> None:
        """Begin here: what was before counts for nothing."""
        if self._cuda:
            self._events.append(("", _event()))
        self._last = time.perf_counter()

    def mark(self, name: str) -> None:
        """What was done since the last mark was `name`."""
        if self._cuda:
            self._events.append((name, _event()))
            return
        now = time.perf_counter()
        self._seconds[name] += now - self._last
        self._last = now

    def seconds(self) -> dict[str, float]:
        """Time by name. Waits for a GPU to finish what was marked."""
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


def reset_peaks(device: torch.device) -> None:
    """Let `peaks` count from here on, where the system allows it (Linux and CUDA do)."""
    with suppress(OSError):
        _CLEAR.write_text("5")  # sets the process's peak of resident memory to what it has now
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peaks(device: torch.device) -> tuple[float, float]:
    """Most MiB of host memory resident in this process, and of GPU memory allocated by it (0 on a CPU)."""
    gpu = torch.cuda.max_memory_allocated(device) / _MIB if device.type == "cuda" else 0.0
    return _field("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, gpu


def private_mib() -> float:
    """Host memory of this process alone, without files and shared memory; 0 where that cannot be read."""
    return _field("RssAnon")


def _field(name: str) -> float:
    """A field of this process's status in MiB; 0 where there is none."""
    if not _STATUS.exists():
        return 0.0
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) / 1024
    return 0.0
