"""The experiment's limits on trained metrics hold in the front, in picks and in the hypervolume."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest

from analysis.errors import InputError
from analysis.picks.pick import pick
from analysis.report import tables
from analysis.report.write import write_report
from analysis.runs.run import Run
from analysis.runs.status import status

Make = Callable[..., optuna.Study]


def limited(study: optuna.Study, *limits: tuple[str, str, float]) -> Run:
    attrs: list[dict[str, Any]] = [
        {"metric": metric, "op": op, "limit": value, "text": f"{metric} {op} {value}"}
        for metric, op, value in limits
    ]
    study.set_user_attr("constraints", attrs)
    return Run.open(study)


def test_a_limit_on_accuracy_holds_in_front_pick_and_hypervolume(make_study: Make) -> None:
    study = make_study()
    free = Run.open(study)
    median = float(free.front()["val_accuracy"].median())
    run = limited(study, ("flops", "<=", 1e12), ("val_accuracy", ">=", median))
    assert [limit.metric for limit in run.limits] == ["val_accuracy"], "costs are checked before training"
    assert (run.front()["val_accuracy"] >= median).all()
    assert len(run.front()) < len(free.front())
    assert {p.number for p in pick(run, top=99)} == set(run.front()["number"])
    (knee,) = pick(run, knee=True)
    assert "within val_accuracy >= " in knee.reason
    assert status(run)["hypervolume"] < status(free)["hypervolume"]
    assert tables.history(run)["hypervolume"].iloc[-1] == pytest.approx(status(run)["hypervolume"])
    roles = tables.points(run)["role"].value_counts()
    assert (
        roles["outside the limits"]
        == (free.trials["val_accuracy"] < median)[free.trials["state"] == "COMPLETE"].sum()
    )


@pytest.mark.parametrize(
    ("limit", "why"),
    [
        (("val_accuracy", ">=", 0.999), r"breaks val_accuracy >= 99\.90 % by \d+\.\d\d points"),
        (("val_loss", "<=", 1e-6), r"breaks val_loss <= 0\.0000 by "),
        (("val_loss", "<=", 0.0), r"breaks val_loss <= 0\.0000 by "),
    ],
)
def test_limits_that_nothing_keeps_name_the_nearest_miss(
    make_study: Make, tmp_path: Path, limit: tuple[str, str, float], why: str
) -> None:
    run = limited(make_study(), limit)
    for question in (run.front, lambda: pick(run, knee=True), lambda: pick(run, max=["flops=1x"])):
        with pytest.raises(InputError, match=f"none of 30 fully trained trials is within .*nearest .*{why}"):
            question()
    report = write_report(run, tmp_path)
    assert "None of 30 fully trained trials is within" in report.index.read_text()
    assert "None of 30 fully trained trials is within" in report.summary.read_text()
    assert status(run)["front"] == []


def test_two_limits_at_once_and_one_of_an_untrained_teacher(make_study: Make) -> None:
    study = make_study()
    run = limited(
        study, ("val_accuracy", ">=", 0.5), ("val_loss", "<=", 0.4), ("val_loss", "<=", float("nan"))
    )
    assert len(run.limits) == 2
    front = run.front()
    assert (front["val_accuracy"] >= 0.5).all() and (front["val_loss"] <= 0.4).all()
