"""What a search measures before its first trial, on a worker that has what a trial will have."""

from __future__ import annotations

import ray
from torch import nn

from search.experiment import Experiment
from search.pipeline import Setup, trial_runtime
from search.ranges import Choices, Range
from trainables.config import RuntimeConfig
from trainables.tuning import tuned


def tuned_runtime(setup: Setup, epochs: int | None = None) -> RuntimeConfig:
    """How trials compute: what the experiment leaves open, measured once where they run.

    Ray must be connected. Nothing else may run meanwhile: a busy device is measured wrongly.

    Args:
        setup: its teacher is the model that is measured.
        epochs: of a training; None: a trial's.
    """
    experiment = setup.experiment
    images = (epochs or experiment.budget.epochs) * len(setup.data.train)
    resources = experiment.resources
    task = _tuned.options(num_cpus=resources.cpu, num_gpus=resources.gpu)
    found: RuntimeConfig = ray.get(
        task.remote(
            trial_runtime(experiment),
            setup.teacher.model.cpu(),
            setup.data.image_shape,
            batch_size(experiment),
            images=images,
        )
    )
    return found


def batch_size(experiment: Experiment) -> int:
    """Images a step of a trial; the largest of those searched."""
    given = experiment.space.optim.batch_size
    if isinstance(given, Range):
        return given.high
    return max(given.choices) if isinstance(given, Choices) else given


@ray.remote  # type: ignore[untyped-decorator]
def _tuned(
    config: RuntimeConfig, model: nn.Module, shape: tuple[int, int, int], batch: int, images: int
) -> RuntimeConfig:
    return tuned(config, model, shape, batch, images=images)
