"""What a search starts from: the teacher's module library, kept by its content, and the first proposals."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from search.experiment.objectives import COSTS
from search.policy.best_by_proxy import Candidate, best_by_proxy, price_of, spread
from search.policy.space import LEVEL, SearchSpace
from search.stages.setup import Progress, Setup
from trainables.library.build import Library, build_library, library_key

DEFAULT_FOLDER = Path("~/.cache/ama-search/library")


def library_folder(setup: Setup) -> Path:
    """Where the library of this teacher, data, blocks and widths is, or will be."""
    experiment = setup.experiment
    root = Path(experiment.library.dir or DEFAULT_FOLDER).expanduser()
    key = library_key(
        setup.teacher.record.hash,
        setup.data.hash,
        setup.blocks,
        experiment.space.widths,
        experiment.space.fuse is not False,
        experiment.library,
        experiment.seed,
    )
    return root / key


def get_library(setup: Setup, progress: Progress | None = None) -> Library:
    """The module library, read where it was made before, else made now; shared by all runs that it fits."""
    folder = library_folder(setup)
    if folder.exists():
        return Library.load(folder)
    library = make_library(setup, folder.name, setup.experiment.seed, progress)
    library.save(folder.parent)
    return library


def make_library(setup: Setup, key: str, seed: int, progress: Progress | None = None) -> Library:
    """Distil all modules that the experiment's space can ask for; `key` is the library's name."""
    experiment = setup.experiment
    return build_library(
        key,
        setup.teacher.model,
        setup.blocks,
        experiment.space.widths,
        experiment.space.fuse is not False,
        setup.data,
        setup.runtime,
        experiment.library,
        seed,
        progress,
    )


def first_proposals(setup: Setup, library: Library, space: SearchSpace) -> list[dict[str, Any]]:
    """Parameters to try first: the best students by proxy, spread along the price axis.

    How many they are is the budget's share; their loss weights and optimiser settings are the middle of each
    range, since the proxy says nothing about them.
    """
    experiment = setup.experiment
    count = round(experiment.budget.first_share * experiment.budget.trials)
    cost = next((o.metric for o in experiment.objectives if o.metric in COSTS), "flops")
    found = best_by_proxy(
        setup.blocks,
        experiment.space.widths,
        experiment.space.fuse is not False,
        library.solo_loss,
        price_of(setup.costs.price, cost),
    )
    middle = {name: _middle(dist) for name, dist in space.distributions.items()}
    return [{**middle, **_levels(space, candidate)} for candidate in spread(found, count)]


def _levels(space: SearchSpace, candidate: Candidate) -> dict[str, Any]:
    """The candidate's level of every block, and whether it fuses, where that is searched."""
    widths, spec = list(space.experiment.space.widths), candidate.spec
    levels: dict[str, Any] = {
        LEVEL + name: widths.index(spec.widths[name]) if name in spec.widths else space.keep
        for name in space.blocks
    }
    return levels | ({"fuse": spec.fuse} if "fuse" in space.distributions else {})


def _middle(distribution: BaseDistribution) -> Any:
    """The middle of a range (of its logarithms for a log range), the first of some choices."""
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[0]
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    low, high = distribution.low, distribution.high
    middle = math.sqrt(low * high) if distribution.log else (low + high) / 2
    return round(middle) if isinstance(distribution, IntDistribution) else middle
