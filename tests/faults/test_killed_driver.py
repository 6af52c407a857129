"""A search whose driver is killed at random moments, Ray with it, and resumed.

    AMA_FAULT_RUNS=30 python -m pytest tests/faults/test_killed_driver.py -m faults -s

A run is named by its seed: AMA_FAULT_FIRST=17 AMA_FAULT_RUNS=1 repeats one.
"""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import pytest
from faultbench import Bench, check_epochs, check_rows, ended_rows
from server import Postgres

RUNS = int(os.environ.get("AMA_FAULT_RUNS", "30"))
FIRST = int(os.environ.get("AMA_FAULT_FIRST", "0"))
LIKELY_EPOCHS = 40  # of a run: kills are spread over so many
START_SECONDS = 15.0  # within which one kill in four strikes: the start of a session


def survive(bench: Bench, chance: random.Random) -> dict[str, float]:
    """Search, kill and resume until the search ends by itself; figures of the run."""
    moments = sorted(chance.randrange(LIKELY_EPOCHS) for _ in range(chance.randint(1, 3)))
    kills, began = 0, time.monotonic()
    process = bench.start()
    for moment in moments:
        if chance.random() < 0.25:
            process_lives = _alive_after(chance.uniform(0, START_SECONDS), process)
        else:
            process_lives = bench.wait_for_epochs(moment, process) and _alive_after(chance.random(), process)
        if not process_lives:
            break
        bench.kill(first=process.pid)
        process.wait()
        kills += 1
        ended, trained = ended_rows(bench), len(bench.epochs())
        # Before the first trial there is no run to be resumed.
        process = bench.start(*(["--resume"] if (bench.run / "experiment.yaml").exists() else []))
    said = bench.finish(process)
    assert "all trials used" in said or "are done already" in said
    check_rows(bench)
    again = check_epochs(bench, kills)
    if kills:
        after = ended_rows(bench)
        assert {key: after[key] for key in ended} == ended, "an ended row was written again"
        assert not {line.key for line in bench.epochs()[trained:]} & set(ended), (
            "an ended trial was trained on"
        )
    return {"kills": kills, "epochs again": again, "seconds": round(time.monotonic() - began)}


def _alive_after(seconds: float, process: object) -> bool:
    time.sleep(seconds)
    return process.poll() is None  # type: ignore[attr-defined]


@pytest.mark.faults
@pytest.mark.parametrize("seed", range(FIRST, FIRST + RUNS))
def test_killed_and_resumed(seed: int, tmp_path: Path, teacher: Path) -> None:
    figures = survive(Bench(tmp_path, teacher), random.Random(seed))
    print(f"sqlite {seed}: {figures}", flush=True)


@pytest.mark.faults
@pytest.mark.parametrize("seed", range(FIRST, FIRST + RUNS))
def test_killed_and_resumed_on_postgresql(
    seed: int, tmp_path: Path, teacher: Path, postgres: Postgres
) -> None:
    url = postgres.create(f"killed{seed}")
    figures = survive(Bench(tmp_path, teacher, study=url), random.Random(1000 + seed))
    print(f"postgresql {seed}: {figures}", flush=True)
