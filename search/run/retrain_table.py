"""Results of `ama retrain`: `results.json` with one entry per model; `.csv` and `.md`, one row per kind."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from analysis.metrics import COST_METRICS
from analysis.report.retrained import HEAD, NOTE, RESULTS, SCORES, cells, summary_rows, teacher_row
from trainables.costs.table import Costs
from trainables.files import write_text
from trainables.finished.model_files import WEIGHTS
from trainables.finished.retrain import RetrainResult
from trainables.teacher.record import TeacherRecord

NARROW = ("95 % interval", "params", "epochs")  # columns left out on a terminal


@dataclass(frozen=True)
class Finished:
    """A finished model: trial, folder (relative to the folder of all models), costs and scores."""

    number: int
    folder: str
    costs: Costs
    result: RetrainResult


@dataclass(frozen=True)
class Retrained:
    """The table of all finished models: the teacher, then one row per trial and kind.

    Example:
        done = retrain_picks("runs/digits", seeds=1, epochs=1)
        for row in done.rows:
            print(row)
    """

    folder: Path
    rows: list[dict[str, Any]]
    place: str = ""  # the original place if `folder` is a working copy

    def as_dict(self) -> dict[str, Any]:
        """Return the results for `--json`."""
        return {"folder": self.place or str(self.folder), "table": self.rows}

    def table(self) -> Table:
        """Draw a table with the columns that fit on a terminal; `results.md` has all."""
        shown = [i for i, name in enumerate(HEAD) if name not in NARROW]
        drawn = Table(title="on test data, mean ± standard deviation", title_justify="left")
        for i in shown:
            drawn.add_column(HEAD[i], justify="left" if HEAD[i] == "model" else "right")
        for row in self.rows:
            texts = cells(row)
            drawn.add_row(*(texts[i] for i in shown))
        return drawn


def write_results(
    folder: Path, models: Sequence[Finished], teacher: TeacherRecord, costs: Costs
) -> Retrained:
    """Write the three files into `folder`.

    Args:
        folder: folder of all models.
        models: at least one; models of the same trial and kind must be adjacent.
        teacher: the teacher's record, for the first row of the table.
        costs: the teacher's costs.
    """
    entries = [
        {
            "number": model.number,
            **asdict(model.result),
            "latency_ms": model.costs.latency_ms,  # params and FLOPs are those of the model itself
            **model.costs.others,
            "path": f"{model.folder}/{WEIGHTS}",
        }
        for model in models
    ]
    scores = {name: getattr(teacher, name) for name in (*SCORES, "epochs", "seconds")}
    names = (*COST_METRICS, *costs.others)
    rows = [teacher_row({**scores, **costs.as_dict()}, names), *summary_rows(entries, names)]
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / RESULTS, json.dumps(entries, indent=2) + "\n")
    with (folder / "results.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[1])
        writer.writeheader()
        writer.writerows(rows)
    lines = [HEAD, ["---"] * len(HEAD), *map(cells, rows)]
    table = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    write_text(folder / "results.md", f"{table}\n{NOTE}\n")
    return Retrained(folder, rows)
