"""Timing: summaries in closed form, parts inside wholes, models left alone."""

from __future__ import annotations

import copy
import resource
import sys
import time

import numpy as np
import pytest
import torch
from torch import nn

from trainables.config import RuntimeConfig
from trainables.costs.latency import (
    Part,
    Probe,
    clock_of,
    keep_freed_memory,
    measure_latency,
    measure_many,
    measure_probes,
    summary,
)
from trainables.runtime.runtime import Runtime, resolve


@pytest.fixture
def runtime() -> Runtime:
    return resolve(RuntimeConfig(device="cpu", threads=1))


class Spin(nn.Module):
    """Keeps a core busy for `ms` of its own CPU time."""

    def __init__(self, ms: float) -> None:
        super().__init__()
        self.ms = ms

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        end = time.thread_time() + self.ms / 1e3
        while time.thread_time() < end:
            pass
        return x


def test_summary_is_the_median_of_the_quickest_quarter() -> None:
    times = np.arange(1.0, 1001.0)
    times[600:] += 1e6  # interference only adds
    latency = summary(np.random.default_rng(0).permutation(times))
    assert latency.median_ms == pytest.approx(np.median(np.arange(1.0, 251.0)), abs=1.0)
    assert latency.spread_ms == pytest.approx(np.subtract(*np.percentile(times, [75, 25])))
    assert latency.runs == 1000


def test_parts_are_timed_inside_the_whole(runtime: Runtime) -> None:
    model = nn.Sequential(Spin(2), Spin(4), nn.Sequential(Spin(1), Spin(3)), Spin(1))
    parts = {"second": Part("1", "1"), "tail": Part("2.0", "3"), "inner": Part("2.1", "2.1")}
    (times,) = measure_probes([Probe(model, parts)], torch.zeros(1, 3), runtime, seconds=0.01)
    assert times.shape[0] >= 9 and times.shape[1] == 4
    assert np.all(times[:, 1] + times[:, 2] <= times[:, 0])
    figures = [summary(column).median_ms for column in times.T]
    assert figures == pytest.approx([11, 4, 5, 3], rel=0.1)


def test_a_part_that_runs_twice_counts_twice(runtime: Runtime) -> None:
    shared = Spin(2)
    model = nn.Sequential(shared, Spin(1), shared)
    (times,) = measure_probes(
        [Probe(model, {"shared": Part("0", "0")})], torch.zeros(1), runtime, seconds=0.01
    )
    assert summary(times[:, 1]).median_ms == pytest.approx(4, rel=0.1)


def test_models_are_told_apart_and_left_as_they_were(runtime: Runtime) -> None:
    slow = nn.Sequential(nn.Conv2d(3, 64, 3), nn.BatchNorm2d(64), nn.Conv2d(64, 64, 3)).train()
    quick = nn.Conv2d(3, 4, 1)
    before = copy.deepcopy(slow.state_dict())
    seen: list[tuple[int, int]] = []
    found = measure_many(
        {"slow": slow, "quick": quick},
        torch.randn(2, 3, 16, 16),
        runtime,
        seconds=0.1,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert list(found) == ["slow", "quick"]
    assert found["slow"].median_ms > 2 * found["quick"].median_ms > 0
    assert all(latency.spread_ms >= 0 and latency.runs >= 9 for latency in found.values())
    assert slow.training and "forward" not in vars(slow[0])
    assert all(torch.equal(tensor, before[name]) for name, tensor in slow.state_dict().items())
    assert seen[-1] == (1, 1) and sorted(seen) == seen


def test_inference_precision_is_its_own_argument(runtime: Runtime) -> None:
    class Watch(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            dtypes.append(x.dtype)
            modes.append((torch.is_inference_mode_enabled(), self.training, torch.get_num_threads()))
            return x

    dtypes: list[torch.dtype] = []
    modes: list[tuple[bool, bool, int]] = []
    model = nn.Sequential(nn.Linear(4, 4), Watch())
    training = Runtime(runtime.device, "bf16", False, 1)
    measure_latency(model, torch.zeros(2, 4), training, seconds=0.01)
    assert set(dtypes) == {torch.float32}
    dtypes.clear()
    torch.set_num_threads(2)
    try:
        measure_latency(model, torch.zeros(2, 4), training, precision="bf16", seconds=0.01)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert set(dtypes) == {torch.bfloat16}
    assert set(modes) == {(True, False, 1)}


def test_one_thread_is_timed_by_cpu_time_so_waiting_does_not_count(runtime: Runtime) -> None:
    class Sleep(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            time.sleep(0.02)
            return x

    assert measure_latency(Sleep(), torch.zeros(1), runtime, seconds=0.01).median_ms < 5
    torch.set_num_threads(2)
    try:
        assert clock_of("cpu") is time.perf_counter
    finally:
        torch.set_num_threads(1)


@pytest.mark.skipif(sys.platform != "linux", reason="a setting of glibc")
def test_freed_memory_is_kept_so_that_no_run_pays_for_page_faults() -> None:
    def faults() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(50):
            torch.ones(2**21)  # 8 MiB: 2048 pages, were they handed back
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    keep_freed_memory()
    faults()
    assert faults() < 2048


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gpu_work_is_waited_for() -> None:
    runtime = resolve(RuntimeConfig(device="cuda"))
    model = nn.Sequential(*(nn.Conv2d(64, 64, 3, padding=1) for _ in range(8)))
    parts = {"half": Part("0", "3")}
    example = torch.randn(64, 64, 64, 64)
    (times,) = measure_probes([Probe(model.cuda(), parts)], example, runtime, seconds=0.5)
    whole, half = (summary(column).median_ms for column in times.T)
    assert 0.3 < half / whole < 0.7
