"""The quickstart's stages on an experiment of seconds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from analysis.picks.pick_file import read_pick
from analysis.runs.run import Run
from search.cli.quickstart import LIMIT, PRESET, free_place, run, run_experiment
from search.experiment.load import load_experiment
from trainables.errors import InputError


@pytest.fixture(scope="module")
def done(tiny_yaml: Path, tmp_path_factory: pytest.TempPathFactory, local_ray: None) -> Path:
    out = tmp_path_factory.mktemp("quick") / "run"
    overrides = [
        "constraints={flops: '<= 0.5x'}",
        "budget.trials=2",
        "budget.epochs=1",
        "budget.grace_epochs=1",
    ]
    run_experiment(load_experiment(tiny_yaml, overrides, out), "tiny", seeds=1)
    return out


def test_every_stage_leaves_its_files(done: Path) -> None:
    for name in (
        "experiment.yaml",
        "study.db",
        "teacher.safetensors",
        "costs.json",
        "pick.yaml",
        "retrained/results.md",
        "report/index.html",
    ):
        assert (done / name).exists(), name


def test_the_report_comes_last_and_holds_the_retrained_table(done: Path) -> None:
    summary = (done / "report" / "summary.md").read_text()
    for kind in ("student", "scratch", "finetune"):
        assert f"| {kind} |" in summary
    assert f"report {done}" not in summary
    assert (done / "report" / "index.html").stat().st_mtime >= (
        done / "retrained" / "results.json"
    ).stat().st_mtime


def test_the_picked_student_keeps_the_limit(done: Path) -> None:
    opened = Run.open(done)
    row = (done / "retrained" / "results.md").read_text().splitlines()[3]
    assert "student" in row
    number = int(row.split("|")[1])
    assert opened.trial(number).user_attrs["costs"]["flops"] <= 0.5 * opened.teacher["flops"]
    (picked,) = read_pick(done).picks
    assert LIMIT == "flops=0.5x"
    assert picked.number == number
    assert picked.reason.startswith("best val_accuracy of ")
    assert "(0.5x)" in picked.reason


def test_a_second_quickstart_in_the_same_place_is_refused(done: Path) -> None:
    with pytest.raises(InputError, match=f"--out: {done} already holds a run; look at {done}/report"):
        run(str(done))


def test_without_a_place_a_repeated_quickstart_takes_the_next(tmp_path: Path) -> None:
    base = str(tmp_path / "quick")
    assert free_place(base) == base
    for name, following in ((base, f"{base}-2"), (f"{base}-2", f"{base}-3")):
        Path(name).mkdir()
        assert free_place(base) == name, "an empty folder will do"
        (Path(name) / "experiment.yaml").touch()
        assert free_place(base) == following


def test_the_preset_is_what_the_quickstart_promises(ama: Callable[..., Any]) -> None:
    experiment = load_experiment(PRESET)
    assert experiment.data.name == "digits"
    assert experiment.budget.trials >= 30
    assert [o.metric for o in experiment.objectives] == ["val_accuracy", "flops"]
    assert "ama quickstart --out" in ama("quickstart", "--help").out
