"""The benchmark of long studies: its study is one as a search writes it."""

from __future__ import annotations

from pathlib import Path

import pytest

from analysis.picks.pick import pick
from analysis.runs.run import Run
from benchmarks.report import TEACHER, make_run, measure


def test_its_study_has_every_kind_of_trial_and_can_be_picked_from(tmp_path: Path) -> None:
    run = Run.open(make_run(tmp_path / "large", 60))
    table = run.trials
    assert len(table) == 60
    assert set(table["state"]) >= {"COMPLETE", "PRUNED"} and (table["refused"] != "").any()
    (chosen,) = pick(run, max={"latency_ms": "0.8x"})
    assert chosen.costs["latency_ms"] <= 0.8 * TEACHER["latency_ms"]


def test_a_command_that_fails_is_no_measurement(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeError, match=r"ama pick .*: exit code 2"):
        measure(["pick", str(tmp_path / "nothing")])
    assert "nothing does not exist" in capfd.readouterr().err
    found = measure(["--help"])
    assert found["seconds"] > 0 and found["cpu_seconds"] > 0 and 0.01 < found["gib"] < 2
