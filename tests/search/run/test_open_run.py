"""Open a run for reading: a library call that leaves the process as it was."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.report import make_run
from search.run.open_run import opened


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "large", 40)


def test_opening_a_run_leaves_the_garbage_collector_alone(run: Path) -> None:
    before = gc.get_freeze_count(), gc.isenabled(), gc.get_threshold()
    with opened(str(run)) as (study, folder):
        assert len(study.trials) == 40 and folder.path == run
        assert (gc.get_freeze_count(), gc.isenabled(), gc.get_threshold()) == before
    assert (gc.get_freeze_count(), gc.isenabled(), gc.get_threshold()) == before


@pytest.mark.parametrize("limit", ["flops=0.9x", "flops=1e-9x"])
def test_a_command_gives_the_garbage_collector_everything_back(
    run: Path, ama: Callable[..., Any], tmp_path: Path, limit: str
) -> None:
    gc.unfreeze()
    ended = ama("pick", run, "--max", limit, "--out", tmp_path / "pick.yaml")
    assert ended.code == (0 if limit == "flops=0.9x" else 2), ended.err
    assert gc.get_freeze_count() == 0
