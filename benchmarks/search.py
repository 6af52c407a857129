"""Compare the compute of search policies for the same front: ours and others, replayed on a recorded table.

    python -m benchmarks.search
    python -m benchmarks.search --seeds 20 --ablations

Reports the hypervolume (in the box of `analysis.pareto`) of complete trials, as a share of the whole table's
best, against compute and against virtual wall time on 8 workers. Compute is the FLOPs of training in units of
full cold trials of mean cost, with the module library for contenders that use it. Writes a table, a plot and
all figures to `benchmarks/results/`.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import RESULTS, TABLES
from benchmarks.contenders import Make, Policy, ablations, contenders
from benchmarks.curves import Curve, Floats, Scale, interval, ratio_interval
from benchmarks.search_report import markdown, plot
from benchmarks.simulator import simulate
from benchmarks.surrogate import load
from benchmarks.table import Table

SHARES = (0.95, 0.99)
GRID = 200  # budgets at which curves are compared
WORKERS = 8
AXES = ("compute", "clock")


@dataclass(frozen=True)
class Job:
    """A search to replay."""

    table: Path
    name: str
    seed: int
    workers: int
    trials: float  # budget in full cold trials of mean cost
    policy: Policy
    asha: tuple[int, float]


@dataclass(frozen=True)
class Result:
    """The result of a job; compute in full cold trials, clock in virtual seconds."""

    curve: Curve
    trials: int
    epochs: int
    stopped: int
    complete: int
    spent: float
    exhausted: bool


@lru_cache
def _loaded(path: Path) -> tuple[Table, Scale]:
    table = load(path)
    return table, Scale.of(table)


def run_job(job: Job) -> Result:
    """Replay one search."""
    table, scale = _loaded(job.table)
    recorded = table.seeds[job.seed % len(table.seeds)]
    make: Make = {**contenders(job.policy, job.asha), **ablations(job.policy)}[job.name]
    contender = make(table, job.seed, recorded)
    budget = job.trials * scale.trial_flops
    replay = simulate(table, contender, seed=recorded, workers=job.workers, budget=budget)
    curve = Curve.of(replay, scale, recorded)
    in_trials = Curve(curve.compute / scale.trial_flops, curve.clock, curve.volume, curve.front)
    return Result(
        in_trials,
        replay.trials,
        replay.epochs,
        replay.stopped,
        len(replay.completions),
        replay.compute / scale.trial_flops,
        replay.exhausted,
    )


def summarise(results: dict[str, list[Result]], budgets: dict[str, Floats], limit: float) -> dict[str, Any]:
    """Compute the figures of each contender over its seeds."""
    found: dict[str, Any] = {}
    for name, runs in results.items():
        row: dict[str, Any] = {
            "trials": float(np.mean([r.trials for r in runs])),
            "epochs": float(np.mean([r.epochs for r in runs])),
            "stopped": float(np.mean([r.stopped for r in runs])),
            "complete": float(np.mean([r.complete for r in runs])),
            "spent": float(np.mean([r.spent for r in runs])),
            "final": interval([r.curve.volume[-1] if len(r.curve.volume) else 0.0 for r in runs]),
        }
        for axis in AXES:
            most = limit if axis == "compute" else float(budgets[axis][-1])
            for share in SHARES:
                until = np.array([r.curve.spent_until(share, axis) for r in runs])
                # A search that never reached it counts with the whole budget, which favours it.
                row[f"{axis}_to_{share:.2f}"] = {
                    "values": np.minimum(until, most).tolist(),
                    "reached": int(np.isfinite(until).sum()),
                    "mean": interval(np.minimum(until, most)),
                }
            curves = np.array([r.curve.at(budgets[axis], axis) for r in runs])  # (seeds, GRID)
            means, low, high = (np.array(v) for v in zip(*(interval(c) for c in curves.T), strict=True))
            row[f"{axis}_curve"] = {"mean": means.tolist(), "low": low.tolist(), "high": high.tolist()}
        found[name] = row
    return found


def ahead_from(ours: Floats, others: Sequence[Floats]) -> float:
    """Return the share of the budget from which on our mean is the highest; 1 if it is not at the end."""
    behind = np.flatnonzero([any(theirs[i] > ours[i] + 1e-9 for theirs in others) for i in range(len(ours))])
    return float((behind[-1] + 1) / len(ours)) if len(behind) else 0.0


def figures(found: dict[str, Any], workers: int) -> dict[str, float]:
    """Return the figures that the command prints at the end."""
    ours = found["ours"]
    rivals = [name for name in found if not name.startswith("ours") and name != "stock_library"]
    lines: dict[str, float] = {}
    for axis in AXES:
        word = "compute" if axis == "compute" else f"wall{workers}"
        for share in SHARES:
            key = f"{axis}_to_{share:.2f}"
            for name in rivals:
                mean, low, high = ratio_interval(ours[key]["values"], found[name][key]["values"])
                label = f"{word}_to_{100 * share:.0f}hv_vs_{name}"
                lines[label] = round(mean, 3)
                if name == "stock":
                    lines[f"{label}_ci_low"], lines[f"{label}_ci_high"] = round(low, 3), round(high, 3)
        curves = {name: np.array(found[name][f"{axis}_curve"]["mean"]) for name in ("ours", *rivals)}
        lines[f"{word}_ahead_of_all_from"] = ahead_from(curves["ours"], [curves[name] for name in rivals])
    lines["final_hv_ours"] = round(ours["final"][0], 4)
    lines["final_hv_stock"] = round(found["stock"]["final"][0], 4)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--table", type=Path, default=TABLES / "digits.csv.gz")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--workers", type=int, default=WORKERS)
    parser.add_argument("--trials", type=float, default=120.0, help="budget in full cold trials of mean cost")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--ablations", action="store_true", help="ours without single parts, too")
    parser.add_argument("--only", nargs="*", help="run the contenders of these names alone")
    parser.add_argument("--first", type=int, default=Policy.first)
    parser.add_argument("--grace", type=int, default=Policy.grace)
    parser.add_argument("--eta", type=float, default=Policy.eta)
    parser.add_argument("--startup", type=int, default=Policy.startup)
    parser.add_argument("--asha-grace", type=int, default=1, help="grace epochs of others that stop early")
    parser.add_argument("--asha-eta", type=float, default=3.0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    policy = Policy(first=args.first, grace=args.grace, eta=args.eta, startup=args.startup)
    asha = (args.asha_grace, args.asha_eta)
    names = list(contenders(policy, asha)) + (list(ablations(policy)) if args.ablations else [])
    names = [name for name in names if not args.only or name in args.only]
    jobs = [
        Job(args.table, name, seed, args.workers, args.trials, policy, asha)
        for name in names
        for seed in range(args.seeds)
    ]
    with ProcessPoolExecutor(args.jobs) as pool:
        done = list(pool.map(run_job, jobs))
    results: dict[str, list[Result]] = {name: [] for name in names}
    for job, result in zip(jobs, done, strict=True):
        results[job.name].append(result)
    _, scale = _loaded(args.table)
    # The wall time of the budget if no worker ever waits.
    hours = args.trials * scale.trial_seconds / args.workers
    budgets = {
        "compute": np.linspace(0, args.trials, GRID + 1)[1:],
        "clock": np.linspace(0, hours, GRID + 1)[1:],
    }
    found = summarise(results, budgets, args.trials)
    lines = figures(found, args.workers) if {"ours", "stock"} <= set(names) else {}
    conditions = {
        "table": args.table.name,
        "seeds": args.seeds,
        "recorded_seeds": len(scale.best),
        "workers": args.workers,
        "budget_trials": args.trials,
        "budget_seconds": hours,
        "policy": asdict(policy),
        "asha": {"grace": asha[0], "eta": asha[1]},
        "command": shlex.join(["python", "-m", "benchmarks.search", *sys.argv[1:]]),
    }
    stem = f"search-{args.table.name.partition('.')[0]}" + f"-{args.workers}w" * (args.workers != WORKERS)
    args.out.mkdir(parents=True, exist_ok=True)
    text = markdown(found, conditions)
    (args.out / f"{stem}.md").write_text(text)
    record = {**conditions, "figures": lines, "contenders": found}
    (args.out / f"{stem}.json").write_text(json.dumps(_rounded(record), indent=None) + "\n")
    plot(found, budgets, conditions, args.out / f"{stem}.png")
    print(text)
    for name, value in lines.items():
        print(name, value)


def _rounded(value: Any) -> Any:
    """Round to five digits."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list | tuple) else value


if __name__ == "__main__":
    main()
