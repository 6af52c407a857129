"""Parts `epochs` and `accuracy` of `benchmarks.engine`: times and accuracies of contenders in turns."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from typing import Any

from benchmarks.engine_jobs import Job
from benchmarks.engine_process import Contender, Epoch

STUDENTS = ("small", "medium", "large")
Times = dict[str, dict[str, list[Epoch]]]  # by contender and student: one epoch per round
Accuracies = dict[str, dict[str, list[float]]]  # by contender and student: one per seed


def compete(job: Job, names: Sequence[str], rounds: int) -> tuple[Times, dict[str, Any]]:
    """Run a warm-up round, then `rounds` rounds in which every contender trains every student for an epoch.

    The order of the contenders rotates from round to round, so that none always follows the same one.

    Returns:
        The epochs, and the precision and layout that ours used.
    """
    times: Times = {name: {student: [] for student in STUDENTS} for name in names}
    with ExitStack() as stack:
        contenders = [stack.enter_context(Contender(name, job)) for name in names]
        for index in range(rounds + 1):
            turn = index % len(contenders)
            for student in STUDENTS:
                for contender in contenders[turn:] + contenders[:turn]:
                    epoch = contender.epoch(student)
                    if index:
                        times[contender.name][student].append(epoch)
            print(f"round {index} of {rounds}{' (warm-up)' if not index else ''}", file=sys.stderr)
        return times, contenders[0].runtime


def ratios(times: Times, over: str, cpu: bool = False) -> dict[str, list[float]]:
    """Return our time divided by another contender's, per student, round by round."""
    field = "cpu_seconds" if cpu else "seconds"
    return {
        student: [
            getattr(mine, field) / getattr(theirs, field)
            for mine, theirs in zip(epochs, times[over][student], strict=True)
        ]
        for student, epochs in times["ours"].items()
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return median and quartiles; with fewer than four values, median and extremes."""
    low, _, high = statistics.quantiles(values, n=4) if len(values) > 3 else (min(values), 0.0, max(values))
    return {"median": statistics.median(values), "low": low, "high": high, "n": len(values)}


def summary(times: Times) -> tuple[dict[str, Any], dict[str, float]]:
    """Return spreads by contender and student, and the figures: medians over all students and rounds."""
    compared: dict[str, Any] = {}
    figures = {}
    for over in (name for name in times if name != "ours"):
        compared[over] = {}
        for kind, cpu in (("", False), ("_cpu_time", True)):
            by_student = ratios(times, over, cpu)
            everything = [value for values in by_student.values() for value in values]
            spreads = {student: spread(values) for student, values in by_student.items()}
            compared[over][kind.lstrip("_") or "time"] = {**spreads, "all": spread(everything)}
            figures[f"epoch_vs_{over}{kind}"] = round(statistics.median(everything), 3)
    return compared, figures


def accuracies(job: Job, names: Sequence[str], seeds: int) -> Accuracies:
    """Train every student for the job's epochs; return the validation accuracies."""
    found: Accuracies = {name: {student: [] for student in STUDENTS} for name in names}
    for seed in range(seeds):
        for name in names:
            with Contender(name, replace(job, seed=seed)) as contender:
                for student in STUDENTS:
                    last = [contender.epoch(student) for _ in range(job.epochs)][-1]
                    found[name][student].append(last.accuracy)
            print(f"{name}, seed {seed}: {found[name]}", file=sys.stderr)
    return found


def gains(found: Accuracies, over: str) -> list[float]:
    """Return our accuracy minus another contender's, for every student and seed."""
    return [
        mine - theirs
        for student in STUDENTS
        for mine, theirs in zip(found["ours"][student], found[over][student], strict=True)
    ]


def accuracy_figures(found: Accuracies) -> dict[str, float]:
    """Return means over students and seeds, and the mean of our gains with its standard error."""
    figures = {}
    for name, by_student in found.items():
        figures[f"accuracy_{name}"] = round(
            statistics.mean(v for each in by_student.values() for v in each), 4
        )
    for over in (name for name in found if name != "ours"):
        pairs = gains(found, over)
        figures[f"accuracy_gain_vs_{over}"] = round(statistics.mean(pairs), 4)
        figures[f"accuracy_gain_vs_{over}_se"] = round(statistics.stdev(pairs) / len(pairs) ** 0.5, 4)
    return figures


def epochs_table(times: Mapping[str, Any], compared: Mapping[str, Any]) -> str:
    """Format the stored result: median seconds of an epoch, and ours as a multiple of the others'."""
    lines = [f"| contender | {' | '.join(STUDENTS)} | ours as a multiple (quartiles) | of CPU time |"]
    lines.append("|---|" + "---:|" * (len(STUDENTS) + 2))
    for name, by_student in times.items():
        seconds = [statistics.median(e["seconds"] for e in by_student[student]) for student in STUDENTS]
        found = compared.get(name, {})
        cells = [f"{s:.2f} s" for s in seconds]
        cells += [_ratio(found[kind]["all"]) if found else "" for kind in ("time", "cpu_time")]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _ratio(found: Mapping[str, float]) -> str:
    return f"{found['median']:.3f} ({found['low']:.3f} to {found['high']:.3f})"


def accuracy_table(found: Mapping[str, Any]) -> str:
    """Format mean and standard deviation of the validation accuracy over the seeds as Markdown."""
    lines = [f"| contender | {' | '.join(STUDENTS)} |", "|---|" + "---:|" * len(STUDENTS)]
    for name, by_student in found.items():
        cells = []
        for student in STUDENTS:
            values = [100 * value for value in by_student[student]]
            deviation = statistics.stdev(values) if len(values) > 1 else 0.0
            cells.append(f"{statistics.mean(values):.2f} ± {deviation:.2f} %")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def plain(times: Times) -> dict[str, Any]:
    """Convert the epochs to JSON values."""
    return {name: {s: [asdict(e) for e in each] for s, each in by.items()} for name, by in times.items()}
