"""Part `trials` of `benchmarks.engine`: measure the overhead of a search beside the training of its trials.

Compares ours, as `ama search` runs it, with a stock function trainable of Ray Tune with `OptunaSearch`, which
loads data and teacher in every trial. Both train with our loop, so that only the code around it differs. The
busy times of workers come from Ray's result files, the times of suggestions from the study.
"""

from __future__ import annotations

import json
import statistics
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from ray import tune
from ray.tune.search.optuna import OptunaSearch

from benchmarks.engine_jobs import Job, data_config, load
from benchmarks.engine_process import Contender
from search.cluster.connection import connected
from search.experiment.experiment import Experiment
from search.run.search import search
from search.run_dir.folder import TRIALS
from search.study.record import StudyRecord
from trainables.config import StudentSpec
from trainables.methods.base import Setup
from trainables.training.loop import Distiller

WIDTHS = (0.25, 0.5, 1.0)
VAL_SHARE = 0.01  # of the training images of a whole image folder
EPOCH_FIELDS = ("trial_id", "pid", "began_at", "seconds")


@dataclass(frozen=True)
class Work:
    """An epoch that a worker trained and scored."""

    trial: str
    worker: int
    began: float  # seconds since 1970
    seconds: float

    @property
    def ended(self) -> float:
        """Seconds since 1970."""
        return self.began + self.seconds


@dataclass(frozen=True)
class Timeline:
    """The events of a search: when each trial was suggested, and all its epochs."""

    suggested: Mapping[str, float]  # seconds since 1970, by trial
    work: tuple[Work, ...]
    workers: int

    @property
    def firsts(self) -> dict[str, Work]:
        """Return every trial's first epoch, in order of their starts."""
        found: dict[str, Work] = {}
        for each in sorted(self.work, key=lambda w: w.began):
            found.setdefault(each.trial, each)
        return found

    def busy(self, start: float, end: float) -> float:
        """Return the share of the time from `start` to `end` that the workers spent in epochs."""
        spent = sum(max(0.0, min(w.ended, end) - max(w.began, start)) for w in self.work)
        return spent / (self.workers * (end - start))

    def busy_share(self) -> float:
        """Return `busy` of the whole search: from the first suggestion to the end of the last epoch."""
        return self.busy(min(self.suggested.values()), max(w.ended for w in self.work))

    def busy_share_steady(self) -> float:
        """Return `busy` from when all workers train until the last trial is suggested."""
        begun = list(self.firsts.values())[self.workers - 1].began
        return self.busy(begun, max(self.suggested.values()))

    def first_steps(self) -> list[float]:
        """Return the seconds from suggestion to first step of every trial but each worker's first."""
        return [
            first.began - self.suggested[trial] for trial, first in list(self.firsts.items())[self.workers :]
        ]

    def trial_seconds(self) -> list[float]:
        """Return the training seconds of every trial."""
        found: dict[str, float] = defaultdict(float)
        for each in self.work:
            found[each.trial] += each.seconds
        return list(found.values())


def read_work(folder: Path) -> tuple[Work, ...]:
    """Read the epochs of all trials from Ray's result files."""
    lines = (line for file in folder.glob("*/result.json") for line in file.read_text().splitlines())
    return tuple(Work(*(row[name] for name in EPOCH_FIELDS)) for row in map(json.loads, lines))


def ours(job: Job, trials: int, workers: int, folder: Path) -> Timeline:
    """Run our search with trials that all train to the end."""
    record = folder / "study.db"
    experiment = Experiment.model_validate(
        {
            "name": "engine",
            "run": {"dir": str(folder)},
            "data": _data(job).model_dump(),
            "teacher": {"arch": "cifar_resnet20", "checkpoint": job.teacher},
            "objectives": ["val_accuracy", "flops"],
            "space": {"widths": WIDTHS, "optim": {"batch_size": job.batch}},
            "budget": {"trials": trials, "epochs": job.epochs, "grace_epochs": job.epochs},
            "resources": {"cpu": job.threads, "gpu": _gpu(job, workers), "concurrent": workers},
            "runtime": {"device": job.device, "precision": job.precision, "layout": job.layout},
            "costs": {"seconds": 1.0},
        }
    )
    search(experiment)
    rows = StudyRecord.load(f"sqlite:///{record}", "engine").trials()
    suggested = {
        row.user_attrs["ray_id"]: row.datetime_start.timestamp()
        for row in rows
        if row.datetime_start is not None and "ray_id" in row.user_attrs
    }
    return Timeline(suggested, read_work(folder / TRIALS), workers)


def stock_trial(config: dict[str, Any], job: Job) -> None:
    """A function trainable as a user would write it: every trial loads everything again."""
    parts = load(job, _data(job))
    chosen = {name: config[name] for name in (block.name for block in parts.blocks) if config[name]}
    trial = parts.config("large")
    trial = trial.model_copy(
        update={
            "student": StudentSpec(widths=chosen),
            "loss": trial.loss.model_copy(update={name: config[name] for name in ("alpha", "tau", "beta")}),
            "optim": trial.optim.model_copy(update={"lr": config["lr"]}),
        }
    )
    distiller = Distiller(trial, Setup.of(parts.teacher, parts.blocks, parts.data, parts.runtime))
    while not distiller.finished:
        began = time.time()
        metrics = distiller.run_epoch()
        params = sum(param.numel() for param in distiller.student.parameters())
        tune.report(
            {"val_accuracy": metrics.val_accuracy, "params": params}
            | {"began_at": began, "seconds": metrics.seconds}
        )


class Timed(OptunaSearch):  # type: ignore[misc]
    """Ray's Optuna searcher that records when it suggests a trial."""

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """Suggest as Ray does, and record the time."""
        config: dict[str, Any] | None = super().suggest(trial_id)
        if config is not None:
            self.__dict__.setdefault("suggested", {})[trial_id] = time.time()
        return config


def stock(job: Job, trials: int, workers: int, folder: Path) -> Timeline:
    """Run trials as long as ours in a stock Tuner."""
    blocks = load(job, _data(job)).blocks
    space = {
        **{block.name: tune.choice([*WIDTHS, None]) for block in blocks},
        "alpha": tune.uniform(0.1, 0.9),
        "tau": tune.loguniform(1.0, 8.0),
        "beta": tune.loguniform(0.1, 10.0),
        "lr": tune.loguniform(0.01, 0.2),
    }
    searcher = Timed(metric=["val_accuracy", "params"], mode=["max", "min"], seed=job.seed)
    with connected(None):
        tune.Tuner(
            tune.with_resources(
                tune.with_parameters(stock_trial, job=job), {"cpu": job.threads, "gpu": _gpu(job, workers)}
            ),
            param_space=space,
            tune_config=tune.TuneConfig(
                search_alg=searcher, num_samples=trials, max_concurrent_trials=workers
            ),
            run_config=tune.RunConfig(name="stock", storage_path=str(folder.absolute()), verbose=0),
        ).fit()
    return Timeline(searcher.suggested, read_work(folder / "stock"), workers)


def _data(job: Job) -> Any:
    config = data_config(job)
    return config.model_copy(update={"val_fraction": VAL_SHARE}) if job.root else config


def _gpu(job: Job, workers: int) -> float:
    return 0.0 if torch.device(job.device).type == "cpu" else 1.0 / workers


def epochs_of(job: Job, seconds: float) -> int:
    """Return the number of epochs that take about `seconds` seconds."""
    with Contender("ours", job) as contender:
        contender.epoch("medium")  # warms up
        return max(2, round(seconds / contender.epoch("medium").seconds))


def trials_part(
    job: Job, trials: int, stock_trials: int, workers: int, seconds: float, folder: Path
) -> dict[str, Any]:
    """Run this part; return its figures and the data behind them."""
    job = replace(job, epochs=epochs_of(replace(job, epochs=2), seconds))
    found = {"ours": ours(job, trials, workers, folder / "ours")}
    found["stock"] = stock(job, stock_trials, workers, folder)
    figures: dict[str, float] = {}
    for name, timeline in found.items():
        steps, suffix = timeline.first_steps(), "" if name == "ours" else f"_{name}"
        figures[f"first_step_seconds{suffix}"] = round(statistics.median(steps), 4)
        figures[f"first_step_seconds{suffix}_p95"] = round(percentile(steps, 0.95), 4)
        figures[f"busy_share{suffix}"] = round(timeline.busy_share(), 4)
        figures[f"busy_share_steady{suffix}"] = round(timeline.busy_share_steady(), 4)
    return {
        "trials": trials,
        "stock_trials": stock_trials,
        "workers": workers,
        "epochs": job.epochs,
        "figures": figures,
        "timelines": {name: described(timeline) for name, timeline in found.items()},
    }


def percentile(values: Iterable[float], share: float) -> float:
    """Return the smallest value that at least `share` of all values do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def described(timeline: Timeline) -> dict[str, Any]:
    """Describe a timeline for the result file, in seconds since the first suggestion."""
    zero = min(timeline.suggested.values())
    seconds = timeline.trial_seconds()
    return {
        "trial_seconds": {"mean": statistics.mean(seconds), "min": min(seconds), "max": max(seconds)},
        "first_steps": [round(each, 4) for each in timeline.first_steps()],
        "suggested": [round(at - zero, 3) for at in sorted(timeline.suggested.values())],
        "epochs": [
            [w.worker, round(w.began - zero, 3), round(w.seconds, 3)]
            for w in sorted(timeline.work, key=lambda w: w.began)
        ],
    }


def trials_table(part: Mapping[str, Any]) -> str:
    """Format ours and the stock trainable as a Markdown table."""
    rows = {
        "from suggestion to first step, median": "first_step_seconds{}",
        "the same, 95th percentile": "first_step_seconds{}_p95",
        "workers busy, whole search": "busy_share{}",
        "workers busy, without start and end of the search": "busy_share_steady{}",
    }
    lines = ["| | ours | stock function trainable |", "|---|---:|---:|"]
    for text, key in rows.items():
        values = [part["figures"][key.format(suffix)] for suffix in ("", "_stock")]
        cells = [f"{100 * v:.1f} %" if key.startswith("busy") else f"{v:.3f} s" for v in values]
        lines.append(f"| {text} | {' | '.join(cells)} |")
    return "\n".join(lines)
