"""Make the tables of a run from its rows: one row a trial, and one row a trial and epoch."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from optuna.trial import FrozenTrial, TrialState

from analysis.metrics import COST_METRICS, METRICS

_QUALITIES = tuple(m.name for m in METRICS.values() if m.kind == "quality")
_NUMBERS = (*_QUALITIES, *reversed(COST_METRICS), "measured_latency_ms", "seconds", "replaced")
_COUNTS = ("epochs", "seed", "retries")
_TEXTS = ("ray_id", "reason", "checkpoint")
TIMES = ("started", "ended")


@dataclass(frozen=True)
class Columns:
    """Names of the columns of a run's table that differ between runs.

    Attributes:
        metrics: of the objectives, in the order of the trials' values.
        qualities: metrics known only after training.
        costs: metrics known before training.
        own: the user's own metrics.
        parameters: searched parameters in order.
        recorded: values that methods recorded at every epoch.
    """

    metrics: Sequence[str]
    qualities: Sequence[str]
    costs: Sequence[str]
    own: Sequence[str]
    parameters: Sequence[str]
    recorded: Sequence[str]


def fixed_columns(metrics: Iterable[str], own: Iterable[str]) -> list[str]:
    """Return the columns of every run's table, except the times, which come last.

    Args:
        metrics: of the objectives.
        own: the user's own metrics.
    """
    front = ("number", "state", "refused", "on_front")
    return list(dict.fromkeys([*front, *metrics, *_NUMBERS, *own, *_COUNTS, *_TEXTS]))


def trial_table(
    rows: Iterable[FrozenTrial], columns: Columns, measured: Mapping[str, Mapping[str, float]]
) -> pd.DataFrame:
    """Make the table of the trials, one row each (see `Run.trials`); `on_front` is empty.

    Args:
        rows: the trials.
        columns: of the table.
        measured: metrics measured after the search, by the trial's number as text.
    """
    table = pd.DataFrame([_row(trial, columns, measured.get(str(trial.number), {})) for trial in rows])
    fixed = fixed_columns(columns.metrics, columns.own)
    searched = [name for name in columns.parameters if name not in fixed]
    table = table.reindex(columns=[*fixed, *searched, *columns.recorded, *TIMES])
    for name in (*_NUMBERS, *columns.own, *columns.recorded):
        table[name] = pd.to_numeric(table[name]).astype("float64")
    for name in (*_COUNTS, *(name for name in searched if name.startswith("level/"))):
        table[name] = pd.to_numeric(table[name]).astype("Int64")
    for name in TIMES:
        table[name] = pd.to_datetime(table[name])
    for name in ("refused", *_TEXTS):
        table[name] = table[name].fillna("").astype(str)
    return table


def _row(trial: FrozenTrial, columns: Columns, measured: Mapping[str, float]) -> dict[str, Any]:
    attrs = trial.user_attrs
    last, costs = attrs.get("metrics") or {}, attrs.get("costs") or {}
    row = {
        **{name: last.get(name) for name in columns.recorded if name in last},
        **trial.params,
        "number": trial.number,
        "state": trial.state.name,
        "refused": attrs.get("refused"),
        **{name: last.get(name) for name in columns.qualities},
        **{name: costs.get(name) for name in columns.costs},
        "measured_latency_ms": measured.get("latency_ms"),
        "replaced": _replaced(attrs),
        "seconds": attrs.get("seconds"),
        **{name: attrs.get(name) for name in (*_COUNTS, *_TEXTS)},
        "started": trial.datetime_start,
        "ended": trial.datetime_complete,
    }
    if trial.state is TrialState.COMPLETE:
        row.update(zip(columns.metrics, trial.values, strict=True))
    return row


def _replaced(attrs: Mapping[str, Any]) -> int | None:
    spans = attrs.get("replaced")
    return None if spans is None else sum(len(span["span"]) for span in spans)


def curve_table(rows: Iterable[FrozenTrial], columns: Collection[str]) -> pd.DataFrame:
    """Make the table of the learning curves, one row a trial and epoch.

    Args:
        rows: the trials.
        columns: values of an epoch.

    Returns:
        number, state, epoch, then `columns`; NaN if a trial lacks a value.
    """
    parts: dict[str, list[Any]] = {name: [] for name in ("number", "state", "epoch", *columns)}
    for trial in rows:
        curve = trial.user_attrs.get("curve") or {}
        epochs = curve.get("epoch") or []
        parts["number"] += [trial.number] * len(epochs)
        parts["state"] += [trial.state.name] * len(epochs)
        parts["epoch"] += epochs
        for name in columns:
            values = (curve.get(name) or [])[: len(epochs)]
            parts[name] += [*values, *[math.nan] * (len(epochs) - len(values))]
    table = pd.DataFrame(parts)
    return table.astype({"number": "int64", "epoch": "int64", **dict.fromkeys(columns, "float64")})


def describe_unfinished(table: pd.DataFrame) -> str:
    """Explain why there is no front: "no trial has finished yet: 3 running, 1 waiting, …"."""
    refused = table["refused"] != ""
    counts = table.loc[~refused, "state"].value_counts()
    words = {"RUNNING": "running", "WAITING": "waiting", "PRUNED": "stopped early", "FAIL": "failed"}
    parts = [f"{counts[state]} {word}" for state, word in words.items() if counts.get(state)]
    parts += [f"{int(refused.sum())} refused before training"] if refused.any() else []
    return f"no trial has finished yet: {', '.join(parts) or 'none was started'}"
