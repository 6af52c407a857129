"""Decoding jobs spread over processes.

Fresh interpreters fed through pipes, not `multiprocessing`: forking would copy the locks of torch's and Ray's
threads as they are, and spawning runs the caller's main module again in every process, which fails in scripts
without a `__main__` guard and is slow where that module imports torch.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from queue import SimpleQueue
from typing import BinaryIO

from trainables.data.decoding import Failure, Job, decode_job

SERIAL_BELOW = 512  # fewer images than this are decoded before a process has started

Results = list[str | Failure]


def run_jobs(jobs: Sequence[Job]) -> Iterator[tuple[Job, Results]]:
    """Every job with the results of `decode_job`, as they get done; here if there are few images."""
    workers = min(_cores(), len(jobs))
    if workers < 2 or sum(len(job.files) for job in jobs) < SERIAL_BELOW:
        yield from ((job, decode_job(job)) for job in jobs)
        return
    with ExitStack() as stack:
        idle: SimpleQueue[subprocess.Popen[bytes]] = SimpleQueue()
        for _ in range(workers):
            idle.put(stack.enter_context(_process()))
        # One thread per process, waiting for its answers.
        threads = stack.enter_context(ThreadPoolExecutor(workers))
        running = {threads.submit(_hand_over, job, idle): job for job in jobs}
        try:
            for future in as_completed(running):
                yield running[future], future.result()
        finally:
            threads.shutdown(wait=True, cancel_futures=True)


def serve(jobs: BinaryIO, results: BinaryIO) -> None:
    """What a decoding process does: read pickled jobs to the end, write the pickled results of each."""
    while True:
        try:
            job = pickle.load(jobs)
        except EOFError:
            return
        pickle.dump(decode_job(job), results)
        results.flush()


@contextmanager
def _process() -> Iterator[subprocess.Popen[bytes]]:
    """A decoding process, ended afterwards."""
    code = "import sys; from trainables.decodepool import serve; serve(sys.stdin.buffer, sys.stdout.buffer)"
    paths = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        start_new_session=True,  # Ctrl-C is for the parent alone, which ends this one
    )
    assert process.stdin and process.stdout
    try:
        yield process
    finally:
        with suppress(BrokenPipeError):  # it died with a job half written
            process.stdin.close()
        process.stdout.close()
        process.wait()


def _hand_over(job: Job, idle: SimpleQueue[subprocess.Popen[bytes]]) -> Results:
    process = idle.get()
    assert process.stdin and process.stdout
    try:
        pickle.dump(job, process.stdin)
        process.stdin.flush()
        results: Results = pickle.load(process.stdout)
    except (EOFError, BrokenPipeError, pickle.UnpicklingError) as error:
        raise RuntimeError(
            f"a decoding process ended with exit code {process.wait()} between {job.files[0]} and"
            f" {job.files[-1]} of {job.folder}; was memory short?"
        ) from error
    finally:
        idle.put(process)
    return results


def _cores() -> int:
    """Cores this process may use; a container often has fewer than the machine."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
