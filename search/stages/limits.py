"""Convert the experiment's constraints to absolute values, and refuse those that no student satisfies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from analysis.metrics import CURVE_METRICS, show
from search.experiment.experiment import Experiment
from search.policy.limits import Limit
from trainables.costs.table import Costs, CostTable
from trainables.errors import InputError
from trainables.teacher.record import TeacherRecord

EXACT = ("params", "flops")  # costs that are computed, not measured


def absolute_limits(
    experiment: Experiment,
    teacher: TeacherRecord | None,
    costs: CostTable,
    known: Sequence[str] | None = None,
    scores: Mapping[str, float] | None = None,
) -> list[Limit]:
    """Convert the experiment's constraints to absolute values; without a teacher, scores are NaN.

    Args:
        experiment: the experiment with the constraints.
        teacher: the teacher's record; None if it is not trained yet.
        costs: the teacher's cost table.
        known: metrics whose limits can be checked with `costs`; None: all its costs.
        scores: the teacher's values of the user's own metrics.

    Raises:
        InputError: no student satisfies a limit on a cost; the message gives the cheapest student.
    """
    reference = {
        **{metric: getattr(teacher, metric, float("nan")) for metric in CURVE_METRICS},
        **(scores or dict.fromkeys((metric.name for metric in experiment.own_metrics), float("nan"))),
        **costs.teacher.as_dict(),
    }
    limits = [Limit(c.metric, c.op, c.limit(reference[c.metric]), c.text) for c in experiment.constraints]
    for limit in limits:
        if limit.metric in (costs.metrics if known is None else known):
            _check_reachable(limit, costs, experiment.space.fuse, experiment.space.student)
    return limits


def _check_reachable(
    limit: Limit, costs: CostTable, fuse: bool | Literal["search"], students: Sequence[str]
) -> None:
    fused = fuse if isinstance(fuse, bool) else None
    spec, cheapest = costs.cheapest(limit.metric, fused, students)
    least, most = costs.price_bounds(limit.metric, fused, students)
    if limit.violation(least if limit.op == "<=" else most) <= 0:
        return
    bound = f"{limit.text} (that is {limit.op} {show(limit.metric, limit.limit)})"
    if limit.op == "<=":
        which = spec.arch or f"with {len(spec.widths)} of {len(costs.structure)} blocks replaced"
        raise InputError(
            f"constraints: no student keeps {bound}: the cheapest, {which}, has {figures(cheapest)}"
        )
    raise InputError(
        f"constraints: no student keeps {bound}: the most expensive has {limit.metric} "
        f"{show(limit.metric, most)}"
    )


def figures(costs: Costs) -> str:
    """Format params, FLOPs and latency for a message."""
    return ", ".join(f"{metric} {show(metric, value)}" for metric, value in costs.as_dict().items())
