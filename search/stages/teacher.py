"""The stage that loads or trains the teacher and finds its blocks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from search.experiment.experiment import Experiment
from search.run_dir.files import TEACHER_FILE
from search.stages.costs import fresh_costs
from search.stages.limits import EXACT, absolute_limits
from search.stages.progress import Progress
from trainables.blocks.blocks import Block, find_blocks
from trainables.data.dataset import ImageData
from trainables.data.load import load_data
from trainables.network.architectures import build_model
from trainables.network.evaluate import evaluate
from trainables.network.scores import check_scores, load_scores
from trainables.runtime.runtime import Runtime
from trainables.student.build import build_separate
from trainables.teacher.teacher import Teacher, load_teacher
from trainables.teacher.training import train_teacher


def get_teacher(
    experiment: Experiment, data: ImageData, runtime: Runtime, progress: Progress | None = None
) -> Teacher:
    """Load the teacher (a given checkpoint, or that of the run directory), or train it."""
    run_dir = Path(experiment.run.dir)
    path = run_dir / TEACHER_FILE
    if experiment.teacher.checkpoint is not None or path.exists():
        return load_teacher(experiment.teacher, data, runtime, run_dir, seed=experiment.seed)
    if data.test is None:
        # The teacher's record includes its test accuracy.
        data = load_data(experiment.data, test=True, progress=progress)
    total = experiment.teacher.epochs

    def report(metrics: dict[str, Any]) -> None:
        if progress is not None:
            progress(
                f"training the teacher, validation accuracy {metrics['val_accuracy']:.4f}",
                int(metrics["epoch"]),
                total,
            )

    check_scores(load_scores(experiment.scores), data.num_classes)
    _check_before_training(experiment, data, runtime)
    run_dir.mkdir(parents=True, exist_ok=True)
    return train_teacher(experiment.teacher, data, runtime, path, seed=experiment.seed, report=report)


def _check_before_training(experiment: Experiment, data: ImageData, runtime: Runtime) -> None:
    """Run the checks that do not need trained weights, before the teacher is trained.

    Raises:
        InputError: the architecture is unknown, no block may be replaced, or no student satisfies a limit on
            params or FLOPs.
    """
    model = untrained_model(experiment, data, runtime)
    blocks = teacher_blocks(experiment, model, data.image_shape)
    for arch in experiment.space.separate:
        build_separate(arch, data.num_classes, data.image_shape)
    if experiment.costs.extra or any(limit.metric in EXACT for limit in experiment.constraints):
        table = fresh_costs(experiment, model, blocks, data.image_shape, runtime, None, seconds=0.0)
        own = tuple(metric.name for metric in experiment.own_metrics if metric.kind == "cost")
        absolute_limits(experiment, None, table, known=(*EXACT, *own))


def teacher_scores(
    experiment: Experiment, model: torch.nn.Module, data: ImageData, runtime: Runtime
) -> dict[str, float]:
    """Compute the user's own metrics of the teacher on the validation images, by name."""
    scores = load_scores(experiment.scores)
    if not scores:
        return {}
    batches = data.eval_batches("val", runtime)
    return dict(evaluate(model, batches, runtime, scores).scores)


def untrained_model(experiment: Experiment, data: ImageData, runtime: Runtime) -> torch.nn.Module:
    """Build the teacher's architecture with random weights, in eval mode."""
    config = experiment.teacher
    model = build_model(config.arch, data.num_classes, data.image_shape, config.small_stem)
    return model.to(runtime.device).eval()


def teacher_blocks(
    experiment: Experiment, model: torch.nn.Module, image_shape: tuple[int, int, int]
) -> tuple[Block, ...]:
    """Return the blocks that the experiment may replace, in execution order."""
    device = next(model.parameters()).device
    return find_blocks(model, torch.zeros(1, *image_shape, device=device), experiment.space.blocks)
