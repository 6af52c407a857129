"""Summarise retrained models over seeds, from `results.json` with one entry per model.

A baseline is the same student trained in another way with the same seeds. `gain` is the student minus the
baseline, paired by seed, with the 95 % interval and the p-value of the paired t-test.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from analysis.errors import InputError
from analysis.intervals import Paired, paired, summarise
from analysis.metrics import COST_METRICS, show

STUDENT = "student"
HEAD = (
    *("trial", "model", "n", "test accuracy", "95 % interval", "gain", "p"),
    *("test loss", "gain", "p", "FLOPs", "params", "latency", "epochs"),
)
NOTE = (
    "Test data, read once per model: mean ± standard deviation over seeds, 95 % interval of the mean. Gain: "
    "the student minus the model of the row, in points of accuracy or in loss, paired by seed, with its 95 % "
    "interval and the p-value of the paired t-test."
)
SCORES = ("test_accuracy", "test_loss", "val_accuracy")
GAINS = ("test_accuracy", "test_loss")
RESULTS, TABLE = "results.json", "results.csv"

Row = dict[str, Any]


def read_results(path: Path) -> list[Row]:
    """Read the entries of a `results.json`.

    Raises:
        InputError: the file is not a list of results with number and kind.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        return [{"number": entry["number"], "kind": entry["kind"], **entry} for entry in entries]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"{path}: expected a list of results with number and kind: {error!r}") from None


def summary_rows(entries: Sequence[Mapping[str, Any]], costs: Sequence[str] = COST_METRICS) -> list[Row]:
    """Summarise the entries: one row per trial and kind, in order of their first entries.

    Args:
        entries: entries of `results.json`.
        costs: names of the costs.

    Returns:
        Per row: `number`, `kind`, `n` (number of models), their costs, mean `epochs` and `seconds`. For every
        score the mean, standard deviation (`<score>_std`) and 95 % interval (`_low`, `_high`; None for fewer
        than two models). For baselines also `gain_<score>` with `_low`, `_high` and `_p`, and `pairs`, the
        number of common seeds.
    """
    groups: dict[tuple[Any, str], list[Mapping[str, Any]]] = {}
    for entry in entries:
        groups.setdefault((entry["number"], entry["kind"]), []).append(entry)
    rows = []
    for (number, kind), group in groups.items():
        row: Row = {"number": number, "kind": kind, "n": len(group)}
        row |= {name: group[0].get(name) for name in costs}
        row |= {name: _mean(group, name) for name in ("epochs", "seconds")}
        for name in SCORES:
            row |= _score(group, name)
        rows.append(row | _gains(groups.get((number, STUDENT), []), group, kind))
    return rows


def teacher_row(teacher: Mapping[str, Any], costs: Sequence[str] = COST_METRICS) -> Row:
    """Return the teacher's row, to put before those of `summary_rows`; missing values are None."""
    names = (*costs, "epochs", "seconds", *SCORES)
    spread = {f"{name}_{part}": None for name in SCORES for part in ("std", "low", "high")}
    known = {name: teacher.get(name) for name in names}
    return {"number": None, "kind": "teacher", "n": 1, **known, **spread, **_gains([], [], STUDENT)}


def cells(row: Mapping[str, Any]) -> list[str]:
    """Format a row as texts, in the columns of `HEAD`."""
    accuracy, loss = ("test_accuracy", 100, 2), ("test_loss", 1, 4)
    mean = _shown_mean(row, *accuracy)
    return [
        "" if row["number"] is None else str(row["number"]),
        row["kind"],
        str(row["n"]),
        mean if mean == "–" else f"{mean} %",
        _shown_interval(row, *accuracy),
        *_shown_gain(row, *accuracy),
        _shown_mean(row, *loss),
        *_shown_gain(row, *loss),
        *(show(metric, row[metric]) for metric in ("flops", "params", "latency_ms")),
        "–" if _none(row["epochs"]) else f"{row['epochs']:g}",
    ]


def _none(value: float | None) -> bool:
    return value is None or math.isnan(value)


def _shown_mean(row: Mapping[str, Any], name: str, scale: float, digits: int) -> str:
    if _none(row[name]):
        return "–"
    spread = row[f"{name}_std"]
    tail = "" if _none(spread) else f" ± {spread * scale:.{digits}f}"
    return f"{row[name] * scale:.{digits}f}{tail}"


def _shown_interval(row: Mapping[str, Any], name: str, scale: float, digits: int, sign: str = "") -> str:
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return "–" if _none(low) else f"[{low * scale:{sign}.{digits}f}, {high * scale:{sign}.{digits}f}]"


def _shown_gain(row: Mapping[str, Any], name: str, scale: float, digits: int) -> tuple[str, str]:
    """Format the student's gain over the row's model (points of accuracy, or loss), and its p-value."""
    gain, p = row[f"gain_{name}"], row[f"gain_{name}_p"]
    if _none(gain):
        return "–", "–"
    interval = _shown_interval(row, f"gain_{name}", scale, digits, "+")
    tail = "" if interval == "–" else f" {interval}"
    return f"{gain * scale:+.{digits}f}{tail}", "–" if _none(p) else f"{p:.2g}"


def _mean(group: Sequence[Mapping[str, Any]], name: str) -> float | None:
    values = [entry[name] for entry in group if entry.get(name) is not None]
    return summarise(values).mean if values else None


def _score(group: Sequence[Mapping[str, Any]], name: str) -> Row:
    values = [entry[name] for entry in group if entry.get(name) is not None]
    if not values:
        return dict.fromkeys((name, *(f"{name}_{part}" for part in ("std", "low", "high"))))
    found = summarise(values)
    return {name: found.mean, f"{name}_std": found.std, f"{name}_low": found.low, f"{name}_high": found.high}


def _gains(ours: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]], kind: str) -> Row:
    row: Row = {}
    pairs = 0
    for name in GAINS:
        found = paired(_by_seed(ours, name), _by_seed(theirs, name)) if kind != STUDENT else None
        pairs = found.n if found else 0
        row |= _columns(f"gain_{name}", found)
    return row | {"pairs": pairs}


def _by_seed(group: Sequence[Mapping[str, Any]], name: str) -> dict[Any, float]:
    return {entry.get("seed"): entry[name] for entry in group if entry.get(name) is not None}


def _columns(name: str, found: Paired | None) -> Row:
    if found is None:
        return dict.fromkeys((name, f"{name}_low", f"{name}_high", f"{name}_p"))
    parts = {"_low": found.low, "_high": found.high, "_p": found.p}
    return {name: found.difference, **{name + part: value for part, value in parts.items()}}
