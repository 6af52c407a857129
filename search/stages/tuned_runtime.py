"""Measure the fastest runtime settings of trials, on a worker with a trial's resources."""

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
from search.stages.prepare import Prepared
from trainables.config import RuntimeConfig
from trainables.errors import InputError
from trainables.training.fastest_runtime import is_settled, tuned

log = logging.getLogger(__name__)


def tuned_runtime(setup: Prepared, epochs: int | None = None) -> RuntimeConfig:
    """Choose the runtime settings that the experiment leaves open, by one measurement on a worker.

    Ray must be connected. Nothing else may run, because a busy device distorts the measurement. If measuring
    fails, log a warning and use the defaults.

    Args:
        setup: gives the teacher, which is the measured model.
        epochs: epochs of a training run; None: those of a trial.
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
            "the fastest runtime settings could not be measured (%s); trials use the defaults",
            cause_of(fault),
        )
        return config
    return found


def batch_size(experiment: Experiment) -> int:
    """Return the images per step of a trial; the largest value if it is searched."""
    given: Any = getattr(experiment.space.optim, "batch_size")  # noqa: B009 - the section is made
    if isinstance(given, Range):
        given = given.high
    return int(max(given.choices) if isinstance(given, Choices) else given)


@ray.remote  # type: ignore[untyped-decorator]
def _tuned(
    config: RuntimeConfig, model: nn.Module, shape: tuple[int, int, int], batch: int, images: int
) -> RuntimeConfig:
    return tuned(config, model, shape, batch, images=images)
