"""Ray Tune as a search uses it: what runs, where its checkpoints go, when it ends."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from optuna.trial import FrozenTrial
from ray import tune
from ray.tune import Stopper
from ray.tune.execution import class_cache
from ray.tune.experiment import Trial

from analysis.runs.object_store import Store, is_remote, join
from search.run_dir.folder import TRIALS, Folder
from search.stages.setup import Setup
from search.stages.tuned_runtime import tuned_runtime
from search.tune.callback import StudyCallback
from search.tune.scheduler import RungScheduler
from search.tune.searcher import StudySearcher
from trainables.library.build import Library
from trainables.trial import CHECKPOINT_FILE, DistillTrial, TrialContext

MAX_FAILURES = 2  # a trial is tried again this often, from its last checkpoint
# Ray Tune sends these from the driver to its trials in a runtime environment, which nodes log word for word.
SECRETS = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SECURITY_TOKEN", "AWS_SESSION_TOKEN"}
_CHECKPOINT = re.compile(r"(\d+)-(\d+)/checkpoint_(\d+)")


class End(Stopper):  # type: ignore[misc]
    """Ends the whole search when its wall time is over, its trials only fail, or the searcher halts it."""

    def __init__(self, searcher: StudySearcher, deadline: float | None) -> None:
        self._searcher = searcher
        self._deadline = deadline

    def __getstate__(self) -> dict[str, Any]:
        return {}  # pickled into the run directory with the Tuner; holds nothing worth restoring

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """No trial is stopped alone."""
        return False

    def stop_all(self) -> bool:
        """Whether all end."""
        over = self._searcher.hopeless or self._searcher.halted is not None
        return over or (self._deadline is not None and time.monotonic() > self._deadline)


def make_tuner(
    setup: Setup,
    folder: Folder,
    library: Library | None,
    searcher: StudySearcher,
    scheduler: RungScheduler,
    concurrent: int,
    session: int,
    deadline: float | None,
    profile: Path | None = None,
) -> tune.Tuner:
    """A Tuner whose trials are those of `searcher`; Ray writes them below `trials` of the run directory.

    The first trial that gets to its second epoch leaves a profile of it in the folder `profile`.
    """
    # A node reaches the store by its own environment, as the preflight has made sure.
    class_cache.ENV_VARS_TO_PROPAGATE -= SECRETS
    resources = setup.experiment.resources
    context = TrialContext(
        data=setup.data.to_arrays(),
        teacher=setup.teacher.model.cpu(),
        blocks=setup.blocks,
        runtime=tuned_runtime(setup),
        modules=library.modules if library else None,
        profile=str(profile) if profile else None,
    )
    trainable = tune.with_resources(
        tune.with_parameters(DistillTrial, context=context), {"cpu": resources.cpu, "gpu": resources.gpu}
    )

    def dirname(trial: Trial) -> str:
        # A row taken up again by a later session gets a folder of its own: Ray counts checkpoints from 0.
        return f"{trial.config['number']:05d}-{session}"

    storage = storage_of(folder)
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
            storage_path=storage,
            verbose=0,
            stop=End(searcher, deadline),
            # Ray names checkpoints without the scheme of a URI.
            callbacks=[StudyCallback(searcher, storage.rpartition("://")[2])],
            failure_config=tune.FailureConfig(max_failures=MAX_FAILURES),
            checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=1, num_to_keep=2),
        ),
    )


def storage_of(folder: Folder) -> str:
    """Where Ray puts what trials write: the run directory itself, never its working copy."""
    return folder.place if folder.remote else str(folder.path.absolute())


def checkpoints(folder: Folder, rows: Sequence[FrozenTrial]) -> dict[int, list[str]]:
    """Checkpoint folders of interrupted rows by number, newest first: a later session's go before.

    By the numbers in their names: the files' times do not outlive a move of the run.
    """
    storage = storage_of(folder)
    if not rows:
        return {}
    if is_remote(storage):
        files = list(Store.open(storage).sizes(TRIALS))
    else:
        root = Path(storage)
        files = [
            file.relative_to(root).as_posix()
            for row in rows
            for file in (root / TRIALS).glob(f"{row.number:05d}-*/checkpoint_*/{CHECKPOINT_FILE}")
        ]
    found: dict[int, list[tuple[int, int, str]]] = {row.number: [] for row in rows}
    for file in files:
        path = PurePosixPath(file)
        match = _CHECKPOINT.fullmatch("/".join(path.parts[1:3]))
        if match and path.name == CHECKPOINT_FILE and int(match[1]) in found:
            found[int(match[1])].append((int(match[2]), int(match[3]), join(storage, str(path.parent))))
    return {number: [place for *_, place in sorted(ages, reverse=True)] for number, ages in found.items()}
