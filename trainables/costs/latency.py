"""Measure the latency of whole models and of their parts, robust to other load on the machine.

- Other processes can only add time. So the latency is the median of the fastest quarter of many runs. With
  another process on the same cores, its error was a fifth of the plain median's.
- Models take turns in random order, so that drift affects all of them alike.
- A single CPU thread is timed by its CPU time, which equals the latency on an idle machine. Several threads
  are timed by wall time, a GPU by CUDA events.
- Parts are timed in place while the whole model runs, so that caches are as in real use.
- Freed memory stays with the process (see `keep_freed_memory`).
"""

from __future__ import annotations

import copy
import ctypes
import random
import sys
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import nn

from trainables.runtime.runtime import Runtime

SECONDS = 20.0  # measuring time, shared by all models
VISITS = 3  # least number of turns of a model, however slow it is
MAX_VISITS = 1000
RUNS = 3  # timed runs a turn, after an untimed one that fills the caches
QUIET = 12.5  # percentile: the median of the fastest quarter

# M_TRIM_THRESHOLD, M_TOP_PAD and M_MMAP_THRESHOLD (its largest value) of malloc.h, in bytes.
MALLOC = {-1: 2**31 - 1, -2: 2**26, -3: 2**25}

Times = np.ndarray[Any, np.dtype[np.float64]]  # ms
Name = TypeVar("Name", bound=Hashable)


@dataclass(frozen=True)
class Latency:
    """Time of one forward pass on one batch."""

    median_ms: float  # of the fastest quarter of the runs
    spread_ms: float  # interquartile range of all runs
    runs: int


@dataclass(frozen=True)
class Part:
    """A part of a model: from entering the submodule `first` to leaving the submodule `last`."""

    first: str
    last: str


def measure_latency(
    model: nn.Module,
    example: torch.Tensor,
    runtime: Runtime,
    *,
    precision: str = "fp32",
    seconds: float = SECONDS,
) -> Latency:
    """Measure the latency of a whole model end to end; see `measure_many`."""
    return measure_many({"model": model}, example, runtime, precision=precision, seconds=seconds)["model"]


def measure_many(
    models: Mapping[str, nn.Module],
    example: torch.Tensor,
    runtime: Runtime,
    *,
    precision: str = "fp32",
    seconds: float = SECONDS,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Latency]:
    """Measure the latencies of whole models end to end, in eval mode; the models take turns.

    Args:
        models: any modules by name; copies of them are measured.
        example: images (B, 3, H, W); B is the batch size measured.
        runtime: its device, layout and threads are used; its (training) precision is not.
        precision: autocast type of inference; weights are cast once, outside the measured time.
        seconds: total measuring time; slow models take longer (three turns each).
        progress: called with (tenths of a second spent, total).

    Returns:
        The latency of each model, by its name.
    """
    probes: list[Probe[str]] = [Probe(prepared(model, runtime), {}) for model in models.values()]
    samples = measure_probes(
        probes, example, runtime, precision=precision, seconds=seconds, progress=progress
    )
    return {name: summary(sample[:, 0]) for name, sample in zip(models, samples, strict=True)}


def summary(times: Times) -> Latency:
    """Summarise times in ms (runs,), at least one, as a `Latency`."""
    low, high = np.percentile(times, [25, 75])
    return Latency(float(np.percentile(times, QUIET)), float(high - low), len(times))


def prepared(model: nn.Module, runtime: Runtime) -> nn.Module:
    """Return a copy of `model` in eval mode, on the runtime's device and in its layout."""
    return copy.deepcopy(model).eval().to(runtime.device, memory_format=runtime.memory_format)  # type: ignore[call-overload,no-any-return]


class Probe(Generic[Name]):
    """A model whose runs are timed, as a whole and in parts.

    Args:
        model: owned by this probe: the `forward` of the parts' submodules is wrapped permanently. (Hooks
            would switch off fused fast paths, such as that of `nn.TransformerEncoderLayer`.)
        parts: by name; the time of a part that runs several times in one pass is the sum.
    """

    def __init__(self, model: nn.Module, parts: Mapping[Name, Part]) -> None:
        self.model, self.parts = model, dict(parts)
        self._mark: Callable[[], Any] = clock_of("cpu")
        self._starts: list[list[Any]] = [[] for _ in parts]
        self._stops: list[list[Any]] = [[] for _ in parts]
        for index, part in enumerate(self.parts.values()):
            self._wrap(model.get_submodule(part.first), self._starts[index], before=True)
            self._wrap(model.get_submodule(part.last), self._stops[index], before=False)

    def run(self, images: torch.Tensor) -> list[float]:
        """Run one forward pass; return the milliseconds of the whole, then of every part in order."""
        for marks in (*self._starts, *self._stops):
            marks.clear()
        self._mark = clock_of(images.device.type)
        before = self._mark()
        self.model(images)
        after = self._mark()
        if not isinstance(after, float):
            after.synchronize()
        inner = [
            sum(_elapsed(start, stop) for start, stop in zip(starts, stops, strict=True))
            for starts, stops in zip(self._starts, self._stops, strict=True)
        ]
        return [_elapsed(before, after), *inner]

    def _wrap(self, module: nn.Module, marks: list[Any], *, before: bool) -> None:
        inner = module.forward

        def start(*args: Any, **kwargs: Any) -> Any:
            marks.append(self._mark())
            return inner(*args, **kwargs)

        def stop(*args: Any, **kwargs: Any) -> Any:
            output = inner(*args, **kwargs)
            marks.append(self._mark())
            return output

        module.forward = start if before else stop  # type: ignore[method-assign]


def clock_of(device_type: str) -> Callable[[], Any]:
    """Return the function that marks a point in time on this device, given torch's current CPU threads."""
    if device_type == "cuda":
        return _event
    # Windows counts a thread's CPU time in ticks of 16 ms.
    return time.thread_time if torch.get_num_threads() == 1 and sys.platform != "win32" else time.perf_counter


def _event() -> Any:
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event


def _elapsed(start: Any, stop: Any) -> float:
    """Return the milliseconds between two marks: CUDA events, or clock readings in seconds."""
    if isinstance(start, float):
        return (stop - start) * 1e3  # type: ignore[no-any-return]
    return float(start.elapsed_time(stop))


def measure_probes(
    probes: Sequence[Probe[Any]],
    example: torch.Tensor,
    runtime: Runtime,
    *,
    precision: str = "fp32",
    seconds: float = SECONDS,
    progress: Callable[[int, int], None] | None = None,
) -> list[Times]:
    """Run the probes in turns, in random order; see `measure_many` for the arguments.

    Returns:
        Times in ms of each probe, (runs, 1 + parts): the whole first, then the parts in order.
    """
    keep_freed_memory()
    images = example.to(runtime.device, memory_format=runtime.memory_format)
    times: list[list[list[float]]] = [[] for _ in probes]
    order = list(range(len(probes)))
    shuffle = random.Random(0).shuffle
    total = max(1, round(seconds * 10))
    with torch.inference_mode(), _threads(runtime.threads), replace(runtime, precision=precision).autocast():
        for probe in probes:  # first runs choose algorithms and allocate
            probe.run(images)
            probe.run(images)
        started = time.perf_counter()
        spent = 0.0
        visits = 0
        while visits < VISITS or (spent < seconds and visits < MAX_VISITS):
            shuffle(order)
            for index in order:
                probes[index].run(images)
                times[index] += [probes[index].run(images) for _ in range(RUNS)]
            visits += 1
            spent = time.perf_counter() - started
            if progress is not None:
                progress(min(total, round(spent * 10)), total)
    if progress is not None:
        progress(total, total)
    return [np.array(rows) for rows in times]


def keep_freed_memory() -> None:
    """Make glibc's malloc keep freed memory in this process from now on; without glibc, do nothing.

    By default malloc may return memory to the system and fault it in again at the next pass, depending on
    what else the process holds. That added up to 1.4 ms to a 10 ms pass of a ResNet-56.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for parameter, value in MALLOC.items():
            mallopt(parameter, value)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
