"""Whole searches on a real Ray: digits, tiny students, one to three epochs."""

from __future__ import annotations

import importlib
import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
import ray
import torch
import typer
from optuna.trial import FrozenTrial, TrialState

from search.cli.live_search import run_search
from search.experiment.experiment import Experiment
from search.experiment.resolved import dump_yaml, resolved_yaml
from search.run.search import Outcome, search
from search.stages.prepare import prepare
from search.study.record import StudyRecord, ran
from trainables.config import StudentSpec
from trainables.errors import InputError

BASE: dict[str, Any] = {
    "name": "toy",
    "data": {"name": "digits", "train_limit": 200},
    "teacher": {"arch": "cifar_resnet8", "epochs": 1},
    "objectives": ["val_accuracy", "flops"],
    "space": {"widths": [0.25]},
    "budget": {"trials": 2, "epochs": 2},
    "runtime": {"device": "cpu", "precision": "fp32", "layout": "contiguous"}
    | {"optimizer": "single", "compile": "off", "eval_batch": 512},  # nothing is left to be measured
    "costs": {"seconds": 0.1},
    "resources": {"concurrent": 1},  # each further worker imports torch
}


def experiment(folder: Path, **sections: Any) -> Experiment:
    merged = {**BASE, "run": {"dir": str(folder)}}
    for name, value in sections.items():
        merged[name] = {**merged.get(name, {}), **value} if isinstance(value, dict) else value
    return Experiment.model_validate(merged)


def rows(run: Path, url: str | None = None) -> list[FrozenTrial]:
    """The rows of trials that ran, as another process reads them."""
    study = optuna.load_study(study_name="toy", storage=url or f"sqlite:///{run}/study.db")
    return [row for row in study.trials if ran(row)]


def states(run: Path) -> set[str]:
    return {row.state.name for row in rows(run)}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a trained teacher and its cost table, which later runs start from."""
    folder = tmp_path_factory.mktemp("teacher")
    prepare(experiment(folder))
    return folder


@pytest.fixture
def run(teacher: Path, tmp_path: Path) -> Path:
    shutil.copytree(teacher, tmp_path / "run")
    return tmp_path / "run"


SECRET = "hunter2"


@pytest.fixture(scope="module")
def finished(
    local_ray: None, teacher: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Experiment, Outcome, str]:
    """A search of eight trials with rungs at the epochs 1 and 2, its study in a database with a secret."""
    folder = tmp_path_factory.mktemp("finished")
    shutil.copytree(teacher, folder / "run")
    url = f"sqlite:///{folder}/study.db?password={SECRET}"
    config = experiment(
        folder / "run",
        budget={"trials": 8, "epochs": 3, "reduction_factor": 2},
        resources={"concurrent": 2},
        storage={"study": url},
    )
    outcome = search(config, command=f"ama search x.yaml -o storage.study={url}")
    return config, outcome, f"sqlite:///{folder}/study.db"


def test_every_row_of_a_finished_search_is_complete_or_pruned(
    finished: tuple[Experiment, Outcome, str],
) -> None:
    _, outcome, url = finished
    assert (outcome.reason, outcome.interrupted, outcome.failed) == ("all trials used", (), False)
    found = rows(outcome.run_dir, url)
    assert len(found) == 8 and {row.state.name for row in found} == {"COMPLETE", "PRUNED"}
    keys = [str(row.params) for row in found]
    assert len(set(keys)) == 8
    for row in found:
        attrs = row.user_attrs
        epochs = attrs["epochs"]
        assert attrs["curve"]["epoch"] == list(range(1, epochs + 1))
        assert {len(column) for column in attrs["curve"].values()} == {epochs}
        assert attrs["metrics"]["epoch"] == epochs and 0 <= attrs["metrics"]["val_accuracy"] <= 1
        assert attrs["seconds"] == pytest.approx(sum(attrs["curve"]["seconds"]), abs=1e-3)
        assert attrs["ray_id"] and attrs["seed"] == 0 and attrs["costs"]["flops"] > 0
        assert (outcome.run_dir / attrs["checkpoint"] / "distiller.pt").is_file()
        if row.state == TrialState.COMPLETE:
            assert epochs == 3
            assert row.values == [attrs["metrics"]["val_accuracy"], attrs["costs"]["flops"]]
        else:
            assert epochs < 3 and row.values is None
            assert attrs["reason"] == f"early stopping: behind at the rung of epoch {epochs}"


def test_the_study_says_what_it_was_made_from(finished: tuple[Experiment, Outcome, str]) -> None:
    _, _, url = finished
    attrs = optuna.load_study(study_name="toy", storage=url).user_attrs
    assert attrs["objectives"] == [
        {"metric": "val_accuracy", "direction": "maximize"},
        {"metric": "flops", "direction": "minimize"},
    ]
    assert [block["name"] for block in attrs["blocks"]] == ["layer1.0", "layer2.0", "layer3.0"]
    assert attrs["data"]["classes"] == 10 and attrs["data"]["train"] == 200
    assert attrs["started"] <= attrs["ended"] and attrs["elapsed_seconds"] > 0
    assert attrs["teacher"]["flops"] > 0 and attrs["versions"]["ray"] == ray.__version__
    front = StudyRecord.load(url, "toy").front()
    assert sorted(attrs["measured"]) == sorted(str(row.number) for row in front)
    assert all(entry["latency_ms"] > 0 for entry in attrs["measured"].values())


def test_no_secret_is_in_any_file_of_the_run(finished: tuple[Experiment, Outcome, str]) -> None:
    _, outcome, _ = finished
    folder = outcome.run_dir.parent
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert any(file.name == "tuner.pkl" for file in files)
    for file in files:
        assert SECRET.encode() not in file.read_bytes(), file
        if file.suffix == ".pkl":
            assert b"study.db" not in file.read_bytes(), file


def test_a_finished_run_is_not_trained_again(finished: tuple[Experiment, Outcome, str]) -> None:
    config, outcome, url = finished
    before = [(row.number, row.datetime_complete, row.user_attrs) for row in rows(outcome.run_dir, url)]
    again = search(config, resume=True)
    assert again.reason == "all 8 trials are done already" and not again.failed
    assert [(r.number, r.datetime_complete, r.user_attrs) for r in rows(outcome.run_dir, url)] == before


def changed(config: Experiment, **sections: Any) -> Experiment:
    data = config.model_dump(mode="json")
    for name, value in sections.items():
        data[name] = {**data[name], **value} if isinstance(value, dict) else value
    return Experiment.model_validate(data)


def test_another_experiment_is_refused_with_the_difference(
    finished: tuple[Experiment, Outcome, str],
) -> None:
    config, _, _ = finished
    other = changed(config, seed=7, budget={"trials": 30, "epochs": 5}, name="other")
    with pytest.raises(InputError) as fault:
        search(other, resume=True)
    lines = str(fault.value).splitlines()
    assert sorted(lines[1:]) == ["  budget.epochs: 3 → 5", "  name: 'toy' → 'other'", "  seed: 0 → 7"]
    with pytest.raises(InputError, match="already holds a run; continue it with --resume"):
        search(config)


@pytest.mark.parametrize("what", ["teacher", "data"])
def test_another_teacher_or_other_data_are_refused(
    finished: tuple[Experiment, Outcome, str], tmp_path: Path, what: str
) -> None:
    config, run, url = moved(finished, tmp_path)
    record = StudyRecord.load(url, "toy")
    record.set_attrs({what: {**record.attrs[what], "hash": "another"}})
    with pytest.raises(
        InputError, match=f"the {what} is not what the run was started with: expected hash an"
    ):
        search(changed(config, budget={"trials": 9}), resume=True)
    assert len(rows(run)) == 8


def moved(finished: tuple[Experiment, Outcome, str], tmp_path: Path) -> tuple[Experiment, Path, str]:
    """A copy of the finished run in another place, its study in the default place."""
    config, outcome, url = finished
    run = tmp_path / "moved"
    shutil.copytree(outcome.run_dir, run)
    shutil.copy(url.removeprefix("sqlite:///"), run / "study.db")
    config = changed(config, run={"dir": str(run)}, storage={"study": None})
    return config, run, f"sqlite:///{run}/study.db"


def test_more_trials_may_be_asked_for_in_another_place(
    finished: tuple[Experiment, Outcome, str], tmp_path: Path
) -> None:
    config, run, _ = moved(finished, tmp_path)
    before = {row.number: row.datetime_complete for row in rows(run)}
    assert search(changed(config, budget={"trials": 10}), resume=True).reason == "all trials used"
    after = rows(run)
    assert len(after) == 10 and states(run) <= {"COMPLETE", "PRUNED"}
    assert {row.number: row.datetime_complete for row in after if row.number in before} == before
    assert len({str(row.params) for row in after}) == 10


def test_a_run_without_its_study_is_not_begun_anew(
    finished: tuple[Experiment, Outcome, str], tmp_path: Path
) -> None:
    config, _, _ = moved(finished, tmp_path)
    wrong = changed(config, storage={"study": f"sqlite:///{tmp_path}/wrong.db"})
    with pytest.raises(InputError, match="holds no study 'toy'"):
        search(wrong, resume=True)


def test_a_directory_without_a_run_is_not_resumed(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no run"):
        search(experiment(tmp_path), resume=True)


def test_a_place_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"run\.dir: cannot write in .*/file/run"):
        search(experiment(tmp_path / "file" / "run"))


def test_more_than_there_is_is_refused_before_anything(local_ray: None, tmp_path: Path) -> None:
    for resources, message in (({"cpu": 64}, "64 CPUs"), ({"gpu": 1}, "1 GPUs")):
        with pytest.raises(InputError, match=f"a trial needs {message}, but there are"):
            search(experiment(tmp_path / "run", resources=resources))
    assert not (tmp_path / "run" / "teacher.safetensors").exists()
    assert not (tmp_path / "run" / "experiment.yaml").exists()


def test_a_search_cut_off_before_its_study_was_there_begins(local_ray: None, run: Path) -> None:
    config = experiment(run, budget={"trials": 1, "epochs": 1})
    dump_yaml(config, run / "experiment.yaml")
    StudyRecord.create(f"sqlite:///{run}/study.db", "toy", ["maximize", "minimize"])  # without attributes
    assert search(config, resume=True).reason == "all trials used"
    assert states(run) == {"COMPLETE"}


def test_diverged_trials_fail_once_and_end_a_search_of_nothing_else(local_ray: None, run: Path) -> None:
    config = experiment(run, space={"optim": {"lr": 1e30}}, budget={"trials": 3})
    with pytest.raises(typer.Exit) as end:
        run_search(config)
    assert end.value.exit_code == 1
    found = rows(run)
    assert [row.state for row in found] == [TrialState.FAIL] * 3
    for row in found:
        assert "epoch 1" in row.user_attrs["reason"] and "retries" not in row.user_attrs


FACTORY = '''
"""A teacher whose students break at a chosen training step."""
import os
import signal
from pathlib import Path

import torch
from torch import nn

from trainables.network.architectures import build_model


class Fragile(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.net = build_model("cifar_resnet8", num_classes, (3, 8, 8))

    def forward(self, images):
        folder = Path("FOLDER")
        # A training step of the student, which is a copy of the teacher: workers alone take one.
        if self.training and torch.is_grad_enabled():
            calls = len(list(folder.glob("call-*"))) + 1
            (folder / f"call-{calls}").touch()
            how, at = (folder / "plan").read_text().split()
            if calls == int(at) or (calls > int(at) and how == "always"):
                if how == "raise":
                    raise RuntimeError("out of luck")
                os.kill(os.getpid(), signal.SIGKILL)
        return self.net(images)


def make(num_classes):
    return Fragile(num_classes)
'''


@pytest.fixture
def fragile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], dict[str, Any]]]:
    """Sections of an experiment whose workers break as planned: `raise 5`, `kill 5` (once) or `always 5`."""
    (tmp_path / "fragile_teacher.py").write_text(FACTORY.replace("FOLDER", str(tmp_path)))
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("fragile_teacher")
    ray.cloudpickle.register_pickle_by_value(module)  # the workers started before the file was there

    def plan(text: str) -> dict[str, Any]:
        weights = tmp_path / "fragile.pt"
        torch.manual_seed(0)
        torch.save(module.make(10).state_dict(), weights)
        (tmp_path / "plan").write_text(text)
        return {"teacher": {"arch": "import:fragile_teacher:make", "checkpoint": str(weights)}}

    yield plan
    ray.cloudpickle.unregister_pickle_by_value(module)
    del sys.modules["fragile_teacher"]


STEPS = 2  # training steps an epoch: 200 images in batches of 128


def test_an_error_of_the_config_is_final_at_once(local_ray: None, run: Path) -> None:
    config = experiment(run, budget={"trials": 2})
    space = config.space.model_copy(update={"train": "modules"})
    wrong = config.model_copy(update={"space": space, "warm_start": "none"})  # as no file can say it
    outcome = search(wrong)
    assert outcome.failed
    for row in rows(run):
        assert row.state == TrialState.FAIL and "retries" not in row.user_attrs
        assert "warm_start: none" in row.user_attrs["reason"]


@pytest.mark.parametrize(("how", "reason"), [("raise", "RuntimeError: out of luck"), ("kill", "died")])
def test_a_trial_that_broke_once_goes_on_from_its_checkpoint(
    local_ray: None, tmp_path: Path, fragile: Callable[[str], dict[str, Any]], how: str, reason: str
) -> None:
    run = tmp_path / "run"
    config = experiment(run, budget={"trials": 1, "epochs": 3}, **fragile(f"{how} {STEPS + 1}"))
    assert search(config).reason == "all trials used"
    (row,) = rows(run)
    assert row.state == TrialState.COMPLETE and row.user_attrs["curve"]["epoch"] == [1, 2, 3]
    assert row.user_attrs["retries"] == 1 and reason in row.user_attrs["retry_reason"]
    calls = len(list(tmp_path.glob("call-*")))
    assert calls == 3 * STEPS + 1, "the first epoch was not trained again"


def test_a_trial_that_always_breaks_fails_with_its_reason(
    local_ray: None, tmp_path: Path, fragile: Callable[[str], dict[str, Any]]
) -> None:
    run = tmp_path / "run"
    outcome = search(experiment(run, budget={"trials": 1}, **fragile("always 1")))
    (row,) = rows(run)
    assert row.state == TrialState.FAIL and row.user_attrs["retries"] == 2
    assert "died" in row.user_attrs["reason"]
    assert outcome.failed and outcome.reason.startswith("1 of 1 trials failed, most with: ")


def test_the_wall_time_leaves_rows_that_a_resume_finishes(local_ray: None, run: Path) -> None:
    short = experiment(run, budget={"trials": 3, "epochs": 1, "hours": 1e-6})
    outcome = search(short)
    assert outcome.reason == "time limit budget.hours reached"
    assert "RUNNING" not in states(run) if outcome.interrupted else rows(run) == []
    again = search(short, resume=True)
    assert again.reason == outcome.reason, "the hours count over all sessions"
    longer = search(experiment(run, budget={"trials": 3, "epochs": 1, "hours": 1}), resume=True)
    assert longer.reason == "all trials used"
    assert len(rows(run)) == 3 and states(run) <= {"COMPLETE", "PRUNED"}


EPOCHS = 30


def begin(run: Path) -> subprocess.Popen[str]:
    """`ama search` in a process group of its own, as a shell would start it."""
    command = [sys.executable, "-m", "search.cli.app", "search", str(run.parent / "x.yaml")]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def long_trials(run: Path) -> Experiment:
    """An experiment whose trials last several seconds, as a file beside the run directory."""
    budget = {"trials": 3, "epochs": EPOCHS, "grace_epochs": EPOCHS}
    config = experiment(run, budget=budget, resources={"concurrent": 2})
    (run.parent / "x.yaml").write_text(resolved_yaml(config))
    return config


def wait_for_epochs(run: Path, process: subprocess.Popen[str], epochs: int) -> None:
    """Until a trial has that many epochs and a checkpoint behind it, and more to come."""
    while process.poll() is None:
        if (run / "experiment.yaml").exists():
            try:
                found = rows(run)
            except (KeyError, optuna.exceptions.StorageInternalError):  # not there yet
                found = []
            if any(r.user_attrs.get("epochs", 0) >= epochs and "checkpoint" in r.user_attrs for r in found):
                return
        time.sleep(0.1)
    raise AssertionError(process.communicate()[0])


def finish(config: Experiment, run: Path, in_flight: dict[int, list[float]]) -> None:
    """Resume, and check that every trial ended once and went on where it was."""
    assert search(config, resume=True).reason == "all trials used"
    found = rows(run)
    assert len(found) == 3 and {row.state.name for row in found} == {"COMPLETE"}
    for row in found:
        assert row.user_attrs["curve"]["epoch"] == list(range(1, EPOCHS + 1))
        kept = in_flight.get(row.number, [])[:-1]  # at most one epoch is trained again
        assert row.user_attrs["curve"]["seconds"][: len(kept)] == kept
    assert len({str(row.params) for row in found}) == 3


def test_ctrl_c_and_a_second_driver(local_ray: None, run: Path) -> None:
    config = long_trials(run)
    process = begin(run)
    wait_for_epochs(run, process, 3)
    with pytest.raises(InputError, match="another `ama search` is running"):
        search(config, resume=True)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all processes of the group
    output = process.communicate()[0]
    assert process.returncode == 0, output
    assert "interrupted; continue with --resume" in output
    assert "RUNNING" not in states(run) and "WAITING" in states(run)
    waiting = [row for row in rows(run) if row.state == TrialState.WAITING]
    finish(config, run, {row.number: row.user_attrs.get("curve", {}).get("seconds", []) for row in waiting})


def test_a_killed_driver(local_ray: None, run: Path) -> None:
    config = long_trials(run)
    process = begin(run)
    wait_for_epochs(run, process, 3)
    process.kill()
    process.wait()
    running = [row for row in rows(run) if row.state == TrialState.RUNNING]
    assert running
    finish(config, run, {row.number: row.user_attrs.get("curve", {}).get("seconds", []) for row in running})


def test_limits_that_exclude_most_of_the_space_cost_no_trial(
    local_ray: None, teacher: Path, tmp_path: Path
) -> None:
    # Another space than the teacher's folder was priced for: 5 levels a block, priced anew.
    run = tmp_path / "run"
    shutil.copytree(teacher, run)
    (run / "costs.json").unlink()
    widths = [0.5, 1.0, 2.0, 3.0]
    config = experiment(
        run, space={"widths": widths, "fuse": False}, budget={"trials": 6, "epochs": 1}, seed=3
    )
    setup = prepare(config)
    names = [block.name for block in setup.blocks]
    every = [
        setup.costs.price(StudentSpec(widths={n: w for n, w in zip(names, chosen, strict=True) if w}))
        for chosen in itertools.product((None, *widths), repeat=len(names))
    ]
    limit = sorted(costs.flops for costs in every)[len(every) // 10 - 1]
    inside = sum(costs.flops <= limit for costs in every)
    assert 0.05 < inside / len(every) <= 0.1

    limited = experiment(
        run,
        space={"widths": widths, "fuse": False},
        budget={"trials": 6, "epochs": 1},
        constraints={"flops": f"<= {limit}"},
        seed=3,
    )
    outcome = search(limited)
    assert outcome.reason == "all trials used"
    trained = rows(run)
    assert len(trained) == 6
    assert all(row.user_attrs["costs"]["flops"] <= limit for row in trained)
    refused = [
        row
        for row in optuna.load_study(study_name="toy", storage=f"sqlite:///{run}/study.db").trials
        if row.user_attrs.get("refused") == "infeasible"
    ]
    assert refused, "random proposals of this space break the limit nine times in ten"
    for row in refused:
        assert row.user_attrs["costs"]["flops"] > limit and row.user_attrs["epochs"] == 0
        assert row.constraints[f"flops <= {limit}"] > 0
