"""Run a search with Ray Tune, and keep its study correct however it ends."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import ray
from optuna.trial import TrialState

from analysis.errors import InputError as AnalysisInputError
from analysis.runs.study_url import redact, study_url, with_absolute_path
from search.cluster.connection import connected
from search.cluster.preflight import preflight
from search.cluster.slots import slots
from search.cluster.user_code import imports_of, modules_of
from search.experiment.experiment import Experiment
from search.experiment.resolved import difference, dump_yaml
from search.experiment.yaml12 import read_yaml
from search.policy.first_trials import first_proposals
from search.policy.limits import Limit
from search.policy.proposer import Proposer
from search.policy.space import SearchSpace
from search.run.study_attributes import study_attrs
from search.run_dir.files import EXPERIMENT_FILE
from search.run_dir.folder import TRIALS, Folder, working_folder
from search.run_dir.lock import locked
from search.stages.auto_resources import choose_resources
from search.stages.limits import absolute_limits
from search.stages.method_stages import stage_settings
from search.stages.on_worker import latencies, prepared
from search.stages.prepare import Prepared
from search.stages.progress import Progress
from search.study.database import away_is_failure
from search.study.record import MissingStudyError, StudyRecord, now, ran
from search.tune.board import Board
from search.tune.checkpoints import checkpoints
from search.tune.scheduler import RungScheduler
from search.tune.searcher import StudySearcher
from search.tune.tuner import make_tuner
from search.tune.verdicts import Verdicts
from trainables.config import StudentSpec
from trainables.errors import InputError
from trainables.library.library import Library
from trainables.training.profile import PROFILE, profile_folder

STARTED = "sessions"  # the last study attribute written when a search starts
INTERRUPTED = "interrupted; continue with --resume"

Watch = Callable[[Board], None]


@dataclass(frozen=True)
class Outcome:
    """How a search ended: reason, numbers of the rows that `--resume` would continue, profile files.

    Example:
        experiment = load_experiment("runs/digits/experiment.yaml", out="runs/digits")
        outcome = search(experiment, resume=True)  # all of its trials are done
        print(outcome.reason, outcome.run_dir, outcome.interrupted, outcome.failed)
    """

    run: str
    reason: str
    interrupted: tuple[int, ...]
    failed: bool = False
    profile: tuple[str, ...] = ()

    @property
    def run_dir(self) -> Path:
        """The run directory as a path, for a run on a file system."""
        return Path(self.run)


def search(
    experiment: Experiment,
    *,
    address: str | None = None,
    resume: bool = False,
    command: str = "",
    progress: Progress | None = None,
    watch: Watch | None = None,
    profile_trial: bool = False,
) -> Outcome:
    """Search for students of the teacher (trained first if needed), and record every trial in the study.

    Args:
        experiment: the experiment to run.
        address: address of a Ray cluster; None: start Ray on this machine.
        resume: continue the run in the run directory.
        command: the command as typed, for the record.
        progress: progress callback of the stages before the search.
        watch: called whenever a trial starts, reports or ends.
        profile_trial: write a profile of the first trial's second epoch into the run directory.

    Returns:
        The run directory, and the reason why the search ended.

    Raises:
        InputError: the experiment, run directory, database or cluster cannot be used.
        FailedError: the database stayed unreachable; the run can be resumed.

    Example:
        small = ["teacher.arch=cifar_resnet8", "teacher.epochs=1", "costs.seconds=0.1"]
        small += ["budget.trials=2", "budget.epochs=1", "budget.grace_epochs=1"]
        experiment = load_experiment("digits", small, out="runs/small")
        outcome = search(experiment)
        print(outcome.reason, outcome.run_dir)
    """
    url = _database(experiment, resume)
    with working_folder(experiment.run.dir) as folder:
        _check_run_dir(experiment, folder, resume)
        with locked(folder, url, experiment.name), away_is_failure():
            record = _past_record(experiment, folder, url) if resume else None
            if record is None:
                StudyRecord.check_free(url, experiment.name)
            elif _trials_done(record) >= experiment.budget.trials:
                return Outcome(folder.place, f"all {experiment.budget.trials} trials are done already", ())
            with connected(address, modules=modules_of(*imports_of(experiment)) if address else ()):
                concurrent = slots(experiment.resources)
                if address is not None or sum(node["Alive"] for node in ray.nodes()) > 1:
                    preflight(experiment, folder, url)
                library = experiment.uses_library
                setup, modules = prepared(
                    experiment,
                    folder,
                    library=library,
                    settings=stage_settings(experiment),
                    progress=progress,
                )
                limits = absolute_limits(
                    experiment, setup.teacher.record, setup.costs, scores=setup.teacher_scores
                )
                dump_yaml(
                    _placed(experiment), folder.path / EXPERIMENT_FILE
                )  # from here on the directory holds a run
                folder.push()
                record = _begun(experiment, setup, limits, record, url, command)
                if experiment.resources.concurrent == "auto":
                    resources = choose_resources(setup, progress)
                    setup = replace(setup, experiment=experiment.model_copy(update={"resources": resources}))
                    concurrent = slots(resources)
                outcome = _run(setup, folder, modules, record, limits, concurrent, watch, profile_trial)
                record.close()
                if profile_trial:
                    written = sorted(file.name for file in (folder.path / PROFILE).glob("trial-*"))
                    files = tuple(f"{folder.place}/{PROFILE}/{name}" for name in written)
                    outcome = replace(outcome, profile=files)
                return outcome


def _begun(
    experiment: Experiment,
    setup: Prepared,
    limits: list[Limit],
    record: StudyRecord | None,
    url: str,
    command: str,
) -> StudyRecord:
    """Return the existing study, or create one and write its attributes."""
    if record is None:
        record = StudyRecord.create(url, experiment.name, [o.direction for o in experiment.objectives])
    if STARTED not in record.attrs:
        attrs = study_attrs(experiment, setup, limits, redact(command, url))
        record.name_objectives([o.metric for o in experiment.objectives])
        record.set_attrs({**attrs, STARTED: 0})
    _check_same(record, setup)
    return record


def _database(experiment: Experiment, resume: bool) -> str:
    """Return the URL of the study's database; resolve the relative path of a resumed run."""
    try:
        return study_url(experiment.storage.study, experiment.run.dir, kept=resume)
    except AnalysisInputError as fault:
        raise InputError(str(fault)) from None


def _placed(experiment: Experiment) -> Experiment:
    """Return `experiment` for the run directory's files, with an absolute SQLite path."""
    if experiment.storage.study is None:
        return experiment
    storage = experiment.storage.model_copy(update={"study": with_absolute_path(experiment.storage.study)})
    return experiment.model_copy(update={"storage": storage})


def _check_run_dir(experiment: Experiment, folder: Folder, resume: bool) -> None:
    """Refuse a new run in a used directory, and a resume without a run or with another experiment."""
    file = folder.path / EXPERIMENT_FILE
    if file.exists() and not resume:
        raise InputError(
            f"run.dir: {folder.place} already holds a run; continue it with --resume, or choose another "
            "place with --out"
        )
    if resume and not file.exists():
        raise InputError(f"--resume: {folder.place} holds no run (no {EXPERIMENT_FILE} in it)")
    if resume:
        # Compare with the run's copy, which is written before the study: a search may stop in between.
        before, _ = read_yaml(file.read_text(encoding="utf-8"), EXPERIMENT_FILE)
        changes = difference(before, experiment)
        if changes:
            raise InputError(
                f"--resume: the run in {folder.place} was another experiment; only budget.trials, "
                "budget.hours, resources and runtime may change:\n  " + "\n  ".join(changes)
            )


def _past_record(experiment: Experiment, folder: Folder, url: str) -> StudyRecord | None:
    """Load the study to resume, with RUNNING rows set to WAITING; None: no study exists yet."""
    try:
        record = StudyRecord.load(url, experiment.name)
    except MissingStudyError:
        # Do not take a wrong database for a new one: only a run without trials may lack its study.
        if folder.holds(TRIALS):
            raise
        return None
    record.interrupt()
    return record


def _check_same(record: StudyRecord, setup: Prepared) -> None:
    """Refuse to resume with another teacher or other data than that of the study's trials."""
    for what, ours in (("teacher", setup.teacher.record.hash), ("data", setup.data.hash)):
        theirs = record.attrs[what]["hash"]
        if ours != theirs:
            raise InputError(
                f"--resume: the {what} is not what the run was started with: expected hash {theirs}, "
                f"got {ours}"
            )


def _trials_done(record: StudyRecord) -> int:
    return sum(ran(row) and row.state.is_finished() for row in record.trials())


def _run(
    setup: Prepared,
    folder: Folder,
    library: Library | None,
    record: StudyRecord,
    limits: list[Limit],
    concurrent: int,
    watch: Watch | None,
    profile_trial: bool,
) -> Outcome:
    experiment = setup.experiment
    past = record.trials()
    session = int(record.attrs[STARTED]) + 1
    sections = {name: getattr(experiment, name).model_dump(mode="json") for name in ("budget", "resources")}
    record.set_attrs({STARTED: session, **sections})
    hours = experiment.budget.hours
    deadline = None if hours is None else time.monotonic() + hours * 3600 - _spent(record)
    verdicts = Verdicts()
    scheduler = RungScheduler(
        {o.metric: o.direction for o in experiment.objectives},
        max_epochs=experiment.budget.epochs,
        grace_epochs=experiment.budget.grace_epochs,
        reduction_factor=experiment.budget.reduction_factor,
        known=experiment.cost_metrics,
        verdicts=verdicts,
    )
    scheduler.replay(past)
    space = SearchSpace.from_experiment(experiment, setup.blocks, past)
    first = first_proposals(space, setup.blocks, setup.costs, library) if library else ()
    searcher = StudySearcher(
        experiment,
        record,
        Proposer(experiment, space, setup.costs.price, limits, past, first),
        setup.blocks,
        checkpoints=checkpoints(folder, [t for t in past if t.state == TrialState.WAITING]),
        verdicts=verdicts,
        deadline=deadline,
        watch=watch,
    )
    began = time.monotonic()
    try:
        profile = profile_folder(folder.path) if profile_trial else None
        tuner = make_tuner(
            setup, folder, library, searcher, scheduler, concurrent, session, deadline, profile
        )
        tuner.fit()
    finally:
        record.interrupt()
        record.set_attrs({"elapsed_seconds": _spent(record) + time.monotonic() - began})
    outcome = _outcome(folder, experiment, record, searcher, deadline)
    if outcome.reason not in (INTERRUPTED, searcher.halted):
        record.set_attrs({"ended": now()})
        _measure_front(setup, record)
    return outcome


def _spent(record: StudyRecord) -> float:
    return float(record.attrs.get("elapsed_seconds", 0.0))


def _outcome(
    folder: Folder,
    experiment: Experiment,
    record: StudyRecord,
    searcher: StudySearcher,
    deadline: float | None,
) -> Outcome:
    rows = [row for row in record.trials() if ran(row)]
    waiting = tuple(row.number for row in rows if row.state == TrialState.WAITING)
    if searcher.halted is not None:
        reason = searcher.halted
    elif searcher.hopeless or (searcher.exhausted and not waiting):
        reason = str(searcher.exhausted)
    elif not waiting and len(rows) >= experiment.budget.trials:
        reason = "all trials used"
    elif deadline is not None and time.monotonic() > deadline:
        reason = "time limit budget.hours reached"
    else:
        reason = INTERRUPTED
    return Outcome(folder.place, reason, waiting, failed=searcher.hopeless or searcher.halted is not None)


def _measure_front(setup: Prepared, record: StudyRecord) -> None:
    """Measure the latency of the front's students end to end, while no trial uses the device."""
    specs = {
        str(row.number): StudentSpec.model_validate(row.user_attrs["config"]["student"])
        for row in record.front()
    }
    if specs:
        measured = latencies(setup, specs)
        record.set_attrs({"measured": {number: {"latency_ms": ms} for number, ms in measured.items()}})
