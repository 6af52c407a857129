"""Choose the first trials: the best students by proxy, spread along the price axis."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from search.policy.best_by_proxy import Candidate, best_by_proxy, price_of, spread
from search.policy.space import LEVEL, STUDENT, SearchSpace
from trainables.blocks.blocks import Block
from trainables.config import REPLACED
from trainables.costs.table import CostTable
from trainables.library.library import Library


def first_proposals(
    space: SearchSpace, blocks: Sequence[Block], costs: CostTable, library: Library
) -> list[dict[str, Any]]:
    """Return the parameters to try first: the best students by proxy, spread along the price axis.

    Separate students have no proxy: none is among them.

    Their number follows from the share in the budget. Loss weights and optimiser settings are the middle of
    each range, because the proxy does not depend on them.
    """
    experiment = space.experiment
    count = round(experiment.budget.first_share * experiment.budget.trials)
    cost = next((o.metric for o in experiment.objectives if o.metric in experiment.cost_metrics), "flops")
    found = best_by_proxy(
        blocks,
        experiment.space.widths,
        experiment.space.fuse is not False,
        library.solo_loss,
        price_of(costs.price, cost),
    )
    if REPLACED not in experiment.space.student:
        return []
    middle = {name: _middle(dist) for name, dist in space.distributions.items()}
    middle |= {STUDENT: REPLACED} if STUDENT in middle else {}
    middle = {name: middle[name] for name in space.active(middle)}
    return [{**middle, **_levels(space, candidate)} for candidate in spread(found, count)]


def _levels(space: SearchSpace, candidate: Candidate) -> dict[str, Any]:
    """Return the candidate's level of every block, and `fuse` if it is searched."""
    widths, spec = list(space.experiment.space.widths), candidate.spec
    levels: dict[str, Any] = {
        LEVEL + name: widths.index(spec.widths[name]) if name in spec.widths else space.keep
        for name in space.blocks
    }
    return levels | ({"fuse": spec.fuse} if "fuse" in space.distributions else {})


def _middle(distribution: BaseDistribution) -> Any:
    """Return the middle of a range (geometric for a log range), or the first choice."""
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[0]
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    low, high = distribution.low, distribution.high
    middle = math.sqrt(low * high) if distribution.log else (low + high) / 2
    return round(middle) if isinstance(distribution, IntDistribution) else middle
