from collections.abc import Callable
from pathlib import Path

import numpy as np
import optuna
import pytest
import yaml
from optuna.trial import TrialState, create_trial

from analysis.errors import InputError
from analysis.pareto import knee, scale_to_front, spread
from analysis.picks.pick import pick
from analysis.picks.pick_file import read_pick, write_pick
from analysis.runs.run import Run

Make = Callable[..., optuna.Study]
NOTHING = {"complete": 0, "pruned": 0, "failed": 0, "running": 0, "waiting": 0, "refused": 0}
# number: (accuracy, latency, params); 4 is dominated, 5 was stopped early
ROWS = [(0.93, 6.0, 250e3), (0.91, 4.0, 200e3), (0.88, 3.0, 150e3), (0.70, 2.0, 90e3), (0.87, 3.5, 60e3)]


@pytest.fixture
def study(make_study: Make) -> optuna.Study:
    made = make_study(**NOTHING)
    for accuracy, latency, params in ROWS:
        attrs = {
            "config": {"seed": 1, "epochs": 8},
            "costs": {"params": params, "flops": 1e6 * latency, "latency_ms": latency},
            "metrics": {"val_accuracy": accuracy, "val_loss": 1 - accuracy},
            "epochs": 8,
        }
        made.add_trial(create_trial(values=[accuracy, latency], user_attrs=attrs))
    early = {"metrics": {"val_accuracy": 0.99}, "costs": {"latency_ms": 1.0}, "config": {}}
    made.add_trial(create_trial(state=TrialState.PRUNED, user_attrs=early))
    return made


def test_limits_alone_give_the_best_first_objective(study: optuna.Study) -> None:
    (chosen,) = pick(study, max=["latency_ms=4.5"])
    assert chosen.number == 1
    assert chosen.values["val_accuracy"] == 0.91
    assert chosen.values["epochs"] == 8.0
    assert chosen.config == {"seed": 1, "epochs": 8}
    assert chosen.costs == {"params": 200e3, "flops": 4e6, "latency_ms": 4.0}
    assert chosen.reason == (
        "best val_accuracy of 3 candidates: trials 1, 2, 3 (non-dominated of 5 fully trained) within "
        "latency_ms <= 4.50 ms; "
        "trial 0 is better with 93.00 %, but its latency_ms 6.00 ms breaks latency_ms <= 4.50 ms by 33.3 %; "
        "next is trial 2 with val_accuracy 88.00 % (3.00 points less), latency_ms 3.00 ms (1.00 ms less)"
    )


def test_a_limit_on_what_is_no_objective_brings_back_dominated_trials(study: optuna.Study) -> None:
    (chosen,) = pick(study, max=["params=100k"])
    assert chosen.number == 4  # trial 2 dominates it, but is too large
    assert "2 candidates" in chosen.reason


def test_limits_that_exclude_nothing_better_say_so(study: optuna.Study) -> None:
    (chosen,) = pick(study, min={"accuracy": 0.92})
    assert chosen.number == 0
    assert "no limit bound" in chosen.reason
    assert chosen.reason.endswith("the only candidate")


def test_knee_and_top(study: optuna.Study) -> None:
    run = Run.open(study)
    front = run.front()
    points = run.points(front)
    (chosen,) = pick(run, knee=True)
    assert chosen.number == front["number"].iloc[knee(points)]
    assert pick(run) == [chosen]
    others = [i for i in range(len(front)) if front["number"].iloc[i] != chosen.number]
    depth = scale_to_front(points).sum(axis=1)
    second = front["number"].iloc[min(others, key=lambda i: depth[i])]
    numbers = ", ".join(map(str, front["number"]))
    assert chosen.reason.startswith(f"the knee of 4 candidates: trials {numbers} (non-dominated of ")
    assert f"; next is trial {second} with val_accuracy " in chosen.reason
    several = pick(run, top=3)
    assert [p.number for p in several] == front["number"].iloc[spread(points, 3)].tolist()
    assert len(pick(run, top=99)) == 4
    assert "well-spread" in several[0].reason
    (bounded,) = pick(run, knee=True, max={"latency_ms": "3ms"})
    assert bounded.number in (2, 3)
    assert "within latency_ms <= 3.00 ms" in bounded.reason


def test_every_pick_is_within_its_limits(make_study: Make) -> None:
    run = Run.open(make_study(complete=80))
    for share in np.linspace(0.5, 1.0, 6):
        for chosen in pick(run, max={"flops": f"{share}x"}, min={"accuracy": "80%"}, top=4):
            assert chosen.values["flops"] <= share * run.teacher["flops"]
            assert chosen.values["val_accuracy"] >= 0.8
            assert run.trial(chosen.number).state is TrialState.COMPLETE


def test_an_empty_answer_names_the_nearest_miss(study: optuna.Study) -> None:
    with pytest.raises(InputError) as error:
        pick(study, max=["latency_ms=2.9"], min=["accuracy=0.85"])
    assert str(error.value) == (
        "study demo: none of 5 fully trained trials is within latency_ms <= 2.90 ms and "
        "val_accuracy >= 85.00 %. The nearest is trial 2: "
        "latency_ms 3.00 ms breaks latency_ms <= 2.90 ms by 3.4 %"
    )
    with pytest.raises(InputError, match=r"trial 0: val_accuracy 93\.00 % .* by 2\.00 points"):
        pick(study, min=["accuracy=0.95"])
    with pytest.raises(InputError, match="none of 5 fully trained trials has measured_latency_ms"):
        pick(study, max=["measured_latency_ms=3"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"knee": True, "top": 2}, "knee and top exclude each other"),
        ({"top": 0}, "top must be at least 1, got 0"),
        ({"max": ["speed=3"]}, "unknown metric 'speed'"),
    ],
)
def test_faulty_questions(study: optuna.Study, options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        pick(study, **options)  # type: ignore[arg-type]


def test_nothing_to_pick_from(make_study: Make) -> None:
    with pytest.raises(InputError, match="has no trials yet"):
        pick(make_study(**NOTHING))
    with pytest.raises(InputError, match=r"no trial has finished yet: 2 running, 1 stopped early, 1 failed"):
        pick(make_study(**{**NOTHING, "running": 2, "pruned": 1, "failed": 1}))
    bare = make_study(**NOTHING)
    bare.add_trial(create_trial(values=[0.9, 3.0]))
    with pytest.raises(InputError, match=r"no trials yet; trial 0 is left out: .*\(no config\)"):
        pick(bare)


def test_pick_file_round_trip_and_a_run_that_moves(make_run: Callable[..., Path], tmp_path: Path) -> None:
    run = make_run()
    picks = pick(run, top=3)
    path = write_pick(run / "pick.yaml", picks, run)
    found = read_pick(path)
    assert found.picks == tuple(picks)
    assert found.run == run.resolve()
    assert found.study == "demo"
    assert found.experiment["budget"]["epochs"] == 8
    assert found.teacher["hash"] == "0123456789abcdef"
    moved = run.rename(tmp_path / "moved")
    assert read_pick(moved).run == moved.resolve()
    elsewhere = write_pick(tmp_path / "deep" / "er" / "my.yaml", picks, moved)
    assert read_pick(elsewhere).run == moved.resolve()
    assert not list(tmp_path.rglob("*.part"))


def test_a_study_without_directory_has_a_pick_without_run(study: optuna.Study, tmp_path: Path) -> None:
    path = write_pick(tmp_path / "p.yaml", pick(study), study)
    assert read_pick(path).run is None
    assert yaml.safe_load(path.read_text())["format"] == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "cannot be read as a pick"),
        ("[1]", "expected a mapping with format: 1, got 'list'"),
        ("format: 9", "got 9"),
        ("{format: 1, picks: []}", "picks must be a list with at least one pick"),
        ("{format: 1, picks: [{number: x}], experiment: {}, teacher: {}}", r"picks\[0\]: expected a mapping"),
        (
            "{format: 1, picks: [{number: 1, values: {}}], experiment: {}, teacher: {}}",
            "config must be a mapping",
        ),
        (
            "{format: 1, picks: [{number: 1}], experiment: 3, teacher: {}}",
            "experiment must be a mapping, got 3",
        ),
    ],
)
def test_faulty_pick_files(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "pick.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_pick(path)


def test_a_pick_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"pick\.yaml cannot be read as a pick"):
        read_pick(tmp_path)
