"""A `torch.profiler` trace of one epoch: a file for a trace viewer, and a table of its longest operations."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from trainables.training.loop import Distiller
from trainables.training.metrics import EpochMetrics

MAX_STEPS = 50  # of the epoch: traces grow by some MB every ten steps
PROFILE = "profile"  # folder of the run directory
ROWS = 40  # of the table
CLAIM = ".claimed"  # whose presence says that a trial is, or was, profiled


def profile_folder(run_dir: Path) -> Path:
    """Where a run's profile goes; a search that begins there makes a new one."""
    folder = (run_dir / PROFILE).absolute()
    (folder / CLAIM).unlink(missing_ok=True)
    return folder


def claim(folder: Path) -> bool:
    """Whether this process is the first to ask; the folder is made."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        os.close(os.open(folder / CLAIM, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def profiled_epoch(distiller: Distiller, folder: Path, name: str) -> EpochMetrics:
    """Run the distiller's next epoch, its first `MAX_STEPS` steps under the profiler.

    Writes `<name>.trace.json` (Chrome's trace format; Perfetto and chrome://tracing show it) and `<name>.txt`
    (operations by their own time) into `folder`.
    """
    cuda = distiller.runtime.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    recorder = profile(activities=activities, record_shapes=True)
    with _first_steps(recorder) as after_step:
        metrics = distiller.run_epoch(after_step)
    recorder.export_chrome_trace(str(folder / f"{name}.trace.json"))
    order = "self_cuda_time_total" if cuda else "self_cpu_time_total"
    table = recorder.key_averages().table(sort_by=order, row_limit=ROWS, max_name_column_width=60)
    head = (
        f"{name}: epoch {metrics.epoch}, its first {MAX_STEPS} steps at most, on {distiller.runtime}\n"
        f"the whole epoch, in seconds, slowed down by the profiler: data {metrics.data_seconds:.3f}, "
        f"steps {metrics.step_seconds:.3f}, validation {metrics.eval_seconds:.3f}; "
        f"{metrics.images_per_second:.0f} images/s\n\n"
    )
    (folder / f"{name}.txt").write_text(head + table + "\n")
    return metrics


@contextmanager
def _first_steps(recorder: torch.profiler.profile) -> Iterator[Callable[[int], None]]:
    """The profiler runs until the callable has been told of step `MAX_STEPS`, or to the end of the body."""
    running = True

    def stop() -> None:
        nonlocal running
        if running:
            running = False
            recorder.stop()

    def after_step(done: int) -> None:
        if done >= MAX_STEPS:
            stop()

    recorder.start()
    try:
        yield after_step
    finally:
        stop()
