"""`ama retrain`: train picks with several seeds, and their baselines, as tasks on Ray."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from analysis.picks.pick_file import PickFile, read_pick
from analysis.runs.object_store import Store, is_remote, join, split
from search.cluster.connection import connected
from search.cluster.preflight import preflight
from search.cluster.slots import slots
from search.cluster.user_code import imports_of, modules_of
from search.experiment.experiment import Experiment
from search.experiment.validation_messages import fault_lines
from search.experiment.yaml12 import apply_overrides
from search.run.retrain_jobs import Job, Shared, train_jobs
from search.run.retrain_table import Finished, Retrained, write_results
from search.run_dir.files import EXPERIMENT_FILE, TEACHER_FILE
from search.run_dir.folder import Folder, working_folder
from search.stages.costs import trial_runtime
from search.stages.method_stages import Settings
from search.stages.on_worker import prepared
from search.stages.prepare import Prepared
from search.stages.progress import Progress
from search.stages.tuned_runtime import tuned_runtime
from trainables.config import DistillConfig
from trainables.errors import InputError
from trainables.finished.model_files import MANIFEST
from trainables.finished.retrain import RetrainResult, baselines
from trainables.library.library import Library
from trainables.student.start import Modules
from trainables.teacher.teacher import Teacher

STUDENT = "student"
KINDS = (STUDENT, *baselines(DistillConfig()))  # rows of the table, in this order
# Default epochs of a retrained model, as a multiple of a trial's epochs.
FULL_BUDGET = 3
# Sections of the experiment that a retraining may change; students and teacher stay the same.
OVERRIDES = ("data", "library", "resources", "runtime")

Model = TypeVar("Model", bound=BaseModel)


def retrain_picks(
    picked: str | Path,
    *,
    seeds: int = 3,
    epochs: int | None = None,
    with_baselines: bool = False,
    address: str | None = None,
    out: str | Path | None = None,
    overrides: Sequence[str] = (),
    command: str = "",
    progress: Progress | None = None,
) -> Retrained:
    """Train every pick `seeds` times with full budget, test each model once, and write the table.

    Finished models are not trained again. The table also contains models that earlier commands retrained
    into the folder: other picks, seeds and baselines.

    Args:
        picked: the file written by `ama pick`, or its run directory.
        seeds: number of training runs per pick; their seeds were not used by the search.
        epochs: epochs per training run; None: `FULL_BUDGET` times those of a trial.
        with_baselines: also train the same student from scratch, and from the teacher with cross-entropy
            only.
        address: address of a Ray cluster; None: start Ray on this machine.
        out: folder for the models; None: `retrained` in the run directory.
        overrides: `dotted.key=value` for the experiment, in the sections of `OVERRIDES`; e.g.
            `data.train_limit=null` trains on all images after a search on a subset.
        command: the command as typed, for the manifests.
        progress: progress callback.

    Returns:
        The folder of the models, and a table with the scores of the teacher and of all models (mean over
        seeds).

    Raises:
        InputError: the pick, its run, the folder or the cluster cannot be used.
        FailedError: some training runs failed; the finished models are kept.

    Example:
        from analysis import pick, write_pick

        write_pick("runs/digits/pick.yaml", pick("runs/digits", knee=True), "runs/digits")
        done = retrain_picks("runs/digits", seeds=1, epochs=1)
        print(done.folder, done.rows[-1]["test_accuracy"])
    """
    with ExitStack() as open_:
        pick, run = _pick(os.fspath(picked), open_)
        experiment = _experiment(pick, run, overrides)
        folder = open_.enter_context(working_folder(run))
        models = open_.enter_context(working_folder(out or join(run, "retrained")))
        models.fetch("", MANIFEST)
        asked = {job.folder: job for job in _jobs(pick, experiment, seeds, epochs, with_baselines)}
        jobs = {job.folder: job for job in _present(models.path)} | asked
        missing = [job for place, job in jobs.items() if not (models.path / place / MANIFEST).exists()]
        _check_teacher_there(pick, experiment, folder)
        open_.enter_context(
            connected(address, modules=modules_of(*imports_of(experiment)) if address else ())
        )
        slots(experiment.resources)
        if address is not None:
            preflight(experiment, folder)
        library = bool(missing) and experiment.uses_library
        # Use the library of the search, even if the students are now trained on other data.
        settings = [(job.config.method, job.config.loss) for job in missing]
        setup, modules = _setup(
            pick, experiment, folder, library and not overrides, progress, settings=settings
        )
        if library and overrides:
            _, modules = _setup(pick, _experiment(pick, run, ()), folder, True, progress)
        made = _made(pick, command, _seeds(experiment, seeds), overrides)
        shared = _shared(setup, models, made, modules.modules if modules else None)
        done = {place: shared.train(job) for place, job in jobs.items() if job not in missing}
        if missing:
            longest = max(job.config.epochs for job in missing)
            shared = replace(shared, runtime=tuned_runtime(setup, longest))
            done |= train_jobs(missing, shared, experiment.resources, len(done), progress)
        return _written(models, jobs.values(), done, setup)


def _written(
    models: Folder, jobs: Iterable[Job], done: Mapping[str, RetrainResult], setup: Prepared
) -> Retrained:
    order = sorted(jobs, key=lambda job: (job.number, KINDS.index(job.kind), job.config.seed))
    finished = [
        Finished(job.number, job.folder, setup.costs.price(job.config.student), done[job.folder])
        for job in order
    ]
    written = write_results(models.path, finished, setup.teacher.record, setup.costs.teacher)
    return replace(written, place=models.place)


def _pick(picked: str, open_: ExitStack) -> tuple[PickFile, str]:
    """Read the pick and find its run: the recorded place, or the folder of the pick.

    For a pick in an object store, the folder of the pick is tried first.

    Args:
        picked: the file or its run directory; a path or a URI.
        open_: keeps the working copies of object stores open.
    """
    if not is_remote(picked):
        pick = read_pick(picked)
        places = [os.fspath(place) for place in (pick.run, pick.path.parent) if place is not None]
    else:
        near, name = split(picked) if picked.endswith((".yaml", ".yml")) else (picked, "pick.yaml")
        pick = read_pick(open_.enter_context(working_folder(near)).path / name)
        places = [near, *([pick.run] if isinstance(pick.run, str) else [])]
    for place in places:
        if is_remote(place):
            found = Store.open(place).exists(EXPERIMENT_FILE)
        else:
            found = Path(place, EXPERIMENT_FILE).exists()
        if found:
            return pick, place
    raise InputError(
        f"{picked}: its run {pick.run} does not exist, and the pick is not in a run directory "
        f"(a folder with {EXPERIMENT_FILE})"
    )


def _experiment(pick: PickFile, run: str, overrides: Sequence[str]) -> Experiment:
    """Return the pick's experiment with overrides, in the run's current directory."""
    values = {**deepcopy(pick.experiment), "run": {"dir": run}}
    _override(values, overrides)
    return _validated(Experiment, values, f"{pick.path}: experiment")


def _override(values: dict[str, Any], overrides: Sequence[str]) -> None:
    """Apply overrides to `values` in place.

    Raises:
        InputError: a retraining may not change the key, or an override cannot be applied.
    """
    faults = [
        f"override {override!r}: a retraining accepts only keys of {', '.join(OVERRIDES)}"
        for override in overrides
        if override.partition("=")[0].split(".")[0].strip() not in OVERRIDES
    ]
    if faults := faults + apply_overrides(values, overrides):
        raise InputError("\n  ".join(["-o: cannot be used", *faults]))


def _made(pick: PickFile, command: str, seeds: range, overrides: Sequence[str]) -> dict[str, Any]:
    """Return further entries of the manifests, besides config, data and teacher."""
    return {
        "command": command,
        "study": pick.study,
        "seeds": list(seeds),
        "overrides": list(overrides),
    }


def _seeds(experiment: Experiment, count: int) -> range:
    """Return seeds that the search did not use."""
    return range(experiment.seed + 1, experiment.seed + 1 + count)


def _jobs(
    pick: PickFile, experiment: Experiment, seeds: int, epochs: int | None, with_baselines: bool
) -> Iterator[Job]:
    for chosen in pick.picks:
        searched = _validated(DistillConfig, chosen.config, f"{pick.path}: config of trial {chosen.number}")
        length = epochs or FULL_BUDGET * searched.epochs
        for seed in _seeds(experiment, seeds):
            config = searched.model_copy(update={"epochs": length, "seed": seed})
            kinds = {STUDENT: config, **(baselines(config) if with_baselines else {})}
            for kind, variant in kinds.items():
                yield Job(chosen.number, kind, variant)


def _validated(model: type[Model], values: Any, where: str) -> Model:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise InputError("\n  ".join([f"{where} cannot be used", *fault_lines(error, model)])) from None


def _check_teacher_there(pick: PickFile, experiment: Experiment, folder: Folder) -> None:
    if experiment.teacher.checkpoint is None and not (folder.path / TEACHER_FILE).exists():
        teacher = join(folder.place, TEACHER_FILE)
        raise InputError(f"{pick.path}: the teacher of its run is gone: {teacher} does not exist")


def _setup(
    pick: PickFile,
    experiment: Experiment,
    folder: Folder,
    library: bool,
    progress: Progress | None,
    settings: Sequence[Settings] = (),
) -> tuple[Prepared, Library | None]:
    """Prepare data, teacher, costs, library and stages of the run; check that the teacher is the search's."""
    setup, made = prepared(
        experiment, folder, test=True, library=library, settings=settings, progress=progress
    )
    picked, found = pick.teacher.get("hash"), setup.teacher.record.hash
    if picked != found:
        raise InputError(
            f"{pick.path}: its students were made from the teacher {picked}, but the teacher of its run in "
            f"{folder.place} is {found}"
        )
    return setup, made


def _shared(setup: Prepared, models: Folder, made: Mapping[str, Any], modules: Modules | None) -> Shared:
    experiment = setup.experiment
    return Shared(
        data=setup.data.to_arrays(),
        teacher=Teacher(setup.teacher.model.cpu(), setup.teacher.record),
        blocks=setup.blocks,
        runtime=trial_runtime(experiment),
        data_config=experiment.data,
        folder=models.place if models.remote else str(models.path.absolute()),
        made=made,
        modules=modules,
        stages=setup.stages,
    )


def _present(folder: Path) -> Iterator[Job]:
    """Yield the jobs of the models that earlier commands finished in `folder`."""
    for file in sorted(folder.glob(f"trial-*/*/seed-*/{MANIFEST}")):
        try:
            manifest = json.loads(file.read_text())
            number = int(file.parts[-4].removeprefix("trial-"))
            job = Job(number, manifest["kind"], DistillConfig.model_validate(manifest["config"]))
        except (ValueError, KeyError, TypeError) as fault:
            raise InputError(
                f"{file}: not a manifest of a retrained model ({fault}); remove its folder"
            ) from None
        if job.kind in KINDS and file.parent == folder / job.folder:
            yield job
