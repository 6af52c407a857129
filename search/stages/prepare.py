"""The stages that all commands share: data, teacher, blocks, cost table. Each writes a file for the next."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from search.experiment.experiment import Experiment
from search.experiment.ranges import ends
from search.run_dir.files import COSTS_FILE, TEACHER_FILE
from search.stages.costs import fresh_costs, get_costs
from search.stages.progress import Progress
from search.stages.teacher import get_teacher, teacher_blocks, teacher_scores, untrained_model
from trainables.blocks.blocks import Block
from trainables.config import method_config
from trainables.costs.table import CostTable
from trainables.data.dataset import ImageData
from trainables.data.load import load_data
from trainables.methods.base import Stages
from trainables.runtime.runtime import Runtime, resolve
from trainables.teacher.record import TeacherRecord
from trainables.teacher.teacher import Teacher

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prepared:
    """All inputs of a search."""

    experiment: Experiment
    run_dir: Path
    runtime: Runtime
    data: ImageData
    teacher: Teacher
    blocks: tuple[Block, ...]
    costs: CostTable
    teacher_scores: Mapping[str, float] = field(default_factory=dict)  # the user's own metrics
    stages: Stages = field(default_factory=dict)  # results of the methods' stages


def prepare(experiment: Experiment, *, test: bool = False, progress: Progress | None = None) -> Prepared:
    """Run every stage before the search; train the teacher if needed.

    Args:
        experiment: the experiment to prepare.
        test: also read the test data, for the records of teacher and retrained students. The cost table may
            then be another device's, because retrained students keep the costs of the search.
        progress: progress callback.
    """
    runtime = resolve(experiment.runtime)
    run_dir = Path(experiment.run.dir)
    data = read_data(experiment, test=test, progress=progress)
    teacher = get_teacher(experiment, data, runtime, progress)
    blocks = teacher_blocks(experiment, teacher.model, data.image_shape)
    costs = get_costs(experiment, teacher, blocks, data.image_shape, runtime, progress, any_device=test)
    scores = teacher_scores(experiment, teacher.model, data, runtime)
    return Prepared(experiment, run_dir, runtime, data, teacher, blocks, costs, scores)


def read_data(experiment: Experiment, *, test: bool = False, progress: Progress | None = None) -> ImageData:
    """Load the data, check the methods against it, and warn about unreadable images that were skipped."""
    data = load_data(experiment.data, test=test, progress=progress)
    check_methods(experiment, data.num_classes)
    if data.skipped:
        log.warning("data.skip_unreadable: %d images could not be decoded and are left out", data.skipped)
    return data


def check_methods(experiment: Experiment, classes: int) -> None:
    """Check every value of the methods' settings that a search may try (see `MethodConfig.check`).

    Raises:
        InputError: settings that cannot work with such data, or with the smallest batch of the search.
    """
    batch = min(value for _, value in ends(experiment.space.optim.batch_size))  # type: ignore[attr-defined]
    for name, ranges in experiment.space.methods.items():
        keys = type(ranges).model_fields
        values = {key: [value for _, value in ends(getattr(ranges, key))] for key in keys}
        # The largest weights: a term without a weight needs nothing.
        plain = {key: max(some) if _are_numbers(some) else some[0] for key, some in values.items()}
        for key, some in values.items():
            for value in some:
                method_config(name).model_validate({**plain, key: value}).check(classes, batch)


def _are_numbers(values: list[Any]) -> bool:
    return all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)


def profile(
    experiment: Experiment, data: ImageData, progress: Progress | None = None, *, keep: bool = True
) -> tuple[TeacherRecord | None, tuple[Block, ...], CostTable]:
    """Get blocks and cost table for `ama profile` and `--dry-run`, without training a teacher.

    Costs do not depend on the weights. Without a trained teacher, random weights are profiled; then nothing
    is written, because a cost table belongs to one teacher.

    Args:
        experiment: the experiment to profile.
        data: gives the image shape and the number of classes.
        progress: progress callback.
        keep: write the cost table of a trained teacher to the run directory, for the search.

    Returns:
        The teacher's record (None for random weights), its blocks, and its cost table.
    """
    runtime = resolve(experiment.runtime)
    config = experiment.teacher
    if config.checkpoint is not None or (Path(experiment.run.dir) / TEACHER_FILE).exists():
        teacher = get_teacher(experiment, data, runtime, progress)
        blocks = teacher_blocks(experiment, teacher.model, data.image_shape)
        if keep or (Path(experiment.run.dir) / COSTS_FILE).exists():
            costs = get_costs(experiment, teacher, blocks, data.image_shape, runtime, progress)
        else:
            costs = fresh_costs(experiment, teacher.model, blocks, data.image_shape, runtime, progress)
        return teacher.record, blocks, costs
    model = untrained_model(experiment, data, runtime)
    blocks = teacher_blocks(experiment, model, data.image_shape)
    return None, blocks, fresh_costs(experiment, model, blocks, data.image_shape, runtime, progress)
