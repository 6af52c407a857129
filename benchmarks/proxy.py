"""Measure how well proxies known before training rank students by their final accuracy.

    python -m benchmarks.proxy
    python -m benchmarks.proxy --table benchmarks/tables/cifar.csv.gz

Reports Spearman's rank correlation on a recorded table, over all students and within quartiles of their cost.
The proxies are the sum of the modules' solo losses (known once per library), the accuracy of the student
built from the library, and, for comparison, the student's FLOPs and the accuracy after the first epoch. Final
accuracy is a student's mean over its loss settings. The result is the mean over recorded seeds.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr  # type: ignore[import-untyped]

from benchmarks import RESULTS, TABLES
from benchmarks.plans import STARTS
from benchmarks.table import Run, Table
from trainables.student.spans import spans_of

QUARTILES = 4
PROXIES = ("solo_loss", "assembled", "flops", "first_epoch")


def students(table: Table, seed: int, start: str) -> list[dict[str, float]]:
    """Return each student's proxies (higher is better), final accuracy and cost, as means over its runs."""
    runs: dict[str, list[Run]] = defaultdict(list)
    for run in table.runs.values():
        if run.seed == seed:
            runs[_student(table, run)].append(run)
    found = []
    for group in runs.values():
        warm = [run for run in group if run.start == "library"]
        chosen = [run for run in group if run.start == start]
        if not warm or not chosen:
            continue  # the teacher itself
        spec = table.space.to_config(group[0].params, seed).student
        solo = table.libraries[seed].solo_loss
        found.append(
            {
                "solo_loss": -sum(solo[span.key] for span in spans_of(table.costs.structure, spec)),
                "assembled": float(np.mean([run.start_accuracy for run in warm])),
                "flops": float(group[0].flops),
                "first_epoch": float(np.mean([run.val_accuracy[0] for run in chosen])),
                "final": float(np.mean([run.val_accuracy[-1] for run in chosen])),
            }
        )
    return found


def _student(table: Table, run: Run) -> str:
    return str(table.space.to_config(run.params, run.seed).student.digest())


def correlations(rows: list[dict[str, float]]) -> dict[str, Any]:
    """Correlate every proxy with the final accuracy: over all students, and by quartile of cost."""
    order = sorted(rows, key=lambda row: row["flops"])
    groups = [[order[i] for i in part] for part in np.array_split(np.arange(len(order)), QUARTILES)]
    return {
        proxy: {
            "all": _spearman(rows, proxy),
            "quartiles": [_spearman(group, proxy) for group in groups],
            "n": len(rows),
            "n_quartiles": [len(group) for group in groups],
        }
        for proxy in PROXIES
    }


def _spearman(rows: list[dict[str, float]], proxy: str) -> float:
    values, final = ([row[name] for row in rows] for name in (proxy, "final"))
    return float(spearmanr(values, final).statistic) if len(set(values)) > 1 < len(set(final)) else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--table", type=Path, default=TABLES / "digits.csv.gz")
    args = parser.parse_args()
    table = Table.load(args.table)
    record: dict[str, Any] = {"table": args.table.name, "seeds": list(table.seeds)}
    figures: dict[str, float] = {}
    for start in STARTS:
        by_seed = [correlations(students(table, seed, start)) for seed in table.seeds]
        record[start] = by_seed
        n, parts = by_seed[0]["flops"]["n"], by_seed[0]["flops"]["n_quartiles"]
        print(f"final accuracy from start `{start}`: n = {n} students ({parts}), {len(by_seed)} seeds")
        for proxy in PROXIES:
            whole = np.array([found[proxy]["all"] for found in by_seed])
            quartiles = np.array([found[proxy]["quartiles"] for found in by_seed]).mean(axis=0)
            spread = f" ± {whole.std(ddof=1):.3f} (sd over seeds)" if len(whole) > 1 else ""
            inner = ", ".join(f"{value:+.2f}" for value in quartiles)
            print(f"  {proxy:12} {whole.mean():+.3f}{spread}; within quartiles of cost {inner}")
            figures[f"spearman_{proxy}_{start}"] = round(float(whole.mean()), 3)
            figures[f"spearman_{proxy}_{start}_within_quartiles"] = round(float(quartiles.mean()), 3)
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"proxy-{args.table.name.partition('.')[0]}.json"
    path.write_text(json.dumps({"figures": figures, **record}, indent=1) + "\n")
    for name, value in figures.items():
        print(name, value)


if __name__ == "__main__":
    main()
