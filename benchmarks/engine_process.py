"""Run a contender of `benchmarks.engine` in a separate process, so that its settings do not affect others.

The parent requests one epoch of one student at a time and waits, so that only one contender computes.
"""

from __future__ import annotations

import multiprocessing
import os
import time
import traceback
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks.engine_jobs import CONTENDERS, Job, load
from trainables.runtime.stopwatch import Stopwatch


@dataclass(frozen=True)
class Epoch:
    """One epoch of one student: training and validation."""

    seconds: float
    cpu_seconds: float  # of the process and its data workers
    accuracy: float  # on the validation images, 0..1


def cpu_seconds() -> float:
    """Return the CPU seconds of this process and, if /proc exists, of its living children."""
    total = time.process_time()
    for child in multiprocessing.active_children():
        stat = Path(f"/proc/{child.pid}/stat")
        if stat.exists():
            user, system = stat.read_text().rpartition(")")[2].split()[11:13]
            total += (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
    return total


def serve(name: str, job: Job, connection: Connection) -> None:
    """Send the runtime, then train one epoch of each requested student, until None is requested."""
    # Data workers inherit "spawn" from this process; a user's program has the platform's default.
    multiprocessing.set_start_method(multiprocessing.get_all_start_methods()[0], force=True)
    try:
        parts = load(job)
        connection.send({"precision": parts.runtime.precision, "channels_last": parts.runtime.channels_last})
        built: dict[str, Any] = {}
        while (student := connection.recv()) is not None:
            if student not in built:
                built[student] = CONTENDERS[name](parts, student)
            watch, cpu = Stopwatch(parts.runtime.device), cpu_seconds()
            accuracy = built[student].run_epoch()
            watch.mark("epoch")
            seconds = watch.seconds()["epoch"]  # on a GPU waits for its events
            connection.send(Epoch(seconds, cpu_seconds() - cpu, accuracy))
    except (EOFError, BrokenPipeError):
        return  # the parent has ended
    except Exception:
        connection.send(traceback.format_exc())


class Contender:
    """The parent's connection to such a process; a context manager. `runtime` is the runtime of ours."""

    def __init__(self, name: str, job: Job) -> None:
        context = multiprocessing.get_context("spawn")
        self.name = name
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(name, job, theirs))
        self.process.start()
        theirs.close()
        self.runtime: dict[str, Any] = self._answer()

    def epoch(self, student: str) -> Epoch:
        """Train one epoch of `student`.

        Raises:
            RuntimeError: the epoch failed; the message is the traceback.
        """
        self.connection.send(student)
        epoch = self._answer()
        assert isinstance(epoch, Epoch)
        return epoch

    def _answer(self) -> Any:
        try:
            answer = self.connection.recv()
        except EOFError:
            answer = "the process ended without an answer"
        if isinstance(answer, str):
            raise RuntimeError(f"{self.name}: {answer}")
        return answer

    def __enter__(self) -> Contender:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.is_alive():
            self.connection.send(None)
        self.process.join()
