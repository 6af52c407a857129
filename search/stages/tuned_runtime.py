"""What a search measures before its first trial, on a worker that has what a trial will have."""

from __future__ import annotations

import logging
from typing import Any

import ray
from ray.exceptions import RayError
from torch import nn

from search.cluster.connection import cause_of
from search.experiment.experiment import Experiment
from search.experiment.ranges import Choices, Range
from search.stages.costs import trial_runtime
from search.stages.setup import Setup
from trainables.config import RuntimeConfig
from trainables.errors import InputError
from trainables.training.fastest_runtime import is_settled, tuned

log = logging.getLogger(__name__)


def tuned_runtime(setup: Setup, epochs: int | None = None) -> RuntimeConfig:
    """How trials compute: what the experiment leaves open, measured once where they run.

    Ray must be connected. Nothing else may run meanwhile: a busy device is measured wrongly. Where measuring
    fails, a warning says so, and what was left open has its default.

    Args:
        setup: its teacher is the model that is measured.
        epochs: of a training; None: a trial's.
    """
    experiment = setup.experiment
    config = trial_runtime(experiment)
    if is_settled(config):
        return config
    images = (epochs or experiment.budget.epochs) * len(setup.data.train)
    resources = experiment.resources
    task = _tuned.options(num_cpus=resources.cpu, num_gpus=resources.gpu)
    model, shape = setup.teacher.model.cpu(), setup.data.image_shape
    try:
        found: RuntimeConfig = ray.get(
            task.remote(config, model, shape, batch_size(experiment), images=images)
        )
    except InputError:
        raise
    except RayError as fault:  # its worker died, or the measurement itself broke
        log.warning(
            "how trials compute fastest could not be measured (%s); they compute as by default",
            cause_of(fault),
        )
        return config
    return found


def batch_size(experiment: Experiment) -> int:
    """Images a step of a trial; the largest of those searched."""
    given: Any = getattr(experiment.space.optim, "batch_size")  # noqa: B009 - the section is made
    if isinstance(given, Range):
        given = given.high
    return int(max(given.choices) if isinstance(given, Choices) else given)


@ray.remote  # type: ignore[untyped-decorator]
def _tuned(
    config: RuntimeConfig, model: nn.Module, shape: tuple[int, int, int], batch: int, images: int
) -> RuntimeConfig:
    return tuned(config, model, shape, batch, images=images)
