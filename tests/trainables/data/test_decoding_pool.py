import io
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trainables.data.image_files.decoding import SERIAL_BELOW, Failure, Job, run_jobs, serve

N = SERIAL_BELOW + 100
CHUNK = 64


@pytest.fixture
def jobs(tmp_path: Path) -> list[Job]:
    """N images whose grey value is their number, number 70 broken."""
    files = tuple(f"{i:04d}.png" for i in range(N))
    for i, name in enumerate(files):
        Image.new("L", (2, 2), i % 256).save(tmp_path / name)
    (tmp_path / files[70]).write_text("broken")
    array = tmp_path / "images.npy"
    np.save(array, np.zeros((N, 3, 2, 2), dtype=np.uint8))
    return [Job(tmp_path, files[i : i + CHUNK], array, i, 2, exact=True) for i in range(0, N, CHUNK)]


def children() -> set[str]:
    """Process ids of this process's children."""
    return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="reads /proc")
def test_every_job_comes_back_once_and_no_process_stays(jobs: list[Job]) -> None:
    before = children()
    seen = {}
    for job, results in run_jobs(jobs):
        seen[job.start] = results
        assert len(results) == len(job.files)
    assert sorted(seen) == [job.start for job in jobs]
    assert isinstance(seen[64][6], Failure)
    assert sum(isinstance(r, Failure) for results in seen.values() for r in results) == 1
    rows = np.load(jobs[0].array)[:, 1, 0, 0].tolist()
    assert rows == [0 if i == 70 else i % 256 for i in range(N)]
    assert children() <= before


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="reads /proc")
def test_stopping_early_ends_the_processes(jobs: list[Job]) -> None:
    before = children()
    running = run_jobs(jobs)
    next(running)
    running.close()  # type: ignore[attr-defined]
    assert children() <= before


def test_the_process_side_answers_every_job_in_turn(jobs: list[Job]) -> None:
    asked, answered = io.BytesIO(b"".join(pickle.dumps(job) for job in jobs[:3])), io.BytesIO()
    serve(asked, answered)
    answered.seek(0)
    lengths = [len(pickle.load(answered)) for _ in range(3)]
    assert lengths == [64, 64, 64] and answered.read() == b""


def test_few_images_are_decoded_here(jobs: list[Job]) -> None:
    few = jobs[: SERIAL_BELOW // CHUNK - 1]
    assert [job.start for job, _ in run_jobs(few)] == [job.start for job in few]


@pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2, reason="one core"
)
def test_a_process_that_dies_is_reported_with_its_files(jobs: list[Job]) -> None:
    # A missing array is a fault that `decode_job` does not expect.
    broken = [Job(job.folder, job.files, job.folder / "none.npy", job.start, 2, exact=True) for job in jobs]
    with pytest.raises(RuntimeError, match=r"a decoding process ended with exit code 1 between .*\.png"):
        list(run_jobs(broken))


def test_a_script_without_a_main_guard_can_decode(jobs: list[Job], tmp_path: Path) -> None:
    code = (
        "import sys, pickle; from trainables.data.image_files.decoding import run_jobs\n"
        "print(len(list(run_jobs(pickle.load(open(sys.argv[1], 'rb'))))), 'torch' in sys.modules)"
    )
    (tmp_path / "jobs.pickle").write_bytes(pickle.dumps(jobs))
    out = subprocess.run(
        [sys.executable, "-", str(tmp_path / "jobs.pickle")],
        input=code,
        capture_output=True,
        text=True,
        check=True,
    )
    assert out.stdout.split() == [str(len(jobs)), "False"]
