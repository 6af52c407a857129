import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
import pytest
from PIL import Image
from scipy import stats

from analysis.compare.compare import Comparison, compare_runs
from analysis.compare.write import FIGURES, TABLES, group_table, markdown, write_comparison
from analysis.errors import InputError
from analysis.pareto import hypervolume
from analysis.runs.run import Run

Make = Callable[..., optuna.Study]


def run_of(study: optuna.Study, label: str, **attrs: Any) -> Run:
    """The study as a run of its own, with mappings merged into its attributes."""
    run = Run.open(study)
    changed = {
        key: {**run.attrs.get(key, {}), **value} if isinstance(value, dict) else value
        for key, value in attrs.items()
    }
    return replace(run, label=label, attrs={**run.attrs, **changed})


@pytest.fixture(scope="module")
def opened(make_study: Make) -> dict[str, Run]:
    """Three repeats of one experiment, and one run of another."""
    runs = {
        f"tpe-{seed}": run_of(
            make_study(seed=seed, complete=16 + 4 * seed), f"tpe-{seed}", experiment={"seed": seed}
        )
        for seed in range(3)
    }
    other = {"sampler": {"name": "random"}, "seed": 7, "run": {"dir": "elsewhere"}}
    runs["random"] = run_of(make_study(seed=9, complete=12), "random", experiment=other)
    return runs


@pytest.fixture(scope="module")
def found(opened: dict[str, Run]) -> Comparison:
    return compare_runs(list(opened.values()))


def test_repeats_are_runs_that_differ_in_seed_and_places_alone(found: Comparison) -> None:
    assert found.groups["n"].tolist() == [3, 1]
    assert found.runs["run"].tolist() == ["tpe-0", "tpe-1", "tpe-2", "random"]
    assert found.groups["group"].tolist() == ["sampler.name None", "sampler.name random"]


def test_a_runs_hypervolume_is_its_fronts_in_the_common_box(
    found: Comparison, opened: dict[str, Run]
) -> None:
    for name, run in opened.items():
        row = found.runs.set_index("run").loc[name]
        # One teacher, so the common box is each run's own.
        assert row["hypervolume"] == pytest.approx(hypervolume(run.points(run.front()), run.box))
        steps = found.history[found.history["run"] == name]
        assert steps["hypervolume"].iloc[-1] == pytest.approx(row["hypervolume"])
        front = found.fronts[found.fronts["run"] == name]
        assert set(front["number"]) == set(run.front()["number"])


def test_a_groups_interval_is_students_over_its_runs(found: Comparison) -> None:
    values = found.runs["hypervolume"].iloc[:3].to_numpy()
    low, high = stats.t.interval(0.95, 2, loc=values.mean(), scale=stats.sem(values))
    group = found.groups.iloc[0]
    assert (group["hypervolume_low"], group["hypervolume_high"]) == (pytest.approx(low), pytest.approx(high))
    assert math.isnan(found.groups.iloc[1]["hypervolume_low"])
    last = found.curves[found.curves["group"] == group["group"]].iloc[-1]
    assert (last["mean"], last["low"], last["n"]) == (pytest.approx(values.mean()), pytest.approx(low), 3)


def test_equal_compute_is_what_every_run_has_trained(found: Comparison) -> None:
    assert found.common_epochs == found.history.groupby("run")["epochs"].max().min()
    shortest = found.runs["run"][found.runs["run"].map(found.history.groupby("run")["epochs"].max()).idxmin()]
    row = found.runs.set_index("run").loc[shortest]
    assert row["at_common"] == row["hypervolume"]
    assert (found.runs["at_common"] <= found.runs["hypervolume"]).all()
    reached = found.runs["epochs_to_target"].dropna()
    for index, epochs in reached.items():
        steps = found.history[found.history["run"] == found.runs["run"][index]]
        before = steps[steps["epochs"] < epochs]
        assert (before["hypervolume"] < found.target).all()


def test_two_groups_of_several_runs_have_welchs_test(opened: dict[str, Run], make_study: Make) -> None:
    second = run_of(make_study(seed=4, complete=9), "again", experiment={"sampler": {"name": "random"}})
    found = compare_runs([*opened.values(), second])
    (row,) = found.differences.to_dict("records")
    values = found.runs["hypervolume"].to_numpy()
    assert row["p"] == pytest.approx(stats.ttest_ind(values[3:], values[:3], equal_var=False).pvalue)
    assert row["difference"] == pytest.approx(values[3:].mean() - values[:3].mean())
    assert row["low"] < row["difference"] < row["high"]


def test_files_hold_every_number(found: Comparison, tmp_path: Path) -> None:
    written = write_comparison(found, tmp_path / "out")
    assert {path.name for path in written} == {
        "compare.md",
        *(f"{name}{suffix}" for name in FIGURES for suffix in (".png", ".svg")),
        *(f"{name}.csv" for name in TABLES),
    }
    for name in FIGURES:
        with Image.open(tmp_path / "out" / f"{name}.png") as image:
            assert len(image.convert("L").getcolors(256) or []) > 20  # not an empty picture
    runs = pd.read_csv(tmp_path / "out" / "runs.csv")
    assert np.allclose(runs["hypervolume"], found.runs["hypervolume"])
    text = (tmp_path / "out" / "compare.md").read_text()
    for row in found.runs.itertuples():
        assert f"{row.hypervolume:.4f}" in text
    assert "one run per group: no interval" in text


def test_json_has_no_nan(found: Comparison) -> None:
    text = json.dumps(found.as_dict(), allow_nan=False)
    assert json.loads(text)["groups"][1]["hypervolume_low"] is None


def test_the_box_goes_to_the_dearest_teacher(make_study: Make) -> None:
    study = make_study(complete=5)
    own = run_of(study, "a")
    latency = 2 * own.teacher["latency_ms"]
    found = compare_runs([own, run_of(study, "b", teacher={"latency_ms": latency, "hash": "f" * 16})])
    assert found.reference["latency_ms"] == latency
    assert found.reference["val_accuracy"] == pytest.approx(0.1)
    assert "The teachers differ" in found.notes[0]
    assert found.runs["hypervolume"].iloc[0] > hypervolume(own.points(own.front()), own.box)


def test_a_run_that_has_nothing_yet_counts_as_nothing(make_study: Make, opened: dict[str, Run]) -> None:
    nothing = {"complete": 0, "pruned": 0, "failed": 0, "refused": 0, "running": 2}
    empty = run_of(make_study(**nothing), "empty")
    found = compare_runs([opened["random"], empty])
    assert found.runs["hypervolume"].tolist()[1] == 0.0
    assert found.common_epochs == 0
    assert found.notes == ("empty: no trial is fully trained yet",)
    headers, rows = group_table(found)
    assert len(headers) == len(rows[0])
    assert "empty" in markdown(found)


def test_runs_without_a_front_draw(make_study: Make, tmp_path: Path) -> None:
    nothing = {"complete": 0, "pruned": 0, "failed": 0, "refused": 0, "running": 0, "waiting": 1}
    study = make_study(**nothing)
    write_comparison(compare_runs([run_of(study, "a"), run_of(study, "b")]), tmp_path)
    assert (tmp_path / "fronts.png").is_file()


OTHER = [{"metric": "val_accuracy", "direction": "maximize"}, {"metric": "flops", "direction": "minimize"}]


@pytest.mark.parametrize(
    ("attrs", "message"),
    [
        ({"objectives": OTHER}, "minimize flops, but .* minimize latency_ms: they share no hypervolume"),
        (
            {"data": {"name": "svhn"}},
            "data with name 'svhn', but .* 'cifar10': accuracies cannot be compared",
        ),
        ({"data": {"classes": 100}}, "data with classes 100"),
        ({"device": "64 cores"}, "measured latency on 64 cores, but .* 2 cores: compare runs with flops"),
        ({"experiment": {"costs": {"batch_size": 1}}}, "in batches of 1"),
    ],
)
def test_runs_that_cannot_be_compared(
    make_study: Make, opened: dict[str, Run], attrs: dict[str, Any], message: str
) -> None:
    other = run_of(make_study(complete=2), "other", **attrs)
    with pytest.raises(InputError, match=message):
        compare_runs([opened["random"], other])


def test_one_run_and_the_same_run_twice(opened: dict[str, Run]) -> None:
    with pytest.raises(InputError, match="two runs or more, got 1"):
        compare_runs([opened["random"]])
    with pytest.raises(InputError, match="the same run twice"):
        compare_runs([opened["random"], opened["random"]])


def test_runs_of_version_01_and_of_today_and_of_two_methods(make_study: Make, tmp_path: Path) -> None:
    old, today = run_of(make_study(complete=6), "old"), run_of(make_study(complete=6, names="one"), "today")
    several = run_of(make_study(complete=6, names="two"), "several")
    found = compare_runs([old, today, several])
    groups = found.runs.set_index("run")["group"]
    assert groups["old"] == groups["today"] != groups["several"], "version 0.1 had the method ama alone"
    assert found.runs["hypervolume"].tolist()[:2] == pytest.approx([found.runs["hypervolume"].iloc[0]] * 2)
    assert all(path.is_file() for path in write_comparison(found, tmp_path))
