"""Run the stages before and after the trials on the same kind of device as the trials.

On one machine they run in this process. If the driver has no GPU (or too few CPUs), these stages (teacher,
cost table, library, final latencies) run as tasks on a worker, each with whole GPUs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ray
import torch
from ray.exceptions import RayError, RayTaskError

from search.cluster.connection import cause_of
from search.cluster.slots import fits
from search.errors import FailedError
from search.experiment.experiment import Experiment
from search.experiment.sections import Resources, StorageConfig
from search.run_dir.folder import Folder, at, working_folder
from search.stages.library import get_library
from search.stages.method_stages import Settings, with_stages
from search.stages.prepare import Prepared, prepare
from search.stages.progress import Progress
from trainables.blocks.blocks import Block
from trainables.config import StudentSpec
from trainables.costs.latency import measure_many
from trainables.costs.table import CostTable
from trainables.data.dataset import ImageData
from trainables.errors import InputError
from trainables.library.library import Library
from trainables.methods.base import Stages
from trainables.runtime.runtime import Runtime
from trainables.student.build import build_student
from trainables.teacher.teacher import Teacher

RETRIES = 3  # retries of a task whose worker was lost
LOOK_SECONDS = 1.0  # interval between two queries of a task's progress


def is_driver_short(resources: Resources) -> bool:
    """Return True if this process lacks a trial's resources: CPUs or GPUs of its node, or a visible GPU."""
    here = ray.get_runtime_context().get_node_id()
    mine: dict[str, float] = next((node["Resources"] for node in ray.nodes() if node["NodeID"] == here), {})
    return not fits(resources, mine) or (resources.gpu > 0 and not torch.cuda.is_available())


def prepared(
    experiment: Experiment,
    folder: Folder,
    *,
    test: bool = False,
    library: bool = False,
    settings: Sequence[Settings] = (),
    progress: Progress | None = None,
) -> tuple[Prepared, Library | None]:
    """Run `prepare` and optionally make the module library. Ray must be connected.

    Args:
        experiment: the experiment to prepare.
        folder: its run directory.
        test: also read the test data.
        library: also make or read the library.
        settings: methods whose stages to run too, each with its settings.
        progress: progress callback.

    Raises:
        InputError: as `prepare`.
        FailedError: the workers died.
    """
    if not is_driver_short(experiment.resources):
        setup = prepare(at(experiment, folder), test=test, progress=progress)
        modules = get_library(setup, progress) if library else None
        return with_stages(setup, folder, settings, progress), modules
    # Without the database URL: its password must not be sent with a task.
    bare = experiment.model_copy(update={"storage": StorageConfig()})
    place = folder.place if folder.remote else str(folder.path.absolute())
    folder.push()
    task = (bare, place, test, library, settings)
    made: _Made = _on_worker(_prepare, experiment.resources, progress, *task)
    setup = Prepared(
        at(experiment, folder),
        folder.path,
        made.runtime,
        ImageData.from_arrays(made.data),
        made.teacher,
        made.blocks,
        made.costs,
        made.teacher_scores,
        made.stages,
    )
    return setup, made.library


def latencies(setup: Prepared, students: Mapping[str, StudentSpec]) -> dict[str, float]:
    """Measure the latency (ms) of whole students end to end, by name.

    Ray must be connected, and no trial may use the device.
    """
    costs, seconds = setup.costs, setup.experiment.costs.seconds
    runtime = replace(setup.runtime, threads=costs.threads)
    task = (setup.teacher.model.cpu(), setup.blocks, dict(students), costs, runtime, seconds)
    if not is_driver_short(setup.experiment.resources):
        return _measure(lambda *_: None, *task)
    measured: dict[str, float] = _on_worker(_measure, setup.experiment.resources, None, *task)
    return measured


@dataclass(frozen=True)
class _Made:
    """A `Prepared` as sent from a worker; its arrays are shared through Ray's object store."""

    runtime: Runtime
    data: Mapping[str, Any]
    teacher: Teacher
    blocks: tuple[Block, ...]
    costs: CostTable
    library: Library | None
    teacher_scores: Mapping[str, float]
    stages: Stages


def _prepare(
    progress: Progress,
    experiment: Experiment,
    place: str,
    test: bool,
    library: bool,
    settings: Sequence[Settings],
) -> _Made:
    with working_folder(place) as folder:
        setup = prepare(at(experiment, folder), test=test, progress=progress)
        modules = get_library(setup, progress) if library else None
        setup = with_stages(setup, folder, settings, progress)
    teacher = Teacher(setup.teacher.model.cpu(), setup.teacher.record)
    return _Made(
        setup.runtime,
        setup.data.to_arrays(),
        teacher,
        setup.blocks,
        setup.costs,
        modules,
        setup.teacher_scores,
        setup.stages,
    )


def _measure(
    progress: Progress,
    teacher: torch.nn.Module,
    blocks: tuple[Block, ...],
    specs: Mapping[str, StudentSpec],
    costs: CostTable,
    runtime: Runtime,
    seconds: float,
) -> dict[str, float]:
    progress("measuring the front", 0, len(specs))
    shape = costs.image_shape
    students = {name: build_student(teacher, blocks, spec, image_shape=shape) for name, spec in specs.items()}
    example = torch.zeros(costs.batch_size, *costs.image_shape)
    found = measure_many(students, example, runtime, precision=costs.precision, seconds=seconds)
    return {name: latency.median_ms for name, latency in found.items()}


@ray.remote(num_cpus=0)  # type: ignore[untyped-decorator]
class _Board:
    """Actor that holds a task's progress."""

    def __init__(self) -> None:
        self._latest: tuple[str, int, int] | None = None

    def write(self, what: str, done: int, total: int) -> None:
        self._latest = (what, done, total)

    def read(self) -> tuple[str, int, int] | None:
        return self._latest


@ray.remote  # type: ignore[untyped-decorator]
def _task(board: Any, work: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    written = 0.0

    def progress(what: str, done: int, total: int) -> None:
        nonlocal written
        if time.monotonic() - written > LOOK_SECONDS:
            written = time.monotonic()
            board.write.remote(what, done, total)

    return work(progress, *arguments)


def _on_worker(
    work: Callable[..., Any], resources: Resources, progress: Progress | None, *arguments: Any
) -> Any:
    """Run `work(progress, *arguments)` on a worker with a trial's resources and whole GPUs.

    The GPUs are whole, because another process on the same GPU would distort measurements.
    """
    board = _Board.remote()  # type: ignore[attr-defined]
    task = _task.options(
        num_cpus=resources.cpu, num_gpus=math.ceil(resources.gpu), max_retries=RETRIES, name=work.__name__
    )
    waiting = task.remote(board, work, arguments)
    try:
        while not ray.wait([waiting], timeout=LOOK_SECONDS)[0]:
            if progress is not None:
                progress(*(ray.get(board.read.remote()) or ("waiting for a worker", 0, 1)))
        return ray.get(waiting)
    except RayTaskError as fault:
        if isinstance(fault.cause, InputError):
            raise InputError(str(fault.cause)) from None
        raise
    except RayError as fault:
        raise FailedError(f"a stage outside the trials failed on its worker: {cause_of(fault)}") from None
    finally:
        ray.kill(board)
