"""What `ama retrain` leaves: `results.json`, one entry a model; `results.csv` and `.md`, one row a kind."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from analysis.metrics import show
from trainables.cost import Costs
from trainables.retrain import WEIGHTS, RetrainResult, results_table
from trainables.teacher_record import TeacherRecord

HEAD = ("trial", "model", "n", "test accuracy", "test loss", "FLOPs", "params", "latency", "epochs")


@dataclass(frozen=True)
class Finished:
    """A finished model: the trial it stands for, its folder below that of all, its price and its scores."""

    number: int
    folder: str
    costs: Costs
    result: RetrainResult


@dataclass(frozen=True)
class Retrained:
    """The table of all finished models: the teacher, then a row for each kind of every trial."""

    folder: Path
    rows: list[dict[str, Any]]

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {"folder": str(self.folder), "table": self.rows}

    def table(self) -> Table:
        """For people."""
        drawn = Table(title="on test data, mean ± standard deviation", title_justify="left")
        for column in HEAD:
            drawn.add_column(column, justify="left" if column == "model" else "right")
        for row in self.rows:
            drawn.add_row(*_cells(row))
        return drawn


def write_results(
    folder: Path, models: Sequence[Finished], teacher: TeacherRecord, costs: Costs
) -> Retrained:
    """Write the three files into `folder`.

    Args:
        folder: of all models.
        models: at least one, those of one trial and kind next to each other.
        teacher: its record, the first row of the table.
        costs: the teacher's.
    """
    entries = [
        {
            "number": model.number,
            **asdict(model.result),
            **_latency(model.costs),
            "path": f"{model.folder}/{WEIGHTS}",
        }
        for model in models
    ]
    rows: list[dict[str, Any]] = []
    for number in dict.fromkeys(model.number for model in models):
        group = [model for model in models if model.number == number]
        head, *others = results_table([m.result for m in group], teacher, costs.params, costs.flops)
        if not rows:
            rows.append({"number": None, **head, **_latency(costs)})
        rows += [{"number": number, **row, **_latency(group[0].costs)} for row in others]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(entries, indent=2) + "\n")
    with (folder / "results.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    lines = [HEAD, ["---"] * len(HEAD), *map(_cells, rows)]
    (folder / "results.md").write_text("".join(f"| {' | '.join(line)} |\n" for line in lines))
    return Retrained(folder, rows)


def _latency(costs: Costs) -> dict[str, float]:
    """From the cost table; params and FLOPs were counted on the model itself."""
    return {"latency_ms": costs.latency_ms}


def _cells(row: Mapping[str, Any]) -> list[str]:
    def mean(name: str, scale: float, digits: int, unit: str = "") -> str:
        if row[name] is None:
            return "–"
        spread = row[f"{name}_std"]
        tail = "" if spread is None else f" ± {spread * scale:.{digits}f}"
        return f"{row[name] * scale:.{digits}f}{tail}{unit}"

    return [
        "" if row["number"] is None else str(row["number"]),
        row["kind"],
        str(row["n"]),
        mean("test_accuracy", 100, 2, " %"),
        mean("test_loss", 1, 4),
        *(show(metric, row[metric]) for metric in ("flops", "params", "latency_ms")),
        f"{row['epochs']:g}",
    ]
