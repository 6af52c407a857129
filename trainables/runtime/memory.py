"""Check that the memory of a process that trains one trial after another does not grow."""

from __future__ import annotations

import ctypes
import gc
import resource
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
_MIB = 2**20


class MemoryGrown(RuntimeError):  # noqa: N818 - a reason to restart the process, not a fault of the trial
    """The memory of a process grew from trial to trial; the message says by how much."""


@dataclass
class Growth:
    """Compare the memory between trials with the memory after the first ones.

    Memory has grown if it exceeds `factor` times the earlier value by more than `slack_mib`. Host memory
    counts without files and shared memory, GPU memory as allocated by this process.
    """

    settled: int = 5  # trials until caches are filled and memory should no longer grow
    factor: float = 1.25
    slack_mib: float = 256.0
    _trials: int = field(default=0, init=False)
    _usual: dict[str, float] = field(default_factory=dict, init=False)

    def check(self, device: torch.device) -> None:
        """Check the memory. Call this after a trial whose objects are deleted.

        Raises:
            MemoryGrown: the process holds clearly more than after the first trials.
        """
        self._trials += 1
        if self._trials < self.settled:
            return
        now = _memory(device)
        if not self._usual:
            self._usual = now
        if not self._grown(now):
            return
        _trim()  # freed memory that the allocator keeps does not count
        now = _memory(device)
        if faults := self._grown(now):
            raise MemoryGrown(f"the memory of this worker has grown over {self._trials} trials: {faults}")

    def _grown(self, now: dict[str, float]) -> str:
        return ", ".join(
            f"{name} from {self._usual[name]:.0f} to {mib:.0f} MiB"
            for name, mib in now.items()
            if mib > self.factor * self._usual[name] + self.slack_mib
        )


def _memory(device: torch.device) -> dict[str, float]:
    found = {"host": private_mib()}
    if device.type == "cuda":
        found["GPU"] = torch.cuda.memory_allocated(device) / 2**20
    return found


def _trim() -> None:
    gc.collect()
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # another C library than glibc
            ctypes.CDLL("libc.so.6").malloc_trim(0)


def reset_peaks(device: torch.device) -> None:
    """Reset the peak-memory counters that `peaks` reads, on Linux and CUDA."""
    with suppress(OSError):
        _CLEAR.write_text("5")  # sets the process's peak of resident memory to its present value
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peaks(device: torch.device) -> tuple[float, float]:
    """Return this process's peaks of resident host memory and allocated GPU memory (0 on a CPU), in MiB."""
    gpu = torch.cuda.max_memory_allocated(device) / _MIB if device.type == "cuda" else 0.0
    return _field("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, gpu


def private_mib() -> float:
    """Return this process's host memory in MiB, without files and shared memory; 0 if it cannot be read."""
    return _field("RssAnon")


def _field(name: str) -> float:
    """Return a field of this process's status in MiB; 0 if it is missing."""
    if not _STATUS.exists():
        return 0.0
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) / 1024
    return 0.0
