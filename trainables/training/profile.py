"""Profile an epoch with `torch.profiler`: a file for a trace viewer, a table of the longest operations."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from trainables.training.loop import Distiller
from trainables.training.metrics import EpochMetrics

MAX_STEPS = 50  # profiled steps: traces grow by some MB every ten steps
PROFILE = "profile"  # folder in the run directory
ROWS = 40  # of the table
CLAIM = ".claimed"  # file that marks that a trial is, or was, profiled


def profile_folder(run_dir: Path) -> Path:
    """Return the folder of a run's profile and release its claim, so that a new trial is profiled."""
    folder = (run_dir / PROFILE).absolute()
    (folder / CLAIM).unlink(missing_ok=True)
    return folder


def claim(folder: Path) -> bool:
    """Make the folder and claim it; return True for the first caller alone."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        os.close(os.open(folder / CLAIM, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def profiled_epoch(distiller: Distiller, folder: Path, name: str) -> EpochMetrics:
    """Run the distiller's next epoch, its first `MAX_STEPS` steps under the profiler.

    Writes `<name>.trace.json` (Chrome's trace format; Perfetto and chrome://tracing show it) and `<name>.txt`
    (operations sorted by self time) into `folder`.
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
    """Run the profiler; stop it when the callable gets step `MAX_STEPS`, or at the end of the block."""
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
