"""`ama retrain`: picks, their seeds and their baselines as tasks on Ray; a table with mean and deviation."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ray
from rich.table import Table

from analysis.metrics import show
from analysis.pick import Pick, PickFile, read_pick
from search.cluster import connected, slots
from search.experiment import Experiment
from search.pipeline import EXPERIMENT_FILE, Progress, Setup, prepare
from trainables.blocks import Block
from trainables.config import DataConfig, DistillConfig, RuntimeConfig
from trainables.data import ImageData
from trainables.errors import InputError
from trainables.retrain import RetrainResult, baselines, results_table, retrain_one
from trainables.runtime import resolve
from trainables.teachers import Teacher

STUDENT = "student"
# Epochs of a retrained model, in epochs of a search's trial, unless --epochs says otherwise.
FULL_BUDGET = 3


@dataclass(frozen=True)
class Job:
    """One model to train: which pick, which kind, with which seed."""

    number: int
    kind: str
    config: DistillConfig

    @property
    def folder(self) -> str:
        """Where the model goes, below the folder of all."""
        return f"trial-{self.number}/{self.kind}/seed-{self.config.seed}"


@dataclass(frozen=True)
class Retrained:
    """All finished models and the table of their means."""

    folder: Path
    rows: list[dict[str, Any]]

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {"folder": str(self.folder), "table": self.rows}

    def table(self) -> Table:
        """For people."""
        drawn = Table(title="on test data", title_justify="left")
        for column in ("trial", "model", "n", "test accuracy", "test loss", "FLOPs", "params", "epochs"):
            drawn.add_column(column, justify="left" if column == "model" else "right")
        for row in self.rows:
            drawn.add_row(*_cells(row))
        return drawn


def retrain_picks(
    picked: Path,
    *,
    seeds: int = 3,
    epochs: int | None = None,
    with_baselines: bool = False,
    address: str | None = None,
    out: Path | None = None,
    progress: Progress | None = None,
) -> Retrained:
    """Train every pick `seeds` times with full budget, test each model once, and write the table.

    Args:
        picked: what `ama pick` wrote.
        seeds: trainings of each pick, with seeds that the search did not use.
        epochs: of each training; None: three times a trial's.
        with_baselines: the same student from scratch, and from the teacher with cross-entropy only, as well.
        address: of a Ray cluster; None: start Ray on this machine.
        out: folder for the models; None: `retrained` in the run directory.
        progress: called as models are finished.

    Raises:
        InputError: anything in the pick, its run or the cluster that cannot be used.
    """
    pick = read_pick(picked)
    run_dir = _run_dir(pick)
    experiment = Experiment.model_validate({**pick.experiment, "run": {"dir": str(run_dir)}})
    folder = out or run_dir / "retrained"
    jobs = list(_jobs(pick.picks, experiment, seeds, epochs, with_baselines))
    with connected(address):
        slots(experiment.resources)
        setup = prepare(experiment, test=True, progress=progress)
        finished = _train(setup, jobs, folder, progress)
    return _write(folder, setup, finished)


def _run_dir(pick: PickFile) -> Path:
    """Where the pick's run is: as recorded, or where the pick lies, when the run was moved."""
    for place in (pick.run, pick.path.parent):
        if place is not None and (place / EXPERIMENT_FILE).exists():
            return place
    raise InputError(
        f"{pick.path}: its run {pick.run} is not there, nor does the pick lie in a run directory "
        f"(a folder with {EXPERIMENT_FILE})"
    )


def _jobs(
    picks: Sequence[Pick],
    experiment: Experiment,
    seeds: int,
    epochs: int | None,
    with_baselines: bool,
) -> Iterable[Job]:
    for pick in picks:
        searched = DistillConfig.model_validate(pick.config)
        length = epochs or FULL_BUDGET * searched.epochs
        for seed in range(experiment.seed + 1, experiment.seed + 1 + seeds):
            config = searched.model_copy(update={"epochs": length, "seed": seed})
            kinds = {STUDENT: config, **(baselines(config) if with_baselines else {})}
            for kind, variant in kinds.items():
                yield Job(pick.number, kind, variant)


@ray.remote  # type: ignore[untyped-decorator]
def _task(
    job: Job,
    arrays: dict[str, Any],
    teacher: Teacher,
    blocks: tuple[Block, ...],
    runtime: RuntimeConfig,
    data_config: DataConfig,
    folder: str,
) -> RetrainResult:
    return retrain_one(
        job.config,
        teacher,
        blocks,
        ImageData.from_arrays(arrays),
        resolve(runtime),
        Path(folder) / job.folder,
        kind=job.kind,
        data_config=data_config,
    )


def _train(
    setup: Setup, jobs: Sequence[Job], folder: Path, progress: Progress | None
) -> list[tuple[Job, RetrainResult]]:
    resources = setup.experiment.resources
    threads = setup.experiment.runtime.threads or max(1, int(resources.cpu))
    shared = (
        ray.put(setup.data.to_arrays()),
        ray.put(Teacher(setup.teacher.model.cpu(), setup.teacher.record)),
        setup.blocks,
        setup.experiment.runtime.model_copy(update={"threads": threads}),
        setup.experiment.data,
        str(folder.absolute()),
    )
    task = _task.options(num_cpus=resources.cpu, num_gpus=resources.gpu, max_retries=2)
    pending = {task.remote(job, *shared): index for index, job in enumerate(jobs)}
    finished: dict[int, RetrainResult] = {}
    while pending:
        if progress is not None:
            progress("retraining", len(finished), len(jobs))
        (ready, *_), _ = ray.wait(list(pending))
        finished[pending.pop(ready)] = ray.get(ready)
    return [(job, finished[index]) for index, job in enumerate(jobs)]


def _write(folder: Path, setup: Setup, finished: Sequence[tuple[Job, RetrainResult]]) -> Retrained:
    """Write `results.json` (one entry a model), `results.csv` and `results.md` (one row a kind)."""
    costs, record = setup.costs.teacher, setup.teacher.record
    numbers = list(dict.fromkeys(job.number for job, _ in finished))
    rows: list[dict[str, Any]] = []
    for number in numbers:
        results = [result for job, result in finished if job.number == number]
        table = results_table(results, record, costs.params, costs.flops)
        rows += [{"number": None if row["kind"] == "teacher" else number, **row} for row in table]
    teacher_row, *others = rows
    rows = [teacher_row, *(row for row in others if row["kind"] != "teacher")]
    models = [{"number": job.number, **asdict(result), "path": str(result.path)} for job, result in finished]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(models, indent=2) + "\n")
    with (folder / "results.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    head = ("trial", "model", "n", "test accuracy", "test loss", "FLOPs", "params", "epochs")
    lines = [" | ".join(head), " | ".join("---" for _ in head), *(" | ".join(_cells(row)) for row in rows)]
    (folder / "results.md").write_text("\n".join(f"| {line} |" for line in lines) + "\n")
    return Retrained(folder, rows)


def _cells(row: dict[str, Any]) -> list[str]:
    def mean(name: str, scale: float, digits: int) -> str:
        if row[name] is None:
            return "–"
        spread = row[f"{name}_std"]
        tail = "" if spread is None else f" ± {spread * scale:.{digits}f}"
        return f"{row[name] * scale:.{digits}f}{tail}"

    return [
        "" if row["number"] is None else str(row["number"]),
        row["kind"],
        str(row["n"]),
        mean("test_accuracy", 100, 2) + " %",
        mean("test_loss", 1, 4),
        show("flops", row["flops"]),
        show("params", row["params"]),
        f"{row['epochs']:g}",
    ]
