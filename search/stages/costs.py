"""The stage that measures the cost table, with the number of threads of a trial."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from search.experiment.experiment import Experiment
from search.run_dir.files import COSTS_FILE
from search.stages.progress import Progress
from trainables.blocks.blocks import Block
from trainables.config import RuntimeConfig
from trainables.costs.extra import load_extra_costs
from trainables.costs.load import load_costs
from trainables.costs.measure import measure_costs
from trainables.costs.table import CostTable
from trainables.runtime.runtime import Runtime, device_name
from trainables.teacher.teacher import Teacher


def trial_threads(experiment: Experiment) -> int:
    """Return the CPU threads of a trial: those of the experiment, else one per CPU of the trial."""
    return experiment.runtime.threads or max(1, int(experiment.resources.cpu))


def trial_runtime(experiment: Experiment) -> RuntimeConfig:
    """Return the runtime config of a trial: the experiment's, with the trial's threads."""
    return experiment.runtime.model_copy(update={"threads": trial_threads(experiment)})


def get_costs(
    experiment: Experiment,
    teacher: Teacher,
    blocks: tuple[Block, ...],
    image_shape: tuple[int, int, int],
    runtime: Runtime,
    progress: Progress | None = None,
    any_device: bool = False,
) -> CostTable:
    """Read the run directory's cost table (for this device, or for any), or measure and write one."""
    path = Path(experiment.run.dir) / COSTS_FILE
    fuse = experiment.space.fuse is not False
    if path.exists():
        return load_costs(
            path,
            teacher_hash=teacher.record.hash,
            image_shape=image_shape,
            blocks=blocks,
            widths=experiment.space.widths,
            fuse=fuse,
            batch_size=experiment.costs.batch_size,
            extra=tuple(load_extra_costs(experiment.costs.extra)),
            students=experiment.space.separate,
            device=device_name(runtime.device),
            allow_other_device=any_device,
        )
    table = fresh_costs(experiment, teacher.model, blocks, image_shape, runtime, progress)
    table.save(path)
    return table


def fresh_costs(
    experiment: Experiment,
    model: torch.nn.Module,
    blocks: tuple[Block, ...],
    image_shape: tuple[int, int, int],
    runtime: Runtime,
    progress: Progress | None,
    seconds: float | None = None,
) -> CostTable:
    """Measure the cost table of `model`, without reading or writing the run directory."""
    # Use as many threads as a trial, not all of the machine. A single thread is timed by its CPU clock, so
    # other processes do not disturb it.
    runtime = replace(runtime, threads=trial_threads(experiment))

    def report(done: int, total: int) -> None:
        if progress is not None:
            progress("measuring the cost table", done, total)

    return measure_costs(
        model,
        blocks,
        experiment.space.widths,
        experiment.space.fuse is not False,
        image_shape,
        runtime,
        experiment.costs.batch_size,
        seconds=experiment.costs.seconds if seconds is None else seconds,
        progress=report,
        extra=load_extra_costs(experiment.costs.extra),
        students=experiment.space.separate,
    )
