"""The state of a run as plain values, for `ama status --json`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pandas as pd

from analysis.pareto import hypervolume
from analysis.runs.failures import failures
from analysis.runs.run import STATES, Run


def status(run: str | Path | optuna.Study | Run, study: str | None = None) -> dict[str, Any]:
    """Return the state of a run; works while it runs and before any trial has finished.

    Returns:
        JSON-compatible values: name, run (its place, without password), trials (number by state; proposals
        refused before training as "refused"), left_out (why rows that the search did not write, or that were
        damaged, are left out, by number), failures (reason, number of trials and their numbers; the most
        frequent reason first), front (number, values by metric, number of blocks replaced;
        best first objective first), hypervolume (0..1), objectives, teacher, epochs and seconds (trained, all
        trials), budget, started and ended (ISO time; ended is None while the run continues).
    """
    opened = Run.open(run, study)
    table = opened.trials
    ran = table[table["refused"] == ""]
    counts = ran["state"].value_counts()
    front = opened.front() if table["on_front"].any() else table.iloc[:0]
    return {
        "name": opened.name,
        "run": opened.label,
        "trials": {
            **{state: int(counts.get(state, 0)) for state in STATES},
            "refused": len(table) - len(ran),
        },
        "left_out": {str(number): why for number, why in opened.left_out.items()},
        "failures": [
            {"reason": row["reason"], "trials": int(row["trials"]), "numbers": row["numbers"]}
            for _, row in failures(opened).iterrows()
        ],
        "front": [_front_row(opened, row) for _, row in front.iterrows()],
        "hypervolume": hypervolume(opened.points(front), opened.box),
        "objectives": [{"metric": o.metric, "direction": o.direction} for o in opened.objectives],
        "teacher": opened.teacher,
        "epochs": int(ran["epochs"].fillna(0).sum()),
        "seconds": float(ran["seconds"].sum()),
        "budget": opened.attrs.get("budget"),
        "started": opened.attrs.get("started"),
        "ended": opened.attrs.get("ended"),
    }


def _front_row(run: Run, row: pd.Series) -> dict[str, Any]:
    values = {name: float(row[name]) for name in run.known if pd.notna(row[name])}
    replaced = int(row["replaced"]) if pd.notna(row["replaced"]) else None
    return {"number": int(row["number"]), "values": values, "replaced": replaced}
