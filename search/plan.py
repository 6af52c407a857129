"""`ama search --dry-run`: what a search would do and cost, without starting anything."""

from __future__ import annotations

import math
import os

import torch

from analysis.metrics import show
from search.cluster import connected, slots
from search.console import duration
from search.experiment import Experiment, Resources, resolved_yaml
from search.pipeline import Progress, absolute_limits, profile
from search.space import SearchSpace
from trainables.config import StudentSpec
from trainables.cost import Costs, CostTable
from trainables.data import load_data

# Forward and backward of a student cost about three forwards, the teacher's forward one.
BACKWARD = 3


def plan(experiment: Experiment, *, address: str | None = None, progress: Progress | None = None) -> str:
    """The resolved experiment, its search space, what one trial costs and how many run at once, as text.

    Costs need no trained teacher: where none is there yet, random weights are profiled.

    Raises:
        InputError: anything that would stop the search itself before its first trial.
    """
    concurrent = _slots(experiment.resources, address)
    data = load_data(experiment.data, progress=progress)
    teacher, blocks, table = profile(experiment, data, progress)
    space = SearchSpace.from_experiment(experiment, [block.name for block in blocks])
    limits = absolute_limits(experiment, teacher, table)
    narrowest = StudentSpec(widths={block.name: min(experiment.space.widths) for block in blocks})
    low = _trial_seconds(table, table.price(narrowest), len(data.train), experiment)
    high = _trial_seconds(table, table.teacher, len(data.train), experiment)
    rounds = math.ceil(experiment.budget.trials / concurrent)
    lines = [
        resolved_yaml(experiment).rstrip(),
        "",
        f"# search space: {space.size()}",
        f"# blocks ({len(blocks)}): {', '.join(block.name for block in blocks)}",
        f"# teacher: {_figures(table.teacher)}; cheapest student: {_figures(table.price(narrowest))}",
        *(f"# limit: {limit.text} (that is {show(limit.metric, limit.limit)})" for limit in limits),
        f"# one trial: {experiment.budget.epochs} epochs of {len(data.train):,} images, "
        f"about {duration(low)} to {duration(high)} (from the measured latencies, alone on this machine)",
        f"# at once: {concurrent} trials with {experiment.resources.cpu:g} CPUs and "
        f"{experiment.resources.gpu:g} GPUs each; {experiment.budget.trials} trials take at most about "
        f"{duration(rounds * high)}, less what early stopping saves",
        "# nothing was started",
    ]
    return "\n".join(lines)


def _figures(costs: Costs) -> str:
    return ", ".join(f"{metric} {show(metric, value)}" for metric, value in costs.as_dict().items())


def _trial_seconds(table: CostTable, student: Costs, images: int, experiment: Experiment) -> float:
    batches = experiment.budget.epochs * images / table.batch_size
    return batches * (table.teacher.latency_ms + BACKWARD * student.latency_ms) / 1e3


def _slots(resources: Resources, address: str | None) -> int:
    """Trials at once: of the cluster at `address`, or of this machine, without starting Ray on it."""
    if address is not None:
        with connected(address):
            return slots(resources)
    return slots(resources, {"CPU": os.cpu_count() or 1, "GPU": torch.cuda.device_count()})
