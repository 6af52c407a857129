"""Plans of the recorded tables: experiment, points of its space, starts and seeds."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from search.experiment.experiment import Experiment
from search.policy.space import LEVEL, SearchSpace

STARTS = ("teacher", "library")  # cold and warm
SAMPLED = 104  # points of the CIFAR space
CIFAR_SEED = 7
VAL_IMAGES = 2_000  # of CIFAR; validating all 5,000 would take a third of the time

Params = dict[str, Any]

# 6 blocks, kept or replaced, with adjacent ones fused: 64 students; 3 loss settings. With all training images
# every student learns digits, so a search would only have to find the cheapest one. With 200 images (2 steps
# an epoch) accuracy depends on the kept blocks (0.7 to 0.93) and on the loss, as on harder data. Two fifths
# of the images are held out: 575, enough to rank students.
DIGITS: dict[str, Any] = {
    "name": "digits-table",
    "objectives": ["val_accuracy", "flops"],
    "data": {"name": "digits", "val_fraction": 0.4, "train_limit": 200},
    "teacher": {"arch": "cifar_resnet14", "epochs": 40, "batch_size": 32},
    "space": {
        "widths": [0.25],
        "fuse": True,
        "loss": {"alpha": {"choices": [0.1, 0.5, 0.9]}, "tau": 4.0, "beta": 1.0, "supervision": "uniform"},
        "optim": {"lr": 0.05, "batch_size": 128},
    },
    "budget": {"epochs": 9, "grace_epochs": 1, "reduction_factor": 3.0},
    "library": {"epochs": 4.0, "student_epochs": 4.0, "batch_size": 32, "lr": 5e-3},
    "runtime": {"device": "cpu", "precision": "fp32", "layout": "contiguous", "threads": 1},
}

# A sample of the preset's space. Latency is left out: it depends on the machine.
CIFAR: dict[str, Any] = {
    "name": "cifar-table",
    "objectives": ["val_accuracy", "flops"],
    "data": {
        "name": "imagefolder",
        "size": 32,
        "augment": "crop-flip",
        "mean": [0.49137, 0.48235, 0.44667],
        "std": [0.24706, 0.24353, 0.26157],
    },
    "teacher": {"arch": "cifar_resnet20"},
    "space": {
        "widths": [0.25, 0.5, 1.0],
        "fuse": "search",
        "loss": {
            "alpha": [0.1, 0.9],
            "tau": {"low": 1.0, "high": 8.0, "log": True},
            "beta": [0.1, 10.0],
            "supervision": ["uniform", "adaptive"],
        },
        "optim": {"lr": [0.01, 0.2], "batch_size": 64},
    },
    "budget": {"epochs": 6, "grace_epochs": 1, "reduction_factor": 3.0},
    "library": {"epochs": 0.5, "student_epochs": 8.0, "batch_size": 32, "lr": 1e-2},
    "runtime": {"device": "cpu", "precision": "bf16", "layout": "channels_last", "threads": 1},
}


@dataclass(frozen=True)
class Point:
    """A run to record."""

    params: Params
    start: str
    seed: int


@dataclass(frozen=True)
class Plan:
    """The plan of a table.

    Attributes:
        experiment: keys that differ from the defaults.
        seeds: of the runs.
        sampled: number of points of the space; None: all of them.
        saw: number of files of each class, from the first, that the teacher was trained on; the others are
            the validation images. None: the experiment's split.
        val_images: most validation images.
    """

    experiment: dict[str, Any]
    seeds: tuple[int, ...]
    sampled: int | None
    saw: int | None = None
    val_images: int | None = None

    def points(self, blocks: Sequence[str]) -> list[Point]:
        """Return all runs of the table in the order of recording: seed by seed."""
        space = SearchSpace(Experiment.model_validate(self.experiment | _RUN), tuple(blocks), flat=True)
        whole = list(_all(space) if self.sampled is None else random_points(space, self.sampled))
        return [
            Point(params, start, seed)
            for seed in self.seeds
            for params in whole
            for start in STARTS
            if start == "teacher" or _replaces(params, space)  # without a module both starts are the same
        ]


_RUN = {"run": {"dir": "runs/table"}}


def digits() -> Plan:
    """Plan the table of the whole space of `DIGITS`."""
    return Plan(DIGITS, (0, 1, 2), None)


def cifar(
    root: str,
    teacher: str,
    train_limit: int | None,
    sampled: int = SAMPLED,
    epochs: int = 6,
    saw: int | None = None,
    student_epochs: float = CIFAR["library"]["student_epochs"],
) -> Plan:
    """Plan the table of a sample of the space of `CIFAR`: images under `root`, weights in `teacher`."""
    data = {**CIFAR["data"], "root": root, "train_limit": train_limit}
    changed = {
        "data": data,
        "teacher": {**CIFAR["teacher"], "checkpoint": teacher},
        "budget": {**CIFAR["budget"], "epochs": epochs},
        "library": {**CIFAR["library"], "student_epochs": student_epochs},
    }
    return Plan(CIFAR | changed, (0,), sampled, saw, VAL_IMAGES)


def _replaces(params: Params, space: SearchSpace) -> bool:
    return any(params[LEVEL + name] < space.keep for name in space.blocks)


def _all(space: SearchSpace) -> Iterator[Params]:
    choices = [_choices(distribution) for distribution in space.distributions.values()]
    for values in itertools.product(*choices):
        yield dict(zip(space.distributions, values, strict=True))


def _choices(distribution: Any) -> Sequence[Any]:
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices
    assert isinstance(distribution, IntDistribution), f"{distribution} cannot be enumerated"
    return range(distribution.low, distribution.high + 1)


def random_points(space: SearchSpace, count: int) -> Iterator[Params]:
    """Yield random points; the share of replaced blocks is uniform, to cover the whole range of costs."""
    rng = random.Random(CIFAR_SEED)
    for _ in range(count):
        share, params = rng.random(), {}
        for name, distribution in space.distributions.items():
            params[name] = _draw(rng, distribution)
            if name.startswith(LEVEL):
                params[name] = rng.randrange(space.keep) if rng.random() < share else space.keep
        if not _replaces(params, space):
            params[LEVEL + rng.choice(space.blocks)] = rng.randrange(space.keep)
        yield params


def _draw(rng: random.Random, distribution: Any) -> Any:
    if isinstance(distribution, FloatDistribution):
        low, high = distribution.low, distribution.high
        value = low * (high / low) ** rng.random() if distribution.log else rng.uniform(low, high)
        return float(f"{value:.4g}")
    return rng.choice(_choices(distribution))
