"""`resources: auto`: how many trials share a machine, found by letting some compute at once for a moment."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
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
        shares = {count: Share(max(1, whole.cpu // count), 1.0 / count) for count in counts}
    else:
        room = USABLE_HOST * node["Resources"].get("memory", math.inf) / 2**20 / max(1.0, alone.host_mib)
        shares = {cpus // threads: Share(threads) for threads in thread_counts(cpus)}
        shares = {count: share for count, share in shares.items() if count <= max(1.0, room)}
    rates = {1: alone.images_per_second}
    for count, share in sorted(shares.items()):
        if count > 1:
            rates[count] = sum(load.images_per_second for load in measure(count, share))
            if rates[count] < ENOUGH * max(rates.values()):
                break
    chosen = shares[fewest(rates)]
    return setup.experiment.resources.model_copy(
        update={"cpu": float(chosen.cpu), "gpu": chosen.gpu, "concurrent": None}
    )


def thread_counts(cpus: int) -> list[int]:
    """CPUs of a trial that are worth trying: all of them, and the powers of two below."""
    return sorted({cpus, *(2**power for power in range(cpus.bit_length()) if 2**power <= cpus)}, reverse=True)


def gpu_counts(peak_mib: float, total_mib: float, cpus: int) -> list[int]:
    """Numbers of trials on one GPU that are worth trying: powers of two that its memory and CPUs allow.

    Args:
        peak_mib: GPU memory that one trial's tensors took.
        total_mib: of the GPU.
        cpus: cores for each GPU.
    """
    fit = int(USABLE * total_mib / (peak_mib + CUDA_CONTEXT))
    most = max(1, min(fit, cpus, MOST_SHARES))
    return [2**power for power in range(most.bit_length()) if 2**power <= most]


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
