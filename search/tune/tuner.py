"""Configure Ray Tune for a search: trainable, checkpoints, stopping."""

from __future__ import annotations

from pathlib import Path

from ray import tune
from ray.tune.execution import class_cache
from ray.tune.experiment import Trial

from search.run_dir.folder import TRIALS, Folder
from search.stages.prepare import Prepared
from search.stages.tuned_runtime import tuned_runtime
from search.tune.callback import StudyCallback
from search.tune.checkpoints import storage_of
from search.tune.scheduler import RungScheduler
from search.tune.searcher import StudySearcher
from search.tune.stopper import End
from trainables.library.library import Library
from trainables.trial import DistillTrial, TrialContext

MAX_FAILURES = 2  # retries of a trial, from its last checkpoint
# Ray Tune copies these variables to its trials in a runtime environment, which nodes write to their logs.
SECRETS = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SECURITY_TOKEN", "AWS_SESSION_TOKEN"}


def make_tuner(
    setup: Prepared,
    folder: Folder,
    library: Library | None,
    searcher: StudySearcher,
    scheduler: RungScheduler,
    concurrent: int,
    session: int,
    deadline: float | None,
    profile: Path | None = None,
) -> tune.Tuner:
    """Create the Tuner that runs the trials of `searcher`, with files in `trials` of the run directory.

    With a profile folder, the first trial that reaches its second epoch writes a profile of it there.
    """
    # A node gets its credentials for the store from its environment; the preflight checked that.
    class_cache.ENV_VARS_TO_PROPAGATE -= SECRETS
    resources = setup.experiment.resources
    context = TrialContext(
        data=setup.data.to_arrays(),
        teacher=setup.teacher.model.cpu(),
        blocks=setup.blocks,
        runtime=tuned_runtime(setup),
        modules=library.modules if library else None,
        stages=setup.stages,
        profile=str(profile) if profile else None,
    )
    trainable = tune.with_resources(
        tune.with_parameters(DistillTrial, context=context), {"cpu": resources.cpu, "gpu": resources.gpu}
    )

    def dirname(trial: Trial) -> str:
        # A row resumed in a later session gets a separate folder, because Ray counts checkpoints from 0.
        return f"{trial.config['number']:05d}-{session}"

    storage = storage_of(folder)
    return tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            scheduler=scheduler,
            num_samples=-1,
            # Without this, Ray keeps one pending trial, and an autoscaler does not see the demand.
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
