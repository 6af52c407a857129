"""Tables of the training loss of a run's students: parts of the loss, learned weights, mixed targets.

The methods recorded these values in the study (`Run.recorded`): `loss/<part>` by epoch, and for `ama` with
adaptive supervision `weight/<span>` and `mix/<span>/<teacher's map>`. The name of a span is that of its
blocks, joined by "+".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from analysis.report import tables
from analysis.runs.run import Run

LOSS, WEIGHT, MIX = "loss/", "weight/", "mix/"
MAX_SHOWN = 6  # maximum number of students whose parts are drawn


def shown_students(run: Run, picks: Sequence[int] = (), limit: int = MAX_SHOWN) -> list[int]:
    """Choose at most `limit` students: the picked ones, else some evenly spaced along the front.

    Only trials that recorded parts of the loss are considered. Returns their numbers.
    """
    recorded = {trial.number for trial in run.rows if any(map(_is_part, trial.user_attrs.get("curve") or {}))}
    picked = [number for number in dict.fromkeys(picks) if number in recorded]
    return (picked or tables.thin([n for n in tables.front_numbers(run) if n in recorded], limit))[:limit]


def loss_parts(run: Run, numbers: Sequence[int]) -> pd.DataFrame:
    """Return the weighted parts of the training loss by epoch.

    Args:
        numbers: numbers of the trials.

    Returns:
        number, epoch, part, loss, train_loss: one row per trial, epoch and part, in the order of `numbers`.
        The parts of an epoch add up to its train_loss, to the five decimals that a study stores.
    """
    curves = run.curves(set(numbers))
    parts = [name for name in run.recorded if _is_part(name)]
    columns = ["number", "epoch", "part", "loss", "train_loss"]
    if curves.empty or not parts:
        return pd.DataFrame(columns=columns)
    rows = curves.melt(["number", "epoch", "train_loss"], parts, "part", "loss").dropna(subset="loss")
    rows["part"] = rows["part"].str.removeprefix(LOSS)
    rank = {number: i for i, number in enumerate(numbers)}
    order = {name.removeprefix(LOSS): i for i, name in enumerate(parts)}
    keys = pd.DataFrame({"a": rows["number"].map(rank), "b": rows["epoch"], "c": rows["part"].map(order)})
    found: pd.DataFrame = rows.loc[keys.sort_values(["a", "b", "c"]).index, columns]
    return found.reset_index(drop=True)


def span_weights(run: Run, limit: int | None = None) -> pd.DataFrame:
    """Return the learned weights of the front's students in the feature term, after their last epoch.

    Args:
        limit: maximum number of students, evenly spaced among those of the front with learned weights.

    Returns:
        The columns of `tables.block_map`, and weight: the weight of the block's span, normalised to mean 1
        over the student's spans; NaN for kept blocks.
    """
    numbers = [n for n in tables.front_numbers(run) if _names(_last(run, n), WEIGHT)]
    cells = tables.block_map(run, numbers=numbers if limit is None else tables.thin(numbers, limit))
    spans = {n: run.trial(n).user_attrs.get("replaced") or [] for n in numbers}
    weights = [
        _last(run, number).get(WEIGHT + "+".join(spans[number][span]["span"])) if span >= 0 else None
        for number, span in zip(cells["number"], cells["span"], strict=True)
    ]
    return cells.assign(weight=pd.Series(weights, index=cells.index, dtype="float64"))


def mixes(run: Run, numbers: Sequence[int] | None = None) -> pd.DataFrame:
    """Return the learned targets that mix several maps of the teacher, after the last epoch.

    Args:
        numbers: numbers of the trials; None: those of the front.

    Returns:
        number, span (its blocks, joined by "+"), map (a module of the teacher) and its share in the target;
        the shares of a span add up to 1.
    """
    rows = []
    for number in tables.front_numbers(run) if numbers is None else numbers:
        last = _last(run, number)
        for name in _names(last, MIX):
            span, _, path = name.removeprefix(MIX).partition("/")
            rows.append((number, span, path, float(last[name])))
    return pd.DataFrame(rows, columns=["number", "span", "map", "share"])


def mix_rows(table: pd.DataFrame, limit: int) -> tuple[list[str], list[list[str]]]:
    """Return headers and cells of the table of `mixes`: at most `limit` spans with their maps by share."""
    rows = []
    for (number, span), part in list(table.groupby(["number", "span"], sort=False))[:limit]:
        part = part.sort_values("share", ascending=False, kind="stable")
        maps = ", ".join(
            f"{path} {share:.2f}" for path, share in zip(part["map"], part["share"], strict=True)
        )
        rows.append([str(number), str(span).replace("+", " + "), maps])
    return ["trial", "replaced blocks", "teacher's maps, by share"], rows


def why_no_parts(run: Run) -> str:
    """Return the reason why no part of a loss can be shown."""
    if not run.trials["on_front"].any():
        return "the front is still empty"
    return "no trial of the front recorded the parts of its loss (version 0.1 did not)"


def why_no_weights(run: Run) -> str:
    """Return the reason why no learned weight can be shown."""
    if not any(map(_is_part, run.recorded)):
        return why_no_parts(run).replace("the parts of its loss", "learned weights")
    if not run.trials["on_front"].any():
        return "the front is still empty"
    return "no student of the front has learned weights: its supervision was not adaptive"


def _is_part(name: str) -> bool:
    return name.startswith(LOSS)


def _last(run: Run, number: int) -> Mapping[str, Any]:
    """Return the values that a trial recorded in its last epoch."""
    return run.trial(number).user_attrs.get("metrics") or {}


def _names(last: Mapping[str, Any], prefix: str) -> list[str]:
    """Return the recorded names below `prefix`, in their order."""
    return [name for name in last if name.startswith(prefix)]
