"""Compare the fronts and hypervolumes of several runs in one reference box; repeats get intervals.

Runs can be compared if they have the same objectives and the same kind of data. Latencies must also have been
measured on the same device with the same batch size. Teachers may differ: the box then ends at the costs of
the most expensive one. Runs whose experiments differ only in seed, name and paths are repeats and form one
group.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
from scipy import stats  # type: ignore[import-untyped]

from analysis.errors import InputError
from analysis.intervals import CONFIDENCE, summarise
from analysis.metrics import show
from analysis.pareto import Box, box, hypervolume
from analysis.report import tables
from analysis.runs.parameters import DEFAULT_METHOD
from analysis.runs.run import Run

GRID = 100  # points of a group's curve
TARGET = 0.95  # target of `epochs_to_target`, as a share of the smallest final hypervolume
# Keys in which repeats may differ: the seed, and paths.
FREE = (
    *("seed", "name", "run", "storage", "resources", "runtime"),
    *("data.root", "data.cache", "library.dir", "teacher.checkpoint"),
)
SHOWN_KEYS = 3  # maximum number of keys in a group's label


@dataclass(frozen=True)
class Comparison:
    """Result of `compare_runs`; every table is written as CSV by `write_comparison`.

    Attributes:
        runs: run, group, seed, place, hypervolume, front (its size), trials, complete, epochs, train_hours,
            at_common (hypervolume at `common_epochs`), epochs_to_target (NaN: not reached).
        groups: group, n, then mean, standard deviation (`_std`) and 95 % interval (`_low`, `_high`) of
            hypervolume, at_common, epochs, train_hours, epochs_to_target (of the runs that reached it).
        differences: group, against (the first group), difference of mean final hypervolume, low, high, p
            (Welch's t-test); NaN for groups of one run.
        fronts: run, group, number and objectives of every trial on a front.
        history: run, group, trials, epochs, train_hours, hypervolume after each trial that ended.
        curves: group, epochs, n, mean, low, high of the hypervolume over compute.
        reference: the box's worst values by metric.
        common_epochs: number of epochs that every run has trained.
        notes: remarks on the comparison, e.g. different teachers.

    Example:
        found = compare_runs(["runs/digits", "runs/other"])
        print(found.runs[["run", "hypervolume", "epochs"]], found.notes)
    """

    objectives: tuple[str, ...]
    runs: pd.DataFrame
    groups: pd.DataFrame
    differences: pd.DataFrame
    fronts: pd.DataFrame
    history: pd.DataFrame
    curves: pd.DataFrame
    reference: dict[str, float]
    common_epochs: int
    target: float
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return the result for `--json`, without the long tables."""
        frames = {"runs": self.runs, "groups": self.groups, "differences": self.differences}
        return {
            "objectives": list(self.objectives),
            "reference": self.reference,
            "common_epochs": self.common_epochs,
            "target": self.target,
            "notes": list(self.notes),
            **{name: _records(frame) for name, frame in frames.items()},
            "fronts": _records(self.fronts),
        }


def compare_runs(places: Sequence[str | Path | optuna.Study | Run]) -> Comparison:
    """Compare two or more runs.

    Args:
        places: run directories, storage URLs, Optuna studies, or open runs.

    Returns:
        Fronts and hypervolumes in one box. Runs that differ only in seed, name and paths form one group.

    Raises:
        InputError: fewer than two runs, the same run twice, or runs that cannot be compared.

    Example:
        found = compare_runs(["runs/digits", load("runs/other")])
        print(found.groups[["group", "n", "hypervolume"]])
    """
    if len(places) < 2:
        raise InputError(f"compare needs two runs or more, got {len(places)}")
    runs = [Run.open(place) for place in places]
    notes = _check(runs)
    common = _common_box(runs)
    names, groups = _run_names(runs), _groups(runs)
    histories = [tables.history(run, common) for run in runs]
    epochs = int(min((h["epochs"].iloc[-1] if len(h) else 0) for h in histories))
    volumes = [_final(history) for history in histories]
    target = TARGET * min([volume for volume in volumes if volume > 0], default=math.nan)
    rows = [
        _run_row(run, history, common, epochs, target) for run, history in zip(runs, histories, strict=True)
    ]
    labelled = [{"run": n, "group": g} for n, g in zip(names, groups, strict=True)]
    table = pd.DataFrame([{**label, **row} for label, row in zip(labelled, rows, strict=True)])
    history = pd.concat(
        [h.assign(**label) for h, label in zip(histories, labelled, strict=True)], ignore_index=True
    )
    notes += [f"{n}: no trial is fully trained yet" for n, v in zip(names, volumes, strict=True) if v == 0]
    reference = {
        o.metric: abs(float(value)) for o, value in zip(runs[0].objectives, common.reference, strict=True)
    }
    return Comparison(
        objectives=tuple(runs[0].metrics),
        runs=table,
        groups=_group_rows(table),
        differences=_differences(table),
        fronts=_fronts(runs, labelled),
        history=history[["run", "group", "trials", "epochs", "train_hours", "hypervolume"]],
        curves=_curves(history),
        reference=reference,
        common_epochs=epochs,
        target=target,
        notes=tuple(notes),
    )


def _check(runs: Sequence[Run]) -> list[str]:
    """Refuse runs that cannot be compared; return remarks on the others."""
    first = runs[0]
    for run in runs[1:]:
        if run.objectives != first.objectives:
            raise InputError(
                f"{run.label} has the objectives {_objectives(run)}, but {first.label} has "
                f"{_objectives(first)}: they share no hypervolume"
            )
        if (own := run.own_metrics) != first.own_metrics:
            differ = [name for name in own if own[name] != first.own_metrics.get(name)]
            if named := [name for name in differ if name in first.metrics]:
                raise InputError(f"{run.label} and {first.label} define {', '.join(named)} differently")
        for key in ("name", "classes", "image_shape"):
            if run.data.get(key) != first.data.get(key):
                raise InputError(
                    f"{run.label} uses data with {key} {run.data.get(key)!r}, but {first.label} with "
                    f"{first.data.get(key)!r}: accuracies cannot be compared"
                )
        if "latency_ms" in first.metrics and _device(run) != _device(first):
            raise InputError(
                f"{run.label} measured latency on {_device(run)}, but {first.label} on {_device(first)}: "
                "compare runs with flops or params as the cost"
            )
    if len({(run.label, run.name) for run in runs}) < len(runs):
        raise InputError(f"compare: the same run twice: {', '.join(run.label for run in runs)}")
    notes = []
    if len({run.teacher.get("hash") for run in runs}) > 1:
        notes.append("The teachers differ: costs are relative to those of the most expensive one.")
    if len({run.data.get("hash") for run in runs}) > 1:
        notes.append("The runs use different images or splits: their validation images differ.")
    return notes


def _objectives(run: Run) -> str:
    return ", ".join(f"{o.direction} {o.metric}" for o in run.objectives)


def _device(run: Run) -> str:
    batch = (run.experiment.get("costs") or {}).get("batch_size")
    return f"{run.attrs.get('device')}" + (f" in batches of {batch}" if batch else "")


def _common_box(runs: Sequence[Run]) -> Box:
    known = [run.teacher for run in runs]
    most_expensive = {
        cost: max((t[cost] for t in known if isinstance(t.get(cost), int | float)), default=None)
        for cost in runs[0].costs
    }
    return box(runs[0].objectives, most_expensive, int(runs[0].data.get("classes", 0)), runs[0].known)


def _run_names(runs: Sequence[Run]) -> list[str]:
    """Return short unique names: that of the folder or study, with a number added if necessary."""
    names = [Path(run.label).name if run.path else run.name for run in runs]
    if len(set(names)) < len(names):
        names = [run.label for run in runs]
    return [n if names.count(n) == 1 else f"{n} #{i + 1}" for i, n in enumerate(names)]


def _groups(runs: Sequence[Run]) -> list[str]:
    """Return the group name of each run: the first run's name, and the keys in which groups differ."""
    # Version 0.1 had one method and did not name it.
    flat = [{"space.method": DEFAULT_METHOD, **_flat(run.experiment)} for run in runs]
    keys = sorted({key for values in flat for key in values})
    differ = [key for key in keys if len({str(values.get(key)) for values in flat}) > 1]
    marks = [tuple(str(values.get(key)) for key in differ) for values in flat]
    distinct = list(dict.fromkeys(marks))
    if len(distinct) == 1:
        return [runs[0].name] * len(runs)
    if len(differ) <= SHOWN_KEYS:
        labels = [", ".join(f"{k} {v}" for k, v in zip(differ, mark, strict=True)) for mark in distinct]
    else:
        labels = [runs[marks.index(mark)].name for mark in distinct]
        labels = [
            name if labels.count(name) == 1 else f"{name} ({chr(ord('A') + i)})"
            for i, name in enumerate(labels)
        ]
    return [labels[distinct.index(mark)] for mark in marks]


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return values by dotted key, without the keys in which repeats may differ."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        name = prefix + key
        if name in FREE:
            continue
        if isinstance(value, Mapping):
            found |= _flat(value, f"{name}.")
        else:
            found[name] = value
    return found


def _final(history: pd.DataFrame) -> float:
    return float(history["hypervolume"].iloc[-1]) if len(history) else 0.0


def _at(history: pd.DataFrame, epochs: float) -> float:
    """Return the hypervolume after `epochs` trained epochs."""
    before = history["hypervolume"][history["epochs"] <= epochs]
    return float(before.iloc[-1]) if len(before) else 0.0


def _run_row(run: Run, history: pd.DataFrame, common: Box, epochs: int, target: float) -> dict[str, Any]:
    table = tables.ran(run.trials)
    front = table[table["on_front"]]
    there = history["epochs"][history["hypervolume"] >= target]
    return {
        "seed": run.experiment.get("seed"),
        "place": run.label,
        "hypervolume": hypervolume(run.points(front), common),
        "front": len(front),
        "trials": len(table),
        "complete": int((table["state"] == "COMPLETE").sum()),
        "epochs": int(table["epochs"].fillna(0).sum()),
        "train_hours": float(table["seconds"].sum()) / 3600,
        "at_common": _at(history, epochs),
        "epochs_to_target": float(there.iloc[0]) if len(there) else math.nan,
    }


def _group_rows(runs: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for group, part in runs.groupby("group", sort=False):
        row: dict[str, Any] = {"group": group, "n": len(part)}
        for name in ("hypervolume", "at_common", "epochs", "train_hours", "epochs_to_target"):
            values = part[name].dropna().tolist()
            found = summarise(values) if values else None
            row[name] = found.mean if found else math.nan
            for part_name in ("std", "low", "high"):
                value = getattr(found, part_name) if found else None
                row[f"{name}_{part_name}"] = math.nan if value is None else value
        rows.append(row)
    return pd.DataFrame(rows)


def _differences(runs: pd.DataFrame) -> pd.DataFrame:
    """Compare the final hypervolume of each group with that of the first group."""
    columns = ["group", "against", "difference", "low", "high", "p"]
    by_group = {str(name): part["hypervolume"].to_numpy() for name, part in runs.groupby("group", sort=False)}
    (against, base), *others = by_group.items()
    rows = []
    for name, values in others:
        row: dict[str, Any] = {"group": name, "against": against, "difference": values.mean() - base.mean()}
        row |= {"low": math.nan, "high": math.nan, "p": math.nan}
        if min(len(values), len(base)) > 1 and (values.std() > 0 or base.std() > 0):
            test = stats.ttest_ind(values, base, equal_var=False)
            interval = test.confidence_interval(CONFIDENCE)
            row |= {"low": interval.low, "high": interval.high, "p": test.pvalue}
        rows.append(row)
    return pd.DataFrame(rows, columns=columns)


def _fronts(runs: Sequence[Run], labelled: Sequence[Mapping[str, str]]) -> pd.DataFrame:
    parts = []
    for run, label in zip(runs, labelled, strict=True):
        table = run.trials
        rows = table.loc[table["on_front"], ["number", *run.metrics]].sort_values(run.metrics[1])
        parts.append(rows.assign(**label)[["run", "group", "number", *run.metrics]])
    return pd.concat(parts, ignore_index=True)


def _curves(history: pd.DataFrame) -> pd.DataFrame:
    """Compute mean and interval over a group's runs; a run that has ended keeps its last value."""
    rows = []
    for group, part in history.groupby("group", sort=False):
        runs = [one for _, one in part.groupby("run", sort=False)]
        last = max(int(one["epochs"].iloc[-1]) for one in runs)
        for epochs in np.linspace(0, last, GRID + 1).tolist():
            found = summarise([_at(one, epochs) for one in runs])
            low, high = (math.nan if v is None else v for v in (found.low, found.high))
            rows.append((group, epochs, found.n, found.mean, low, high))
    return pd.DataFrame(rows, columns=["group", "epochs", "n", "mean", "low", "high"])


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Convert rows to JSON values; NaN becomes None."""
    return [
        {str(k): None if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()}
        for row in frame.to_dict("records")
    ]


def describe_reference(found: Comparison) -> str:
    """Describe the reference point of the hypervolume."""
    return ", ".join(f"{metric} {show(metric, value)}" for metric, value in found.reference.items())
