"""`ama search --dry-run`: print what a search would do and cost, without starting anything."""

from __future__ import annotations

import math
import os

import torch

from analysis.metrics import duration, show
from search.cluster.connection import connected
from search.cluster.slots import slots
from search.experiment.experiment import Experiment
from search.experiment.resolved import resolved_yaml
from search.experiment.sections import Resources
from search.policy.space import SearchSpace
from search.run_dir.files import EXPERIMENT_FILE
from search.run_dir.folder import at, working_folder
from search.stages.limits import absolute_limits, figures
from search.stages.prepare import profile, read_data
from search.stages.progress import Progress
from trainables.costs.table import Costs, CostTable

# One step: forward and backward of the student (about three forward passes), and the teacher's forward pass.
BACKWARD = 3


def plan(experiment: Experiment, *, address: str | None = None, progress: Progress | None = None) -> str:
    """Describe a search as text: experiment, search space, costs of one trial, trials at once.

    Costs do not depend on the weights: without a trained teacher, random weights are profiled.

    Args:
        experiment: the experiment to plan.
        address: address of a Ray cluster; None: this machine.
        progress: progress callback of the stages.

    Returns:
        The experiment as YAML with all defaults, followed by comments.

    Raises:
        InputError: data, blocks, limits or resources with which the search could not start.

    Example:
        experiment = load_experiment("digits", ["costs.seconds=0.1"], out="runs/planned")
        print(plan(experiment))
    """
    at_once = _slots(experiment.resources, address)
    data = read_data(experiment, progress=progress)
    with working_folder(experiment.run.dir) as folder:
        holds_run = folder.holds(EXPERIMENT_FILE)
        teacher, blocks, table = profile(at(experiment, folder), data, progress, keep=False)
    space = SearchSpace.from_experiment(experiment, blocks)
    limits = absolute_limits(experiment, teacher, table)
    lines = [
        f"search space: {space.size()}",
        f"blocks ({len(blocks)}): {', '.join(block.name for block in blocks)}",
        f"teacher: {figures(table.teacher)}"
        + ("" if teacher else f"; it is trained first, {experiment.teacher.epochs} epochs"),
        f"cheapest student: {figures(_cheapest(experiment, table))}",
        *(f"limit: {limit.text} (that is {limit.op} {show(limit.metric, limit.limit)})" for limit in limits),
        *_budget_lines(experiment, table, len(data.train), at_once),
    ]
    if holds_run:
        lines.append(f"{experiment.run.dir} holds a run: --resume continues it, --out goes elsewhere")
    lines.append("nothing was started")
    return resolved_yaml(experiment) + "\n" + "\n".join(f"# {line}" for line in lines)


def _budget_lines(experiment: Experiment, table: CostTable, images: int, at_once: int) -> list[str]:
    latencies = table.price_bounds("latency_ms", students=experiment.space.student)
    quickest, slowest = (_trial_seconds(table, latency, images, experiment) for latency in latencies)
    budget, resources = experiment.budget, experiment.resources
    total = duration(math.ceil(budget.trials / at_once) * slowest)
    return [
        f"one trial: {budget.epochs} epochs of {images:,} images, about {duration(quickest)} to "
        f"{duration(slowest)} (from the latencies measured here, with nothing else running)",
        f"at once: {at_once} trials of {resources.cpu:g} CPU and {resources.gpu:g} GPU each",
        f"in all: {budget.trials} trials, at most about {total}, less what early stopping saves",
    ]


def _cheapest(experiment: Experiment, table: CostTable) -> Costs:
    metric = next((o.metric for o in experiment.objectives if o.metric in experiment.cost_metrics), "flops")
    return table.cheapest(metric, students=experiment.space.student)[1]


def _trial_seconds(table: CostTable, latency_ms: float, images: int, experiment: Experiment) -> float:
    """Estimate the training seconds of a student with this latency per batch of the cost table."""
    batches = experiment.budget.epochs * images / table.batch_size
    return batches * (table.teacher.latency_ms + BACKWARD * latency_ms) / 1e3


def _slots(resources: Resources, address: str | None) -> int:
    """Return the trials at once on the cluster at `address`, or on this machine (without starting Ray)."""
    if address is not None:
        with connected(address):
            return slots(resources)
    return slots(resources, {"CPU": os.cpu_count() or 1, "GPU": torch.cuda.device_count()})
