"""`resources: auto`: how many trials share a machine, found by letting some compute at once for a moment."""

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
from search.stages.progress import Progress
from search.stages.setup import Setup
from search.stages.tuned_runtime import batch_size
from trainables.config import RuntimeConfig
from trainables.runtime.memory import peaks, private_mib, reset_peaks
from trainables.runtime.runtime import resolve
from trainables.training.step_times import Shape, training_step

SECONDS = 3.0  # of computing at each number of trials
ENOUGH = 0.95  # of the most images a second: fewer trials at once are then preferred
USABLE = 0.9  # of a GPU's memory
USABLE_HOST = 0.7  # of the machine's
CUDA_CONTEXT = 600.0  # MiB of a GPU that a process takes beside its tensors
MOST_SHARES = 16  # trials on one GPU
IDLE = 0.1  # share of the cores: numbers of trials that leave fewer idle are as good as those that leave none


@dataclass(frozen=True)
class Share:
    """What one trial is given: CPU cores, and a GPU's part."""

    cpu: int
    gpu: float = 0.0


def choose_resources(setup: Setup, progress: Progress | None = None) -> Resources:
    """CPUs and GPU share of a trial, with which the trials together train the most images a second.

    Measured on the cluster's largest node, with the teacher in the student's place, which no student exceeds
    by much. Ray must be connected, and nothing else run. Fewer trials at once are preferred where that costs
    next to nothing: the sampler learns more from each.
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
        # In Ray's units of 1/10,000 GPU, rounded down: the trials together take no more than one.
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
    """The share of the fewest trials that together train nearly the most images a second.

    Args:
        shares: what one trial is given, by number of trials.
        rate: measures that many trials with such a share each: images a second of all together. Called for
            fewer trials first, and no longer once more trials compute less with a GPU, or with each core.
    """
    rates: dict[int, float] = {}
    best = 0.0
    for count, share in sorted(shares.items()):
        rates[count] = rate(count, share)
        # By core in use: two trials on seven cores leave one idle, seven trials none.
        worth = rates[count] if share.gpu else rates[count] / (count * share.cpu)
        if worth < ENOUGH * best:
            break
        best = max(best, worth)
    return shares[fewest(rates)]


def cpu_counts(cores: int, most: float = math.inf) -> list[int]:
    """Numbers of trials on one machine that are worth trying, if each gets `cores // count` cores.

    Args:
        cores: of the machine.
        most: trials that its memory allows.
    """
    return _spaced([count for count in _full(cores) if count <= most], cores)


def gpu_counts(peak_mib: float, total_mib: float, cpus: int) -> list[int]:
    """Numbers of trials on one GPU that are worth trying and that its memory and CPUs allow.

    Args:
        peak_mib: GPU memory that one trial's tensors took.
        total_mib: of the GPU.
        cpus: cores for each GPU.
    """
    fit = int(USABLE * total_mib / (peak_mib + CUDA_CONTEXT))
    most = max(1, min(fit, cpus, MOST_SHARES))
    return _spaced(sorted({count for count in _full(cpus) if count < most} | {most}), cpus)


def _full(cores: int) -> list[int]:
    """Numbers of trials to which one more cannot be added without taking cores from each."""
    return sorted({cores // threads for threads in range(1, cores + 1)})


def _spaced(counts: Sequence[int], cores: int) -> list[int]:
    """Some of `counts` (ascending, from 1 on), each at most twice the one before if there is such a count.

    Of the possible next ones, take the largest that leaves few cores idle, else one that leaves the fewest.
    """
    chosen = [counts[0]]
    while larger := [count for count in counts if count > chosen[-1]]:
        near = [count for count in larger if count <= 2 * chosen[-1]] or larger[:1]
        chosen.append(max(near, key=lambda count: (-max(IDLE, cores % count / cores), count)))
    return chosen


def fewest(rates: Mapping[int, float]) -> int:
    """The smallest number of trials at once that together reach nearly the most images a second."""
    return min(count for count, rate in rates.items() if rate >= ENOUGH * max(rates.values()))


@dataclass(frozen=True)
class _Load:
    """What one of several trials computed, and the memory it took, in MiB."""

    images_per_second: float
    host_mib: float
    gpu_mib: float
    gpu_total_mib: float


@ray.remote  # type: ignore[untyped-decorator]
class _Trial:
    """Trains the teacher on random images: what a trial does, without its beginning and end."""

    def __init__(self, config: RuntimeConfig, teacher: nn.Module, shape: Shape, batch: int) -> None:
        self.runtime, self.batch = resolve(config), batch
        reset_peaks(self.runtime.device)
        self.step = training_step(teacher, self.runtime, batch, shape)
        self.step()

    def ready(self) -> bool:
        """Answers when the first step is done."""
        return True

    def run(self, seconds: float) -> _Load:
        """Compute for so long."""
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


def _together(setup: Setup, node: str, count: int, share: Share) -> list[_Load]:
    """So many trials at once on one node, each with its share."""
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
