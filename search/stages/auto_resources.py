"""`resources: auto`: choose how many trials share a machine by measuring their throughput."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
import torch
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from torch import nn

from search.experiment.sections import Resources
from search.stages.prepare import Prepared
from search.stages.progress import Progress
from search.stages.tuned_runtime import batch_size
from trainables.config import RuntimeConfig
from trainables.runtime.memory import peaks, private_mib, reset_peaks
from trainables.runtime.runtime import resolve
from trainables.training.step_times import Shape, training_step

SECONDS = 3.0  # measurement time for each number of trials
ENOUGH = 0.95  # prefer fewer trials at once if they reach this share of the highest throughput
USABLE = 0.9  # share of a GPU's memory to use
USABLE_HOST = 0.7  # share of the machine's memory to use
CUDA_CONTEXT = 600.0  # MiB of GPU memory per process, besides its tensors
MOST_SHARES = 16  # maximum number of trials on one GPU
IDLE = 0.1  # up to this share of idle cores counts as no idle cores


@dataclass(frozen=True)
class Share:
    """Resources of one trial: CPU cores, and a share of a GPU."""

    cpu: int
    gpu: float = 0.0


def choose_resources(setup: Prepared, progress: Progress | None = None) -> Resources:
    """Choose CPUs and GPU share of a trial for the highest total throughput (images per second).

    The measurement runs on the cluster's largest node and trains the teacher instead of a student (no student
    is much larger). Ray must be connected, and nothing else may run. Among numbers of trials with nearly the
    same throughput, the smallest is chosen, because the sampler then learns more from each trial.
    """
    nodes = [node for node in ray.nodes() if node["Alive"]]
    node = max(nodes, key=lambda each: (each["Resources"].get("GPU", 0), each["Resources"].get("CPU", 0)))
    cpus, gpus = (int(node["Resources"].get(name, 0)) for name in ("CPU", "GPU"))
    cpus = max(1, cpus)

    def measure(count: int, share: Share) -> list[_Load]:
        if progress is not None:
            progress(f"trying {count} trials at once", 0, 1)
        return _together(setup, node["NodeID"], count, share)

    whole = Share(max(1, cpus // gpus), 1.0) if gpus else Share(cpus)
    (alone,) = measure(1, whole)
    if gpus:
        counts = gpu_counts(alone.gpu_mib, alone.gpu_total_mib, whole.cpu)
        # In Ray's units of 1/10,000 GPU, rounded down, so that the trials together need at most one GPU.
        shares = {count: Share(max(1, whole.cpu // count), 10_000 // count / 10_000) for count in counts}
    else:
        room = USABLE_HOST * node["Resources"].get("memory", math.inf) / 2**20 / max(1.0, alone.host_mib)
        shares = {count: Share(cpus // count) for count in cpu_counts(cpus, max(1.0, room))}

    def rate(count: int, share: Share) -> float:
        loads = measure(count, share) if count > 1 else [alone]
        return sum(load.images_per_second for load in loads)

    chosen = choose_share(shares, rate)
    return setup.experiment.resources.model_copy(
        update={"cpu": float(chosen.cpu), "gpu": chosen.gpu, "concurrent": None}
    )


def choose_share(shares: Mapping[int, Share], rate: Callable[[int, Share], float]) -> Share:
    """Return the share for the smallest number of trials with nearly the highest throughput.

    Args:
        shares: resources of one trial, by number of trials.
        rate: measures the total images per second of this number of trials with this share each. Called in
            ascending order, until more trials lower the throughput (with a GPU: in total, else: per core).
    """
    rates: dict[int, float] = {}
    best = 0.0
    for count, share in sorted(shares.items()):
        rates[count] = rate(count, share)
        # Per core in use: two trials on seven cores leave one core idle, seven trials none.
        worth = rates[count] if share.gpu else rates[count] / (count * share.cpu)
        if worth < ENOUGH * best:
            break
        best = max(best, worth)
    return shares[fewest(rates)]


def cpu_counts(cores: int, most: float = math.inf) -> list[int]:
    """Return the numbers of trials to try on one machine, if each gets `cores // count` cores.

    Args:
        cores: cores of the machine.
        most: number of trials that fit into its memory.
    """
    return _spaced([count for count in _full(cores) if count <= most], cores)


def gpu_counts(peak_mib: float, total_mib: float, cpus: int) -> list[int]:
    """Return the numbers of trials to try on one GPU, as far as its memory and CPUs allow.

    Args:
        peak_mib: peak GPU memory of one trial's tensors, in MiB.
        total_mib: memory of the GPU, in MiB.
        cpus: CPU cores per GPU.
    """
    fit = int(USABLE * total_mib / (peak_mib + CUDA_CONTEXT))
    most = max(1, min(fit, cpus, MOST_SHARES))
    return _spaced(sorted({count for count in _full(cpus) if count < most} | {most}), cpus)


def _full(cores: int) -> list[int]:
    """Return the numbers of trials to which no trial can be added without fewer cores for each."""
    return sorted({cores // threads for threads in range(1, cores + 1)})


def _spaced(counts: Sequence[int], cores: int) -> list[int]:
    """Thin out `counts` (ascending, from 1 on): each at most twice the one before, if possible.

    Of the possible next counts, take the largest that leaves few cores idle, else the one with the fewest.
    """
    chosen = [counts[0]]
    while larger := [count for count in counts if count > chosen[-1]]:
        near = [count for count in larger if count <= 2 * chosen[-1]] or larger[:1]
        chosen.append(max(near, key=lambda count: (-max(IDLE, cores % count / cores), count)))
    return chosen


def fewest(rates: Mapping[int, float]) -> int:
    """Return the smallest number of trials at once with nearly the highest throughput."""
    return min(count for count, rate in rates.items() if rate >= ENOUGH * max(rates.values()))


@dataclass(frozen=True)
class _Load:
    """Throughput and memory (MiB) of one of several concurrent trials."""

    images_per_second: float
    host_mib: float
    gpu_mib: float
    gpu_total_mib: float


@ray.remote  # type: ignore[untyped-decorator]
class _Trial:
    """Train the teacher on random images, as a trial does, without set-up and evaluation."""

    def __init__(self, config: RuntimeConfig, teacher: nn.Module, shape: Shape, batch: int) -> None:
        self.runtime, self.batch = resolve(config), batch
        reset_peaks(self.runtime.device)
        self.step = training_step(teacher, self.runtime, batch, shape)
        self.step()

    def ready(self) -> bool:
        """Return once the first step is done."""
        return True

    def run(self, seconds: float) -> _Load:
        """Train for `seconds`, and measure."""
        device = self.runtime.device
        started, steps = time.perf_counter(), 0
        while steps == 0 or time.perf_counter() - started < seconds:
            self.step()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            steps += 1
        rate = steps * self.batch / (time.perf_counter() - started)
        total = torch.cuda.mem_get_info(device)[1] / 2**20 if device.type == "cuda" else 0.0
        return _Load(rate, private_mib(), peaks(device)[1], total)


def _together(setup: Prepared, node: str, count: int, share: Share) -> list[_Load]:
    """Run `count` trials at once on one node, each with `share`, and return their measurements."""
    config = setup.experiment.runtime.model_copy(
        update={"threads": setup.experiment.runtime.threads or share.cpu}
    )
    make = _Trial.options(  # type: ignore[attr-defined]
        num_cpus=share.cpu,
        num_gpus=share.gpu,
        scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
    )
    shared = ray.put(setup.teacher.model.cpu())
    arguments = (config, shared, setup.data.image_shape, batch_size(setup.experiment))
    with _killed([make.remote(*arguments) for _ in range(count)]) as trials:
        ray.get([trial.ready.remote() for trial in trials])
        loads: list[_Load] = ray.get([trial.run.remote(SECONDS) for trial in trials])
    return loads


@contextmanager
def _killed(actors: Sequence[Any]) -> Iterator[Sequence[Any]]:
    try:
        yield actors
    finally:
        for actor in actors:
            ray.kill(actor)
