"""Run the training jobs of a retraining as tasks on Ray."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayError

from analysis.runs.object_store import join
from search.cluster.connection import cause_of
from search.cluster.slots import slots
from search.errors import FailedError
from search.experiment.sections import Resources
from search.run_dir.folder import working_folder
from search.stages.progress import Progress
from trainables.blocks.blocks import Block
from trainables.config import DataConfig, DistillConfig, RuntimeConfig
from trainables.data.dataset import ImageData
from trainables.finished.retrain import RetrainResult, retrain_one
from trainables.methods.base import Stages
from trainables.runtime.runtime import resolve
from trainables.student.start import Modules
from trainables.teacher.teacher import Teacher

CRASHES = 2  # restarts of a training run whose process died, from its checkpoint


@dataclass(frozen=True)
class Job:
    """One model to train: pick, kind and seed."""

    number: int
    kind: str
    config: DistillConfig

    @property
    def folder(self) -> str:
        """Path of the model, relative to the folder of all models."""
        return f"trial-{self.number}/{self.kind}/seed-{self.config.seed}"


@dataclass(frozen=True)
class Shared:
    """Shared inputs of all training runs; put into Ray's object store once."""

    data: Mapping[str, Any]  # `ImageData.to_arrays()`, test images included
    teacher: Teacher
    blocks: tuple[Block, ...]
    runtime: RuntimeConfig
    data_config: DataConfig
    folder: str
    made: Mapping[str, Any]  # for the manifests
    modules: Modules | None = None
    stages: Stages = field(default_factory=dict)

    def train(self, job: Job) -> RetrainResult:
        """Train and test the model of `job` in this process; if it is finished, read it back."""
        runtime = resolve(self.runtime)
        with working_folder(join(self.folder, job.folder)) as folder:
            return retrain_one(
                job.config,
                Teacher(self.teacher.model.to(runtime.device), self.teacher.record),
                self.blocks,
                ImageData.from_arrays(self.data),
                runtime,
                folder.path,
                self.modules,
                self.stages,
                kind=job.kind,
                data_config=self.data_config,
                made=self.made,
            )


@ray.remote  # type: ignore[untyped-decorator]
def _task(shared: Shared, job: Job) -> RetrainResult:
    return shared.train(job)


def train_jobs(
    jobs: Sequence[Job], shared: Shared, resources: Resources, done: int, progress: Progress | None
) -> dict[str, RetrainResult]:
    """Train `jobs` on Ray, as many at a time as `resources` and the cluster allow.

    Args:
        done: number of models finished before, for `progress`.

    Returns:
        The results by job folder.

    Raises:
        FailedError: some jobs failed; raised after all have ended.
    """
    at_once, total = slots(resources), done + len(jobs)
    task = _task.options(num_cpus=resources.cpu, num_gpus=resources.gpu, max_retries=CRASHES)
    reference = ray.put(shared)
    waiting = list(reversed(jobs))
    running: dict[Any, str] = {}  # Ray reference -> folder
    finished: dict[str, RetrainResult] = {}
    failed: dict[str, str] = {}
    while waiting or running:
        while waiting and len(running) < at_once:
            job = waiting.pop()
            running[task.remote(reference, job)] = job.folder
        if progress is not None:
            progress("retraining", done + len(finished) + len(failed), total)
        (ready, *_), _ = ray.wait(list(running))
        place = running.pop(ready)
        try:
            finished[place] = ray.get(ready)
        except RayError as fault:
            failed[place] = cause_of(fault)
    if progress is not None:
        progress("retraining", total, total)
    if failed:
        causes = "".join(f"\n  {place}: {cause}" for place, cause in failed.items())
        raise FailedError(
            f"{len(failed)} of {len(jobs)} training runs failed; the same command runs them again and keeps "
            f"the finished models in {shared.folder}{causes}"
        )
    return finished
