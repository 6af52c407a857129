"""Part `memory` of `benchmarks.engine`: measure the memory growth of one actor over hundreds of trials.

Students of changing shape, batch size and supervision are set up, trained for an epoch on digits, saved and
reset, one after the other. The result compares the resident memory after the last trial with that after the
20th, and on a GPU the allocated memory.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch

from search.cluster.connection import connected
from trainables.blocks.blocks import Block, find_blocks
from trainables.config import DataConfig, DistillConfig, OptimConfig, RuntimeConfig, StudentSpec
from trainables.data.load import load_data
from trainables.loss_config import LossConfig
from trainables.network.architectures import build_model
from trainables.runtime.runtime import resolve
from trainables.runtime.seeds import seeded
from trainables.trial import DistillTrial, TrialContext

SETTLED = 20  # trials until caches are filled
WIDTHS = (0.25, 0.5, 1.0)
IMAGES = 500  # of digits


@dataclass(frozen=True)
class Memory:
    """Memory of a process in MiB: resident on the host (Linux), allocated on a GPU."""

    host: float
    gpu: float = 0.0


def held(device: torch.device) -> Memory:
    """Return the present memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    gpu = torch.cuda.memory_allocated(device) / 2**20 if device.type == "cuda" else 0.0
    return Memory(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, gpu)


def trial_config(number: int, blocks: tuple[Block, ...]) -> dict[str, Any]:
    """Return the trial with this number in the form that the search passes to Ray."""
    chosen = blocks[number % 4 :: 1 + number % 3]
    config = DistillConfig(
        student=StudentSpec(
            widths={block.name: WIDTHS[number % len(WIDTHS)] for block in chosen}, fuse=number % 2 == 0
        ),
        loss=LossConfig(supervision="adaptive" if number % 5 == 0 else "uniform"),
        optim=OptimConfig(batch_size=(32, 64, 128)[number % 3]),
        epochs=1,
        seed=number,
    )
    return {"number": number, "distill": config.model_dump_json()}


class Life:
    """The life of an actor: a `DistillTrial`, reset from trial to trial."""

    def __init__(self, runtime: RuntimeConfig, images: int = IMAGES) -> None:
        data = load_data(DataConfig(name="digits", train_limit=images))
        with seeded(0):
            teacher = build_model("cifar_resnet20", 10, data.image_shape).eval()
        self.device = resolve(runtime).device
        self.blocks = find_blocks(teacher, torch.zeros(1, *data.image_shape))
        self.context = TrialContext(data.to_arrays(), teacher, self.blocks, runtime)
        self.trial: DistillTrial | None = None

    def live(self, number: int) -> Memory:
        """Train and save the trial with this number; return the memory afterwards."""
        config = trial_config(number, self.blocks)
        if self.trial is None:
            self.trial = _bound(self.context)(config=config)
        else:
            self.trial.reset_config(config)
        assert "failure" not in self.trial.step()
        with tempfile.TemporaryDirectory() as folder:
            self.trial.save_checkpoint(folder)
        return held(self.device)


def _bound(context: TrialContext) -> type[DistillTrial]:
    """Bind the context to the class, as `tune.with_parameters` does, without a Tuner."""

    class Bound(DistillTrial):
        def setup(self, config: dict[str, Any]) -> None:  # type: ignore[override]
            super().setup(config, context=context)

    return Bound


def lives(trials: int, runtime: RuntimeConfig) -> Iterator[Memory]:
    """Run `trials` trials in one Ray actor; yield its memory after each."""
    with connected(None):
        gpus = int(resolve(runtime).device.type == "cuda")
        actor = ray.remote(Life).options(num_cpus=1, num_gpus=gpus).remote(runtime)
        for number in range(trials):
            yield ray.get(actor.live.remote(number))


def memory_part(trials: int, device: str, threads: int) -> dict[str, Any]:
    """Run this part; return its figures and the memory curve."""
    found = list(lives(trials, RuntimeConfig(device=device, threads=threads)))
    settled, last = found[SETTLED - 1], found[-1]
    figures = {"memory_growth": round(last.host / settled.host, 4)}
    if settled.gpu:
        figures["memory_growth_gpu"] = round(last.gpu / settled.gpu, 4)
    curves = {"host_mib": [round(m.host, 1) for m in found], "gpu_mib": [round(m.gpu, 1) for m in found]}
    conditions = {"data": "digits", "images": IMAGES, "batch": "32 to 128"}
    return {**conditions, "trials": trials, "settled_after": SETTLED, "figures": figures, **curves}
