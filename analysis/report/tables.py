"""Tables of numbers for the report's figures and tables: pure functions from a run to a DataFrame."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis.pareto import Box, Floats, hypervolume_history
from analysis.report.importance import importances
from analysis.report.retrained import GAINS, RESULTS, STUDENT, TABLE, read_results, summary_rows
from analysis.runs.parameters import METHOD, REPLACED, student_of
from analysis.runs.run import Run

MAX_CURVES = 300


def ran(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of trials that ran, without proposals refused before training."""
    return table[table["refused"] == ""]


def points(run: Run, picks: Sequence[int] = ()) -> pd.DataFrame:
    """Return the teacher and every trial with metrics, for scatter plots.

    Returns:
        number (-1 for the teacher), role, picked, the metrics, val_accuracy_low and _high. Roles: teacher,
        front, dominated, "outside the limits" (on trained metrics), "stopped early" (with its last metrics),
        "retrained" and "baseline <kind>" (means over seeds with the full budget).
        The interval is that of `accuracy_interval` for trials, and the 95 %
        interval over seeds for retrained models. Running, failed and refused trials are left out.
    """
    metrics = list(run.known)
    table = ran(run.trials)
    table = table[table["state"].isin(["COMPLETE", "PRUNED"]) & table["val_accuracy"].notna()]
    roles = np.where(run.within_limits(table), "dominated", "outside the limits")
    roles = np.where(table["state"] == "PRUNED", "stopped early", roles)
    roles = np.where(table["on_front"], "front", roles)
    shown = table[["number", *metrics]].copy()
    shown.insert(1, "role", roles)
    shown.insert(2, "picked", shown["number"].isin(list(picks)))
    teacher = {name: run.teacher.get(name) for name in metrics}
    first = pd.DataFrame([{"number": -1, "role": "teacher", "picked": False, **teacher}])
    parts = [part.astype(dict.fromkeys(metrics, "float64")) for part in (first, shown) if len(part)]
    found = pd.concat(parts, ignore_index=True)
    images = int(run.data.get("val") or 0)
    found["val_accuracy_low"], found["val_accuracy_high"] = accuracy_interval(found["val_accuracy"], images)
    again = _retrained_points(run)
    return pd.concat([found, again.astype({"number": found["number"].dtype})]) if len(again) else found


def thin(numbers: list[int], limit: int) -> list[int]:
    """At most `limit` of the numbers, evenly spaced from the first to the last."""
    if len(numbers) <= limit:
        return numbers
    return [numbers[round(i)] for i in np.linspace(0, len(numbers) - 1, limit)]


def accuracy_interval(accuracy: pd.Series, images: int) -> tuple[Floats, Floats]:
    """Return the 95 % interval of accuracies (n,) measured on `images` images (Wilson 1927); NaN for none."""
    share = accuracy.to_numpy(dtype=np.float64)
    if images < 1:
        return np.full(len(share), np.nan), np.full(len(share), np.nan)
    z2 = 1.959964**2 / images
    centre = (share + z2 / 2) / (1 + z2)
    half = np.sqrt(z2 * share * (1 - share) + z2**2 / 4) / (1 + z2)
    return centre - half, centre + half


def _retrained_points(run: Run) -> pd.DataFrame:
    """Return the retrained models in the columns of `points`."""
    table = retrained(run)
    if table.empty:
        return table
    kinds = table["kind"].map(lambda kind: "retrained" if kind == STUDENT else f"baseline {kind}")
    rows = table.assign(role=kinds, picked=False)
    columns = ["number", "role", "picked", *run.known, "val_accuracy_low", "val_accuracy_high"]
    return rows.reindex(columns=columns)[rows["val_accuracy"].notna()]


def history(run: Run, within: Box | None = None) -> pd.DataFrame:
    """Return the hypervolume after each trial that ended, in order of their end.

    Trials beyond the limits on trained metrics do not count.

    Args:
        within: the box to measure in; None: that of the run.

    Returns:
        trials (ended so far), number, state, hours (since the first trial started), epochs and train_hours
        (of all ended so far, early-stopped and failed ones included), hypervolume (0..1), front (its size).
    """
    table = ran(run.trials)
    start = table["started"].min()
    table = table[table["ended"].notna()].sort_values(["ended", "number"], kind="stable")
    values = run.points(table)
    counts = (table["state"] == "COMPLETE").to_numpy() & run.within_limits(table)
    values[~counts] = np.nan
    volumes, sizes = hypervolume_history(values, within or run.box)
    return pd.DataFrame(
        {
            "trials": np.arange(1, len(table) + 1),
            "number": table["number"].to_numpy(),
            "state": table["state"].to_numpy(),
            "hours": (table["ended"] - start).dt.total_seconds().to_numpy() / 3600,
            "epochs": table["epochs"].fillna(0).astype("int64").cumsum().to_numpy(),
            "train_hours": table["seconds"].fillna(0).cumsum().to_numpy() / 3600,
            "hypervolume": volumes,
            "front": sizes,
        }
    )


def importance(run: Run) -> pd.DataFrame:
    """Return importances, one row per objective and parameter.

    Returns:
        metric, method (its label if only its trials were used, else ""), parameter, importance (0..1), note.
        Without importances: one row with parameter "" and the reason as its note.
    """
    rows: list[dict[str, Any]] = []
    for found in importances(run):
        row = {"metric": found.metric, "method": found.method, "note": found.note}
        values = found.values or {"": float("nan")}
        rows += [{**row, "parameter": name, "importance": value} for name, value in values.items()]
    return pd.DataFrame(rows, columns=["metric", "method", "parameter", "importance", "note"])


def front_numbers(run: Run) -> list[int]:
    """Return the numbers of the front's trials, best first objective first; none while the front is empty."""
    return [int(n) for n in run.front()["number"]] if run.trials["on_front"].any() else []


def block_map(run: Run, limit: int | None = None, numbers: Sequence[int] | None = None) -> pd.DataFrame:
    """Return the blocks that students replace: one row per student and block, in order of the students.

    Separate students replace none, and are left out.

    Args:
        limit: maximum number of students, evenly spaced among them.
        numbers: numbers of the students; None: those of the front, in its order.

    Returns:
        rank (0 for the best first objective), number, block, width (NaN for kept) and span. One module
        replaces all blocks of a student with the same span; span is -1 for kept blocks.
    """
    chosen = front_numbers(run) if numbers is None else list(numbers)
    chosen = [number for number in chosen if student_of(run.trial(number)) == REPLACED]
    rows = []
    for rank, number in enumerate(chosen if limit is None else thin(chosen, limit)):
        spans = run.trial(number).user_attrs.get("replaced") or []
        placed = {block: (span["width"], i) for i, span in enumerate(spans) for block in span["span"]}
        for block in run.blocks:
            width, span = placed.get(block["name"], (float("nan"), -1))
            rows.append((rank, number, block["name"], width, span))
    return pd.DataFrame(rows, columns=["rank", "number", "block", "width", "span"])


def curves(run: Run, limit: int = MAX_CURVES) -> pd.DataFrame:
    """Return `run.curves()` of the front and of at most `limit` others (evenly spaced), with their role."""
    table = run.trials
    front = table.loc[table["on_front"], "number"].tolist()
    trained = {t.number for t in run.rows if (t.user_attrs.get("curve") or {}).get("epoch")}
    others = thin(sorted(trained - set(front)), limit)
    found = run.curves({*front, *others})
    roles = {"PRUNED": "stopped early", "COMPLETE": "dominated", "FAIL": "failed"}
    found["role"] = found["state"].map(roles).fillna("running")
    found.loc[found["number"].isin(front), "role"] = "front"
    return found


def settings(run: Run) -> pd.DataFrame:
    """Return number, on_front, val_accuracy and all parameters except levels of the fully trained trials."""
    table = run.trials
    table = table[table["state"] == "COMPLETE"]
    names = [n for n in run.parameters if not n.startswith("level/") and table[n].nunique() > 1]
    return table[["number", "on_front", "val_accuracy", *names]].reset_index(drop=True)


def log_parameters(run: Run) -> set[str]:
    """Return the parameters that are searched on a logarithmic scale."""
    spread = (item for trial in run.rows for item in trial.distributions.items())
    return {name for name, distribution in spread if getattr(distribution, "log", False)}


def methods(run: Run) -> pd.DataFrame:
    """Return results by method, in the order of the experiment; no rows if only one method was searched.

    Returns:
        method (its label), trials (started), complete, front (number on it). Then, for each objective, over
        the fully trained trials: `<metric>_best`, `_mean` and `_std` (NaN for fewer than two trials). Then
        seconds_per_epoch (over all trained trials).
    """
    if METHOD not in run.parameters:
        return pd.DataFrame(columns=["method"])
    table = ran(run.trials)
    table = table[table["state"] != "WAITING"]
    rows = []
    for name, label in run.methods.items():
        part = table[table[METHOD] == name]
        done = part[part["state"] == "COMPLETE"]
        row: dict[str, Any] = {"method": label, "trials": len(part), "complete": len(done)}
        row["front"] = int(part["on_front"].sum())
        for o in run.objectives:
            values = done[o.metric]
            row[f"{o.metric}_best"] = values.max() if o.direction == "maximize" else values.min()
            row |= {f"{o.metric}_mean": values.mean(), f"{o.metric}_std": values.std()}
        epochs = int(part["epochs"].fillna(0).sum())
        row["seconds_per_epoch"] = float(part["seconds"].sum()) / epochs if epochs else float("nan")
        rows.append(row)
    return pd.DataFrame(rows)


def states(run: Run) -> pd.DataFrame:
    """Return state, trials, epochs, train_hours by state; refused proposals are a separate state."""
    table = run.trials
    state = table["state"].where(table["refused"] == "", "refused")
    grouped = table.assign(state=state).groupby("state")
    out = grouped.agg(trials=("number", "size"), epochs=("epochs", "sum"), train_hours=("seconds", "sum"))
    order = ["COMPLETE", "PRUNED", "FAIL", "RUNNING", "WAITING", "refused"]
    out = out.reindex([name for name in order if name in out.index]).reset_index()
    return out.assign(train_hours=out["train_hours"] / 3600)


def losses(run: Run) -> pd.DataFrame:
    """Return the training lost to failures: what, trials, train_hours, share (of all training hours).

    The rows are always in the same order. `failed`: all training of failed trials. `epochs trained again`:
    epochs lost with a damaged checkpoint. `broken off`: epochs during which a trial's process ended, before
    it continued from a checkpoint. The last two count with the trial's mean seconds per epoch. A broken-off
    epoch counts as a whole epoch, so its time is an upper bound.
    """
    table = ran(run.trials)
    total = float(table["seconds"].sum()) / 3600
    failed = table[table["state"] == "FAIL"]
    epoch = table["seconds"] / table["epochs"].astype("float64").where(table["epochs"] > 0)
    again = table["number"].map(lambda number: run.trial(number).user_attrs.get("epochs_lost", 0))
    broken = table["retries"].fillna(0).astype("int64").where(table["state"] != "FAIL", 0)
    rows = [
        ("failed", len(failed), float(failed["seconds"].sum()) / 3600),
        ("epochs trained again", int((again > 0).sum()), float((again * epoch).sum()) / 3600),
        ("broken off", int((broken > 0).sum()), float((broken * epoch).sum()) / 3600),
    ]
    out = pd.DataFrame(rows, columns=["what", "trials", "train_hours"])
    return out.assign(share=out["train_hours"] / total if total else 0.0)


def front(run: Run) -> pd.DataFrame:
    """Return the front's rows of `run.trials`, with additional columns.

    They are val_accuracy_low and _high (see `accuracy_interval`), `<cost>_share` (of the teacher's cost), and
    latency_error (measured / predicted - 1). For retrained students also test_accuracy and val_accuracy over
    seeds as `retrained_<name>`, with `_std`, and `retrained_n`.
    """
    table = run.trials
    rows = run.front() if table["on_front"].any() else table.iloc[:0]
    low, high = accuracy_interval(rows["val_accuracy"], int(run.data.get("val") or 0))
    rows = rows.assign(val_accuracy_low=low, val_accuracy_high=high)
    for name in run.costs:
        rows[f"{name}_share"] = rows[name] / (run.teacher.get(name) or float("nan"))
    rows["latency_error"] = rows["measured_latency_ms"] / rows["latency_ms"] - 1
    again = retrained(run)
    again = again[again["kind"] == STUDENT]
    for name in ("test_accuracy", "test_accuracy_std", "val_accuracy", "val_accuracy_std", "n"):
        values = again.set_index("number")[name] if len(again) else pd.Series(dtype="float64")
        rows[f"retrained_{name}"] = rows["number"].map(values).astype("float64")
    return rows


def teacher_tests(run: Run) -> dict[str, float]:
    """Return the teacher's scores on test data, which `retrain` measured; empty if nothing was retrained."""
    path = run.path / "retrained" / TABLE if run.path else None
    if path is None or not path.is_file():
        return {}
    rows = pd.read_csv(path)
    rows = rows[rows["kind"] == "teacher"]
    return {name: float(rows[name].iloc[0]) for name in GAINS if len(rows) and name in rows}


def retrained(run: Run) -> pd.DataFrame:
    """Return retrained students, mean and deviation over seeds, from the run's `retrained/results.json`.

    Returns:
        The columns of `analysis.report.retrained.summary_rows`; no rows if nothing was retrained.

    Raises:
        InputError: the file is not a list of results.
    """
    path = run.path / "retrained" / RESULTS if run.path else None
    if path is None or not path.is_file():
        return pd.DataFrame(columns=["number", "kind"])
    table = pd.DataFrame(summary_rows(read_results(path), run.costs))
    return table.astype(dict.fromkeys(set(table.columns) - {"number", "kind", "n", "pairs"}, "float64"))
