"""Trials that break under a search: killed workers, no memory, damaged checkpoints; and Ctrl-C."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest
from faultbench import Bench, check_epochs, check_rows, key_of, wait_until
from optuna.trial import FrozenTrial

from trainables.trial import CHECKPOINT_FILE

EPOCHS = 12


def slow_bench(folder: Path, teacher: Path, trials: int = 2, **environment: str) -> Bench:
    """Trials of twelve epochs, half a second each at least, that no rung stops."""
    return Bench(
        folder,
        teacher,
        environment={"AMA_TEST_SECONDS": "0.5", **environment},
        budget={"trials": trials, "epochs": EPOCHS, "grace_epochs": EPOCHS},
    )


def both_trained(bench: Bench, process: subprocess.Popen[bytes], epochs: int) -> list[FrozenTrial]:
    """The rows of two trials, once both have so many epochs."""

    def found() -> list[FrozenTrial]:
        assert process.poll() is None, bench.said()
        rows = bench.rows()
        return rows if sum(row.user_attrs.get("epochs", 0) >= epochs for row in rows) == 2 else []

    rows: list[FrozenTrial] = wait_until(found, f"two trials of {epochs} epochs")
    return rows


def checkpoints(run: Path, number: int) -> list[Path]:
    """Files of a trial's checkpoints, newest first."""
    return sorted(run.glob(f"trials/{number:05d}-*/checkpoint_*/{CHECKPOINT_FILE}"), reverse=True)


def cut_short(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1000])


def epochs_of(bench: Bench, row: FrozenTrial) -> list[int]:
    return [line.epoch for line in bench.epochs() if line.key == key_of(row)]


@pytest.mark.faults
def test_damaged_checkpoints_are_passed_over_in_a_moved_run(tmp_path: Path, teacher: Path) -> None:
    bench = slow_bench(tmp_path, teacher)
    process = bench.start()
    first, second = both_trained(bench, process, 4)
    bench.kill(first=process.pid)
    newest, *older = checkpoints(bench.run, first.number)
    assert older, "two are kept"
    cut_short(newest)
    for file in checkpoints(bench.run, second.number):
        cut_short(file)
    before = {row.number: len(epochs_of(bench, row)) for row in (first, second)}
    shutil.move(bench.run, tmp_path / "elsewhere")
    bench.run, bench.url = tmp_path / "elsewhere", f"sqlite:///{tmp_path}/elsewhere/study.db"
    said = bench.finish(bench.start("--resume", "--out", str(bench.run)))
    check_rows(bench, trials=2)
    assert f"trial {second.number} starts from scratch" in said, said
    went_back = epochs_of(bench, first)[before[first.number]]
    # One epoch for the damaged file, one for the checkpoint that the kill may have kept from being written.
    assert before[first.number] - 1 <= went_back <= before[first.number]
    assert epochs_of(bench, second)[before[second.number] :] == list(range(1, EPOCHS + 1))
    lost = {row.number: row.user_attrs.get("epochs_lost", 0) for row in bench.rows()}
    assert lost[second.number] >= 4


@pytest.mark.faults
def test_a_retried_trial_passes_over_its_damaged_checkpoint(tmp_path: Path, teacher: Path) -> None:
    bench = slow_bench(tmp_path, teacher)
    process = bench.start()
    victim, other = both_trained(bench, process, 4)
    (pid,) = {line.pid for line in bench.epochs("began") if line.key == key_of(victim)}
    os.kill(pid, signal.SIGSTOP)  # so that no newer checkpoint comes between
    cut_short(checkpoints(bench.run, victim.number)[0])
    os.kill(pid, signal.SIGKILL)
    said = bench.finish(process)
    assert f"trial {victim.number} continues from its last checkpoint after: " in said, said
    check_rows(bench, trials=2)
    repeated = [epoch for epoch, times in Counter(epochs_of(bench, victim)).items() if times > 1]
    assert len(repeated) <= 2, epochs_of(bench, victim)
    assert epochs_of(bench, other) == list(range(1, EPOCHS + 1)), "nothing happened to this one"
    assert {row.number: row.user_attrs.get("retries") for row in bench.rows()} == {
        victim.number: 1,
        other.number: None,
    }


@pytest.mark.faults
def test_a_trial_without_memory_fails_with_the_reason(tmp_path: Path, teacher: Path) -> None:
    # Ray's own guard, told that the machine's memory is always short.
    guard = {"RAY_memory_usage_threshold": "0.001", "RAY_memory_monitor_refresh_ms": "200"}
    bench = slow_bench(tmp_path, teacher, trials=1, **guard)
    said = bench.finish(bench.start(), code=1)
    (row,) = bench.rows()
    assert row.state.name == "FAIL" and row.user_attrs["retries"] == 2
    assert "memory" in row.user_attrs["reason"], row.user_attrs["reason"]
    assert "could not be measured (OutOfMemoryError: " in said, "Ray itself would try for ever"
    assert "1 of 1 trials failed, most with: " in said and "Traceback" not in said, said


@pytest.mark.faults
def test_ctrl_c_twice_ends_at_once(tmp_path: Path, teacher: Path) -> None:
    bench = slow_bench(tmp_path, teacher)
    process = bench.start()
    both_trained(bench, process, 3)
    os.killpg(process.pid, signal.SIGINT)
    time.sleep(0.2)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGINT)
    process.wait(60)
    assert "Traceback" not in bench.said(), bench.said()
    wait_until(lambda: not list(bench.processes()), "the end of Ray", 60)
    bench.finish(bench.start("--resume"))
    check_rows(bench, trials=2)
    check_epochs(bench, 1)
