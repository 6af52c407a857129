"""Run a search: study, cluster, Ray Tune, and a record that is true whenever and however it ends."""

from __future__ import annotations

import fcntl
import platform
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from optuna.trial import FrozenTrial, TrialState
from ray import tune
from ray.tune import Stopper
from ray.tune.experiment import Trial

from search.callback import StudyCallback
from search.cluster import connected, slots
from search.database import away_is_failure
from search.experiment import Experiment, difference, dump_yaml, resolved
from search.measured import tuned_runtime
from search.pipeline import EXPERIMENT_FILE, Progress, Setup, absolute_limits, prepare
from search.proposer import Limit, Proposer
from search.scheduler import RungScheduler
from search.searcher import Board, StudySearcher, ran
from search.space import SearchSpace
from search.storage_url import redact, study_url
from search.study import MissingStudyError, StudyRecord, now
from search.warmstart import first_proposals, get_library
from search.yaml_io import read_yaml
from trainables.config import StudentSpec
from trainables.cost import measure_many
from trainables.errors import InputError
from trainables.library import Library
from trainables.runtime import device_name
from trainables.student import build_student
from trainables.trial import CHECKPOINT_FILE, DistillTrial, TrialContext

FORMAT = 1
STARTED = "sessions"  # the attribute that a study gets last when a search begins
INTERRUPTED = "interrupted; continue with --resume"
TRIALS = "trials"  # folder of the run directory where Ray keeps checkpoints and logs
MAX_FAILURES = 2  # a trial is tried again this often, from its last checkpoint

Watch = Callable[[Board], None]


@dataclass(frozen=True)
class Outcome:
    """How a search ended: why, and the numbers of the rows that a `--resume` would take up."""

    run_dir: Path
    reason: str
    interrupted: tuple[int, ...]
    failed: bool = False


def search(
    experiment: Experiment,
    *,
    address: str | None = None,
    resume: bool = False,
    command: str = "",
    progress: Progress | None = None,
    watch: Watch | None = None,
) -> Outcome:
    """Search, from a trained teacher to a study whose every row has its true state.

    Args:
        experiment: what to do.
        address: of a Ray cluster; None: start Ray on this machine.
        resume: continue the run that the run directory holds.
        command: as typed, for the record.
        progress: called by the stages before the search.
        watch: called whenever a trial starts, reports or ends.

    Raises:
        InputError: something in the experiment, run directory, database or cluster cannot be used.
        FailedError: the database stayed away; the run can be resumed.
    """
    run_dir = Path(experiment.run.dir)
    url = study_url(experiment, run_dir)
    _check_run_dir(experiment, run_dir, resume)
    with locked(run_dir), away_is_failure():
        record = _past_record(experiment, run_dir, url) if resume else None
        if record is None:
            StudyRecord.check_free(url, experiment.name)
        elif _trials_done(record) >= experiment.budget.trials:
            return Outcome(run_dir, f"all {experiment.budget.trials} trials are done already", ())
        with connected(address):
            concurrent = slots(experiment.resources)
            setup = prepare(experiment, progress=progress)
            library = get_library(setup, progress) if experiment.warm_start == "library" else None
            limits = absolute_limits(experiment, setup.teacher.record, setup.costs)
            dump_yaml(experiment, run_dir / EXPERIMENT_FILE)  # from now on the directory holds a run
            if record is None:
                directions = [o.direction for o in experiment.objectives]
                record = StudyRecord.create(url, experiment.name, directions)
            if STARTED not in record.attrs:
                record.set_attrs(_study_attrs(setup, limits, redact(command, url)))
            _check_same(record, setup)
            outcome = _run(setup, library, record, limits, concurrent, watch)
            record.close()
            return outcome


def _check_run_dir(experiment: Experiment, run_dir: Path, resume: bool) -> None:
    """Refuse a new run where one is, and a resumed one where none is or that was another experiment."""
    there = (run_dir / EXPERIMENT_FILE).exists()
    if there and not resume:
        raise InputError(
            f"run.dir: {run_dir} already holds a run; continue it with --resume, or choose another place "
            "with --out"
        )
    if resume and not there:
        raise InputError(f"--resume: {run_dir} holds no run (no {EXPERIMENT_FILE} in it)")
    if resume:
        # The run's own copy, which is there before the study: a search may have been cut off between them.
        before, _ = read_yaml((run_dir / EXPERIMENT_FILE).read_text(encoding="utf-8"), EXPERIMENT_FILE)
        changes = difference(before, experiment)
        if changes:
            raise InputError(
                f"--resume: the run in {run_dir} was another experiment; only budget.trials, budget.hours, "
                "resources and runtime may change:\n  " + "\n  ".join(changes)
            )


def _past_record(experiment: Experiment, run_dir: Path, url: str) -> StudyRecord | None:
    """The study of a run to be resumed, its rows of a killed driver set to WAITING; None: not begun yet."""
    try:
        record = StudyRecord.load(url, experiment.name)
    except MissingStudyError:
        # A wrong database must not pass for a new one: only a run that never got to a trial has no study.
        if (run_dir / TRIALS).exists():
            raise
        return None
    record.interrupt()
    return record


def _check_same(record: StudyRecord, setup: Setup) -> None:
    """Refuse to go on with another teacher or other data than the study's trials had."""
    for what, ours in (("teacher", setup.teacher.record.hash), ("data", setup.data.hash)):
        theirs = record.attrs[what]["hash"]
        if ours != theirs:
            raise InputError(
                f"--resume: the {what} is not what the run was started with: expected hash {theirs}, "
                f"got {ours}"
            )


def _trials_done(record: StudyRecord) -> int:
    return sum(ran(row) and row.state.is_finished() for row in record.trials())


@contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    """Hold the run directory for this process; the lock goes with the process, however it ends.

    Raises:
        InputError: another process holds it, or the directory cannot be made or written.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        file = (run_dir / ".lock").open("w")
    except OSError as fault:
        raise InputError(f"run.dir: cannot write in {run_dir}: {fault.strerror}") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(f"run.dir: another `ama search` is running in {run_dir}") from None
        yield


def _study_attrs(setup: Setup, limits: list[Limit], command: str) -> dict[str, Any]:
    experiment, table, data = setup.experiment, setup.costs, setup.data
    record = setup.teacher.record
    profile = table.to_profile()
    return {
        "format": FORMAT,
        "experiment": resolved(experiment),
        "objectives": [{"metric": o.metric, "direction": o.direction} for o in experiment.objectives],
        "constraints": [vars(limit) for limit in limits],
        "teacher": {
            "arch": record.arch,
            "hash": record.hash,
            "val_accuracy": record.val_accuracy,
            "val_loss": record.val_loss,
            "test_accuracy": record.test_accuracy,
            **table.teacher.as_dict(),
        },
        "data": {
            "name": data.name,
            "classes": data.num_classes,
            "train": len(data.train),
            "val": len(data.val),
            "image_shape": list(data.image_shape),
            "hash": data.hash,
        },
        "blocks": profile["blocks"],
        "widths": list(experiment.space.widths),
        "versions": versions(),
        "command": command,
        "device": device_name(setup.runtime.device),
        "budget": experiment.budget.model_dump(mode="json"),
        "started": now(),
        STARTED: 0,
    }


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide what a run computes."""
    packages = ("ama-search", "torch", "torchvision", "ray", "optuna", "numpy")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


class _End(Stopper):  # type: ignore[misc]
    """Ends the whole search when its wall time is over or its trials only fail."""

    def __init__(self, searcher: StudySearcher, deadline: float | None) -> None:
        self._searcher = searcher
        self._deadline = deadline

    def __getstate__(self) -> dict[str, Any]:
        return {}  # pickled into the run directory with the Tuner; holds nothing worth restoring

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        over = self._searcher.hopeless or self._searcher.halted is not None
        return over or (self._deadline is not None and time.monotonic() > self._deadline)


def _run(
    setup: Setup,
    library: Library | None,
    record: StudyRecord,
    limits: list[Limit],
    concurrent: int,
    watch: Watch | None,
) -> Outcome:
    experiment, run_dir = setup.experiment, setup.run_dir
    past = record.trials()
    session = int(record.attrs[STARTED]) + 1
    record.set_attrs({STARTED: session, "budget": experiment.budget.model_dump(mode="json")})
    hours = experiment.budget.hours
    deadline = None if hours is None else time.monotonic() + hours * 3600 - _spent(record)
    scheduler = RungScheduler(
        {o.metric: o.direction for o in experiment.objectives},
        max_epochs=experiment.budget.epochs,
        grace_epochs=experiment.budget.grace_epochs,
        reduction_factor=experiment.budget.reduction_factor,
    )
    scheduler.replay(past)
    space = SearchSpace.from_experiment(experiment, [block.name for block in setup.blocks])
    first = first_proposals(setup, library, space) if library else ()
    searcher = StudySearcher(
        experiment,
        record,
        Proposer(experiment, space, setup.costs.price, limits, past, first),
        setup.blocks,
        checkpoints={t.number: _checkpoints(run_dir, t) for t in past if t.state == TrialState.WAITING},
        scheduler=scheduler,
        deadline=deadline,
        watch=watch,
    )
    began = time.monotonic()
    try:
        _tuner(setup, library, searcher, scheduler, concurrent, session, deadline).fit()
    finally:
        record.interrupt()
        record.set_attrs({"elapsed_seconds": _spent(record) + time.monotonic() - began})
    outcome = _outcome(setup, record, searcher, deadline)
    if outcome.reason not in (INTERRUPTED, searcher.halted):
        record.set_attrs({"ended": now()})
        _measure_front(setup, record)
    return outcome


def _spent(record: StudyRecord) -> float:
    return float(record.attrs.get("elapsed_seconds", 0.0))


def _tuner(
    setup: Setup,
    library: Library | None,
    searcher: StudySearcher,
    scheduler: RungScheduler,
    concurrent: int,
    session: int,
    deadline: float | None,
) -> tune.Tuner:
    resources = setup.experiment.resources
    context = TrialContext(
        data=setup.data.to_arrays(),
        teacher=setup.teacher.model.cpu(),
        blocks=setup.blocks,
        runtime=tuned_runtime(setup),
        modules=library.modules if library else None,
    )
    trainable = tune.with_resources(
        tune.with_parameters(DistillTrial, context=context), {"cpu": resources.cpu, "gpu": resources.gpu}
    )

    def dirname(trial: Trial) -> str:
        # A row taken up again by a later session gets a folder of its own: Ray counts checkpoints from 0.
        return f"{trial.config['number']:05d}-{session}"

    storage = setup.run_dir.absolute()
    return tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            scheduler=scheduler,
            num_samples=-1,
            # Without it a searcher gets one pending trial, and an autoscaler never sees the demand.
            max_concurrent_trials=concurrent,
            reuse_actors=True,
            trial_dirname_creator=dirname,
        ),
        run_config=tune.RunConfig(
            name=TRIALS,
            storage_path=str(storage),
            verbose=0,
            stop=_End(searcher, deadline),
            callbacks=[StudyCallback(searcher, str(storage))],
            failure_config=tune.FailureConfig(max_failures=MAX_FAILURES),
            checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=1, num_to_keep=2),
        ),
    )


def _checkpoints(run_dir: Path, row: FrozenTrial) -> list[str]:
    """Checkpoint folders of an interrupted row, newest first: a later session's before an earlier one's.

    By the numbers in their names: the files' times do not outlive a move of the run.
    """
    found = (run_dir / TRIALS).glob(f"{row.number:05d}-*/checkpoint_*/{CHECKPOINT_FILE}")

    def age(folder: Path) -> tuple[int, ...]:
        return tuple(int(re.split("[-_]", name)[-1]) for name in (folder.parent.name, folder.name))

    return [str(f.absolute()) for f in sorted((f.parent for f in found), key=age, reverse=True)]


def _outcome(setup: Setup, record: StudyRecord, searcher: StudySearcher, deadline: float | None) -> Outcome:
    rows = [row for row in record.trials() if ran(row)]
    waiting = tuple(row.number for row in rows if row.state == TrialState.WAITING)
    if searcher.halted is not None:
        reason = searcher.halted
    elif searcher.hopeless or (searcher.exhausted and not waiting):
        reason = str(searcher.exhausted)
    elif not waiting and len(rows) >= setup.experiment.budget.trials:
        reason = "the budget is used"
    elif deadline is not None and time.monotonic() > deadline:
        reason = "the wall time of budget.hours is over"
    else:
        reason = INTERRUPTED
    return Outcome(setup.run_dir, reason, waiting, failed=searcher.hopeless or searcher.halted is not None)


def _measure_front(setup: Setup, record: StudyRecord) -> None:
    """Measure the front's students end to end, now that no trial loads the device."""
    rows = record.front()
    if not rows:
        return
    students = {
        str(row.number): build_student(
            setup.teacher.model,
            setup.blocks,
            StudentSpec.model_validate(row.user_attrs["config"]["student"]),
        )
        for row in rows
    }
    example = torch.zeros(setup.costs.batch_size, *setup.data.image_shape)
    runtime = replace(setup.runtime, threads=setup.costs.threads)
    measured = measure_many(
        students,
        example,
        runtime,
        precision=setup.costs.precision,
        seconds=setup.experiment.costs.seconds,
    )
    record.set_attrs({"measured": {n: {"latency_ms": latency.median_ms} for n, latency in measured.items()}})
