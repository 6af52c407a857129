"""`ama quickstart`: run the whole pipeline on the embedded digits, with the functions of the commands."""

from __future__ import annotations

import time
from itertools import chain, count
from pathlib import Path

from analysis.metrics import duration
from analysis.picks.pick import pick
from analysis.picks.pick_file import write_pick
from analysis.report.write import write_report
from analysis.runs.run import Run
from search.cli.console import answers, console, stages
from search.cli.live_search import run_search
from search.cli.run_commands import say_picks
from search.cluster.connection import connected
from search.experiment.experiment import Experiment
from search.experiment.load import load_experiment
from search.run.retrain import retrain_picks
from search.run_dir.files import EXPERIMENT_FILE
from search.stages.prepare import prepare
from trainables.errors import InputError

PRESET = "digits"
# Retrain the most accurate student that costs at most this share of the teacher.
LIMIT = "flops=0.5x"
SEEDS = 3
PLACE = "runs/quickstart"


def free_place(base: str = PLACE) -> str:
    """Return the first of `base`, `base-2`, `base-3`, … that holds no run."""
    names = chain([base], (f"{base}-{number}" for number in count(2)))
    return next(name for name in names if not (Path(name) / EXPERIMENT_FILE).exists())


def run(out: str | None = None) -> None:
    """Run the quickstart: teacher, costs, search, report, pick and retrained student, all in `out`.

    Args:
        out: a folder; None: the first free one.

    Raises:
        InputError: `out` already holds a run, or is not a folder on this machine.
    """
    out = free_place() if out is None else out
    if "://" in out:
        raise InputError(f"--out: the quickstart runs on this machine: expected a folder, got {out}")
    if (Path(out) / EXPERIMENT_FILE).exists():
        raise InputError(f"--out: {out} already holds a run; look at {out}/report, or choose another place")
    run_experiment(load_experiment(PRESET, [], out), PRESET)


def run_experiment(experiment: Experiment, name: str, seeds: int = SEEDS) -> None:
    """Run every stage in turn; before each, print the command that runs this stage alone.

    Args:
        experiment: the experiment; its run directory must not hold a run yet.
        name: name of the experiment in the printed commands.
        seeds: number of seeds for the retrained student and its baselines.
    """
    began, out = time.monotonic(), experiment.run.dir

    def step(command: str) -> None:
        console.print(
            f"[dim]{duration(time.monotonic() - began):>10}[/]  [bold]$ {command}[/]", soft_wrap=True
        )

    with connected(None):
        step(f"ama teacher {name} --out {out}; ama profile {name} --out {out}")
        with stages() as progress:
            record = prepare(experiment, progress=progress).teacher.record
        answers.print(f"teacher {record.arch}: test accuracy {record.test_accuracy:.2%}")
        step(f"ama search {name} --out {out}")
        run_search(experiment)
        step(f"ama pick {out} --max {LIMIT}")
        opened = Run.open(out)
        picks = pick(opened, max=[LIMIT])
        written = write_pick(Path(out) / "pick.yaml", picks, opened)
        say_picks(picks, written)
        command = f"ama retrain {written} --seeds {seeds} --baselines"
        step(command)
        with stages() as progress:
            retrained = retrain_picks(
                written, seeds=seeds, with_baselines=True, command=command, progress=progress
            )
        answers.print(retrained.table())
    step(f"ama report {out}")
    report = write_report(Run.open(out), Path(out) / "report", picks=picks)
    answers.print(f"report: {report.index}", soft_wrap=True)
    step("done")
