"""Choose trials to retrain, with reasons: `pick("runs/digits", max=["flops=0.5x"])`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd

from analysis.errors import InputError
from analysis.metrics import describe, show
from analysis.pareto import front_mask, knee, scale_to_front, spread
from analysis.picks.limits import Limits, parse_limits
from analysis.runs.limits import Limit, breaks, excesses, nearest_miss
from analysis.runs.load import load
from analysis.runs.run import Run


@dataclass(frozen=True)
class Pick:
    """A chosen trial: metrics, costs, full distillation config, and the reason for the choice.

    Example:
        (chosen,) = pick("runs/digits", knee=True)
        print(chosen.number, chosen.values["val_accuracy"], chosen.costs["flops"], chosen.reason)
        print(chosen.config["student"]["widths"])
    """

    number: int
    values: dict[str, float]
    config: dict[str, Any]
    costs: dict[str, float]
    reason: str


def pick(
    run: str | Path | optuna.Study | Run,
    *,
    max: Limits | None = None,
    min: Limits | None = None,
    knee: bool = False,
    top: int | None = None,
) -> list[Pick]:
    """Pick from the non-dominated trials among the fully trained ones within the limits.

    The experiment's own limits on trained metrics hold as well as those given here.

    Args:
        run: run directory, storage URL, Optuna study, or an open Run.
        max, min: limits, in the form of `limits.parse_limits`.
        knee: pick the knee of these candidates (see `pareto.knee`); the default without other options.
        top: pick this many well-spread candidates (see `pareto.spread`).
        With limits only: pick the candidate that is best in the first objective.

    Returns:
        One pick, or up to `top` picks; best first objective first.

    Raises:
        InputError: both `knee` and `top` are given, `top` < 1, a limit is invalid, no trial is finished, or
            none is within the limits (the message names the nearest).

    Example:
        (knee,) = pick("runs/digits", knee=True)
        (small,) = pick("runs/digits", max={"flops": "1x"}, min={"val_accuracy": 0.05})
        print(knee.number, small.number, [p.number for p in pick("runs/digits", top=2)])
        print(small.reason)
    """
    if knee and top is not None:
        raise InputError("knee and top exclude each other: give only one of them")
    if top is not None and top < 1:
        raise InputError(f"top must be at least 1, got {top}")
    opened = load(run)
    asked = parse_limits(max, min, opened.teacher, opened.known)
    limits = (*opened.limits, *(limit for limit in asked if limit not in opened.limits))
    table = opened.trials
    complete = table[table["state"] == "COMPLETE"]
    if complete.empty:
        raise InputError(f"{opened.label}: {opened.why_no_front()}")
    candidates = _candidates(opened, complete, limits)
    points = opened.points(candidates)
    if top is not None:
        chosen = spread(points, top)
    else:
        chosen = [_knee(points)] if knee or not asked else [0]
    how = (
        f"one of {len(chosen)} well-spread"
        if top is not None
        else "the knee"
        if knee or not asked
        else "best"
    )
    return [_explain(opened, complete, candidates, limits, row, how) for row in chosen]


MAX_NAMED = 10  # maximum number of candidates listed in a reason

_knee = knee  # `pick` has a parameter with this name


def _candidates(run: Run, complete: pd.DataFrame, limits: tuple[Limit, ...]) -> pd.DataFrame:
    """Return the non-dominated of the rows within the limits, best first objective first."""
    within: pd.DataFrame = complete.iloc[np.flatnonzero((excesses(complete, limits) <= 0).all(axis=1))]
    if within.empty:
        raise InputError(f"{run.label}: {nearest_miss(complete, limits)}")
    points = run.points(within)
    order = np.lexsort((within["number"].to_numpy(), points[:, 0]))
    best: pd.DataFrame = within.iloc[order[front_mask(points)[order]]]
    return best.reset_index(drop=True)


def _explain(
    run: Run, complete: pd.DataFrame, candidates: pd.DataFrame, limits: tuple[Limit, ...], row: int, how: str
) -> Pick:
    chosen = candidates.iloc[row]
    first = run.metrics[0]
    within = f" within {' and '.join(map(str, limits))}" if limits else ""
    what = f"best {first}" if how == "best" else how
    parts = [f"{what} of {_named(candidates)} (non-dominated of {len(complete)} fully trained){within}"]
    if how == "best":
        parts.append(_what_bound(run, complete, chosen, limits))
    if len(candidates) < 2:
        parts.append("the only candidate")
    elif how in ("best", "the knee"):
        parts.append(_next_best(run, candidates, row, how))
    attrs = run.trial(int(chosen["number"])).user_attrs
    if not isinstance(attrs.get("config"), dict):
        raise InputError(f"{run.label}: trial {chosen['number']} has no config to retrain from")
    values = {name: float(chosen[name]) for name in run.known if pd.notna(chosen[name])}
    costs = {name: float(value) for name, value in (attrs.get("costs") or {}).items()}
    return Pick(int(chosen["number"]), values, attrs["config"], costs, "; ".join(p for p in parts if p))


def _what_bound(run: Run, complete: pd.DataFrame, chosen: pd.Series, limits: tuple[Limit, ...]) -> str:
    """Describe the better trial that violates limits least, and the limits that excluded it."""
    first = run.objectives[0]
    sign = -1.0 if first.direction == "maximize" else 1.0
    better = complete[sign * complete[first.metric] < sign * chosen[first.metric]]
    if better.empty:
        return "no limit bound: nothing finished is better"
    excess = excesses(better, limits)
    nearest = int(excess.max(axis=1).argmin())
    row = better.iloc[nearest]
    return (
        f"trial {row['number']} is better with {show(first.metric, row[first.metric])}, "
        f"but its {breaks(row, excess[nearest], limits)}"
    )


def _named(candidates: pd.DataFrame) -> str:
    """List the candidates: "3 candidates: trials 4, 7, 9"."""
    numbers = [str(number) for number in candidates["number"]]
    more = ", …" if len(numbers) > MAX_NAMED else ""
    plural = "s" if len(numbers) > 1 else ""
    return f"{len(numbers)} candidate{plural}: trial{plural} {', '.join(numbers[:MAX_NAMED])}{more}"


def _next_best(run: Run, candidates: pd.DataFrame, row: int, how: str) -> str:
    """Describe the next candidate, and its difference in every objective.

    After the best candidate, it is the second best in the first objective. After the knee, it is the point
    second farthest below the line between the front's ends.
    """
    order = np.arange(len(candidates))
    if how == "the knee":
        order = np.argsort(scale_to_front(run.points(candidates)).sum(axis=1), kind="stable")
    other, chosen = candidates.iloc[next(int(i) for i in order if i != row)], candidates.iloc[row]
    parts = [f"{m} {show(m, other[m])} ({_gap(m, other[m] - chosen[m])})" for m in run.metrics]
    return f"next is trial {other['number']} with {', '.join(parts)}"


def _gap(metric: str, difference: float) -> str:
    """Format a difference: "1.20 points less", "3.1 M more", "the same"."""
    if difference == 0:
        return "the same"
    return f"{describe(metric).show_difference(abs(difference))} {'more' if difference > 0 else 'less'}"
