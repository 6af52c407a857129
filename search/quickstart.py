"""`ama quickstart`: the whole pipeline on the embedded digits, by the same functions as the commands."""

from __future__ import annotations

import time
from pathlib import Path

from analysis.report import write_report

from analysis.metrics import show
from analysis.pick import pick, write_pick
from analysis.trials import Run
from search.cli import run_search
from search.cluster import connected
from search.console import console, duration, stages
from search.experiment import load_experiment
from search.pipeline import prepare
from search.retraining import retrain_picks

# The student to retrain: the most accurate that costs at most this share of the teacher.
LIMIT = "flops=0.5x"
SEEDS = 3


def run(out: str) -> None:
    """Teacher, costs, search, report, pick, retrained student: everything lands in `out`.

    Raises:
        InputError: `out` holds a run already.
    """
    began = time.monotonic()
    experiment = load_experiment("digits", [], out)

    def step(text: str) -> None:
        console.print(f"[dim]{duration(time.monotonic() - began):>12}[/]  {text}", soft_wrap=True)

    with connected(None):
        step("[bold]teacher and cost table[/]  ama teacher digits; ama profile digits")
        with stages() as progress:
            setup = prepare(experiment, progress=progress)
        record = setup.teacher.record
        step(f"teacher {record.arch}: test accuracy {record.test_accuracy:.4f}")
        step(f"[bold]search[/]  ama search digits: {experiment.budget.trials} trials")
        run_search(experiment)
        step("[bold]pick[/]  ama pick RUN --max " + LIMIT)
        opened = Run.open(out)
        picks = pick(opened, max=[LIMIT])
        write_pick(Path(out) / "pick.yaml", picks, opened)
        figures = ", ".join(f"{metric} {show(metric, value)}" for metric, value in picks[0].values.items())
        step(f"trial {picks[0].number}: {figures}")
        step(f"[bold]retrain[/]  ama retrain RUN/pick.yaml --seeds {SEEDS} --baselines")
        with stages() as progress:
            retrained = retrain_picks(
                Path(out) / "pick.yaml", seeds=SEEDS, with_baselines=True, progress=progress
            )
        console.print(retrained.table())
    step("[bold]report[/]  ama report RUN")
    report = write_report(Run.open(out), Path(out) / "report", picks=picks)
    step(f"open {report.html}")
