"""The stages that all commands share: data, teacher, blocks, cost table. Each leaves a file for the next."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from analysis.metrics import show
from search.experiment.experiment import Experiment
from search.experiment.objectives import COSTS
from search.policy.proposer import Limit
from trainables.blocks.blocks import Block, find_blocks
from trainables.config import RuntimeConfig
from trainables.costs.measure import Costs, CostTable, load_costs, measure_costs
from trainables.data.dataset import ImageData, load_data
from trainables.errors import InputError
from trainables.runtime.runtime import Runtime, device_name, resolve
from trainables.teacher.architectures import build_model
from trainables.teacher.record import TeacherRecord
from trainables.teacher.teacher import Teacher, load_teacher, train_teacher

TEACHER_FILE = "teacher.safetensors"
COSTS_FILE = "costs.json"
EXPERIMENT_FILE = "experiment.yaml"
EXACT = ("params", "flops")  # costs that are counted, not measured

log = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]  # what, done, of how many


@dataclass(frozen=True)
class Setup:
    """Everything a search needs before it starts."""

    experiment: Experiment
    run_dir: Path
    runtime: Runtime
    data: ImageData
    teacher: Teacher
    blocks: tuple[Block, ...]
    costs: CostTable


def trial_threads(experiment: Experiment) -> int:
    """CPU threads of a trial: as asked for, else as many as the CPUs it is given."""
    return experiment.runtime.threads or max(1, int(experiment.resources.cpu))


def trial_runtime(experiment: Experiment) -> RuntimeConfig:
    """How a trial computes: the experiment's runtime, with a trial's threads."""
    return experiment.runtime.model_copy(update={"threads": trial_threads(experiment)})


def prepare(experiment: Experiment, *, test: bool = False, progress: Progress | None = None) -> Setup:
    """Run every stage up to the search; a teacher that is not there yet is trained.

    Args:
        experiment: what to do.
        test: read the test data too, for the teacher's and the retrained students' record; the cost table
            may be another device's then: what a retrained student costs is what the search took it for.
        progress: called as work goes on.
    """
    runtime = resolve(experiment.runtime)
    run_dir = Path(experiment.run.dir)
    data = read_data(experiment, test=test, progress=progress)
    teacher = get_teacher(experiment, data, runtime, progress)
    blocks = teacher_blocks(experiment, teacher.model, data.image_shape)
    costs = get_costs(experiment, teacher, blocks, data.image_shape, runtime, progress, any_device=test)
    return Setup(experiment, run_dir, runtime, data, teacher, blocks, costs)


def read_data(experiment: Experiment, *, test: bool = False, progress: Progress | None = None) -> ImageData:
    """`load_data`, and a warning that counts the images left out as unreadable."""
    data = load_data(experiment.data, test=test, progress=progress)
    if data.skipped:
        log.warning("data.skip_unreadable: %d images could not be decoded and are left out", data.skipped)
    return data


def get_teacher(
    experiment: Experiment, data: ImageData, runtime: Runtime, progress: Progress | None = None
) -> Teacher:
    """The teacher given, the one trained before into the run directory, or one trained now."""
    run_dir = Path(experiment.run.dir)
    path = run_dir / TEACHER_FILE
    if experiment.teacher.checkpoint is not None or path.exists():
        return load_teacher(experiment.teacher, data, runtime, run_dir, seed=experiment.seed)
    if data.test is None:
        # The teacher's record holds its test accuracy.
        data = load_data(experiment.data, test=True, progress=progress)
    total = experiment.teacher.epochs

    def report(metrics: dict[str, Any]) -> None:
        if progress is not None:
            progress(
                f"training the teacher, validation accuracy {metrics['val_accuracy']:.4f}",
                int(metrics["epoch"]),
                total,
            )

    _check_before_training(experiment, data, runtime)
    run_dir.mkdir(parents=True, exist_ok=True)
    return train_teacher(experiment.teacher, data, runtime, path, seed=experiment.seed, report=report)


def _check_before_training(experiment: Experiment, data: ImageData, runtime: Runtime) -> None:
    """Find out before the teacher's training, not after it, what needs no trained weights.

    Raises:
        InputError: no such architecture, no blocks that may be replaced, or a limit on params or FLOPs that
            no student can keep.
    """
    model = _untrained(experiment, data, runtime)
    blocks = teacher_blocks(experiment, model, data.image_shape)
    if any(limit.metric in EXACT for limit in experiment.constraints):
        table = _measure(experiment, model, blocks, data.image_shape, runtime, None, seconds=0.0)
        absolute_limits(experiment, None, table, known=EXACT)


def _untrained(experiment: Experiment, data: ImageData, runtime: Runtime) -> torch.nn.Module:
    """The teacher's architecture with random weights, in eval mode."""
    config = experiment.teacher
    model = build_model(config.arch, data.num_classes, data.image_shape, config.small_stem)
    return model.to(runtime.device).eval()


def teacher_blocks(
    experiment: Experiment, model: torch.nn.Module, image_shape: tuple[int, int, int]
) -> tuple[Block, ...]:
    """The blocks that the experiment may replace, in execution order."""
    device = next(model.parameters()).device
    return find_blocks(model, torch.zeros(1, *image_shape, device=device), experiment.space.blocks)


def get_costs(
    experiment: Experiment,
    teacher: Teacher,
    blocks: tuple[Block, ...],
    image_shape: tuple[int, int, int],
    runtime: Runtime,
    progress: Progress | None = None,
    any_device: bool = False,
) -> CostTable:
    """The cost table of the run directory, of this device or any; or one measured now and written there."""
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
            device=device_name(runtime.device),
            allow_other_device=any_device,
        )
    table = _measure(experiment, teacher.model, blocks, image_shape, runtime, progress)
    table.save(path)
    return table


def _measure(
    experiment: Experiment,
    model: torch.nn.Module,
    blocks: tuple[Block, ...],
    image_shape: tuple[int, int, int],
    runtime: Runtime,
    progress: Progress | None,
    seconds: float | None = None,
) -> CostTable:
    # As many threads as a trial has, not all of the machine's: one thread is timed by its own CPU clock,
    # which whatever else runs here does not disturb.
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
    )


def profile(
    experiment: Experiment, data: ImageData, progress: Progress | None = None, *, keep: bool = True
) -> tuple[TeacherRecord | None, tuple[Block, ...], CostTable]:
    """Blocks and cost table for `ama profile` and `--dry-run`, which need no trained teacher.

    Costs do not depend on the weights: where no teacher is there yet, random ones are profiled, and nothing
    is written, because a cost table belongs to one teacher.

    Args:
        experiment: what to profile.
        data: gives the images' shape and the number of classes.
        progress: called as work goes on.
        keep: write the cost table of a real teacher into the run directory, where the search finds it.

    Returns:
        The teacher's record, None for random weights; its blocks; its cost table.
    """
    runtime = resolve(experiment.runtime)
    config = experiment.teacher
    if config.checkpoint is not None or (Path(experiment.run.dir) / TEACHER_FILE).exists():
        teacher = get_teacher(experiment, data, runtime, progress)
        blocks = teacher_blocks(experiment, teacher.model, data.image_shape)
        if keep or (Path(experiment.run.dir) / COSTS_FILE).exists():
            costs = get_costs(experiment, teacher, blocks, data.image_shape, runtime, progress)
        else:
            costs = _measure(experiment, teacher.model, blocks, data.image_shape, runtime, progress)
        return teacher.record, blocks, costs
    model = _untrained(experiment, data, runtime)
    blocks = teacher_blocks(experiment, model, data.image_shape)
    return None, blocks, _measure(experiment, model, blocks, data.image_shape, runtime, progress)


def absolute_limits(
    experiment: Experiment,
    teacher: TeacherRecord | None,
    costs: CostTable,
    known: Sequence[str] = COSTS,
) -> list[Limit]:
    """The experiment's constraints in the metrics' own units; an untrained teacher's scores count as NaN.

    Args:
        experiment: has the constraints.
        teacher: its record, None where it is not trained yet.
        costs: the teacher's cost table.
        known: the metrics for which `costs` can tell what is possible.

    Raises:
        InputError: no student can keep a limit on a cost; the message names the cheapest student.
    """
    reference = {
        **costs.teacher.as_dict(),
        "val_accuracy": teacher.val_accuracy if teacher else float("nan"),
        "val_loss": teacher.val_loss if teacher else float("nan"),
    }
    limits = [Limit(c.metric, c.op, c.limit(reference[c.metric]), c.text) for c in experiment.constraints]
    for limit in limits:
        if limit.metric in known:
            _check_reachable(limit, costs, experiment.space.fuse)
    return limits


def _check_reachable(limit: Limit, costs: CostTable, fuse: bool | Literal["search"]) -> None:
    fused = fuse if isinstance(fuse, bool) else None
    spec, cheapest = costs.cheapest(limit.metric, fused)
    least, most = costs.price_bounds(limit.metric, fused)
    if limit.violation(least if limit.op == "<=" else most) <= 0:
        return
    bound = f"{limit.text} (that is {limit.op} {show(limit.metric, limit.limit)})"
    if limit.op == "<=":
        raise InputError(
            f"constraints: no student keeps {bound}: the cheapest, with {len(spec.widths)} of "
            f"{len(costs.structure)} blocks replaced, has {figures(cheapest)}"
        )
    raise InputError(
        f"constraints: no student keeps {bound}: the dearest has {limit.metric} {show(limit.metric, most)}"
    )


def figures(costs: Costs) -> str:
    """Params, FLOPs and latency for people."""
    return ", ".join(f"{metric} {show(metric, value)}" for metric, value in costs.as_dict().items())
