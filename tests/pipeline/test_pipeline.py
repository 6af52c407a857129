"""The whole pipeline through the command, once, for real: from a teacher to exported students."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from analysis import load
from search.cli.app import main
from trainables.config import DataConfig, StudentSpec
from trainables.costs.table import CostTable
from trainables.data.load import load_data
from trainables.finished.model_files import load_model
from trainables.network.flops import count_flops, count_params

EXPERIMENT = """
name: whole
data: {name: digits}
teacher: {arch: cifar_resnet14, epochs: 6, batch_size: 32}
space: {widths: [0.25, 0.5], fuse: search, optim: {batch_size: 32}}
objectives: [val_accuracy, flops]
constraints: {flops: "<= 0.9x"}
budget: {trials: 8, epochs: 3, grace_epochs: 1, reduction_factor: 2}
sampler: {name: tpe, startup_trials: 4}
costs: {batch_size: 8, seconds: 1}
resources: {concurrent: 2}
"""
TRIALS, EPOCHS, SEEDS = 8, 3, 2

Ask = Callable[..., Any]


def command(*arguments: object) -> str:
    """What `ama` with these arguments writes to stdout; it must succeed."""
    out, err, argv = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = ["ama", *map(str, arguments)]
    try:
        with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as ended:
            main()
    finally:
        sys.argv = argv
    assert not ended.value.code, f"{arguments}: {err.getvalue()}"
    return out.getvalue()


def answer(*arguments: object) -> Any:
    return json.loads(command(*arguments, "--json"))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, local_ray: None) -> Path:
    """A run directory through which every command went once, in order."""
    folder = tmp_path_factory.mktemp("pipeline")
    run = folder / "run"
    (folder / "whole.yaml").write_text(EXPERIMENT)
    command("teacher", folder / "whole.yaml", "--out", run)
    command("profile", folder / "whole.yaml", "--out", run)
    command("search", folder / "whole.yaml", "--out", run)
    command("report", run, "--out", folder / "first")
    command("pick", run, "--max", "flops=0.6x")
    command("retrain", run / "pick.yaml", "--seeds", SEEDS, "--epochs", 5, "--baselines")
    command("report", run)
    return run


@pytest.fixture(scope="module")
def picked(run: Path) -> dict[str, Any]:
    (only,) = yaml.safe_load((run / "pick.yaml").read_text())["picks"]
    return dict(only)


@pytest.fixture(scope="module")
def student(run: Path, picked: dict[str, Any]) -> Path:
    return run / "retrained" / f"trial-{picked['number']}" / "student" / "seed-1"


def test_the_teacher_learned_and_is_recorded(run: Path) -> None:
    record = json.loads((run / "teacher.json").read_text())
    assert record["test_accuracy"] > 0.9
    status = answer("status", run)
    assert status["teacher"]["hash"] == record["hash"]
    assert status["teacher"]["val_accuracy"] == record["val_accuracy"]


def test_counts_of_the_status_add_up(run: Path) -> None:
    trials = answer("status", run)["trials"]
    table = load(run).trials
    ended = trials["COMPLETE"] + trials["PRUNED"] + trials["FAIL"]
    assert ended == TRIALS
    assert (trials["RUNNING"], trials["WAITING"]) == (0, 0)
    assert trials["refused"] == (table["refused"] != "").sum()
    assert len(table) == TRIALS + trials["refused"]


def test_the_front_has_fully_trained_undominated_trials_alone(run: Path) -> None:
    front = answer("status", run)["front"]
    table = load(run).trials.set_index("number")
    complete = table[table["state"] == "COMPLETE"]
    assert front
    for row in front:
        mine = complete.loc[row["number"]]
        assert mine["epochs"] == EPOCHS
        assert row["values"]["val_accuracy"] == mine["val_accuracy"]
        better = (complete["val_accuracy"] >= mine["val_accuracy"]) & (complete["flops"] <= mine["flops"])
        strictly = (complete["val_accuracy"] > mine["val_accuracy"]) | (complete["flops"] < mine["flops"])
        assert not (better & strictly).any()


def test_pruned_trials_trained_less_and_have_no_values(run: Path) -> None:
    table = load(run).trials
    pruned = table[(table["state"] == "PRUNED") & (table["refused"] == "")]
    assert (pruned["epochs"] < EPOCHS).all()
    assert pruned["reason"].str.contains("early stopping").all()
    refused = table[table["refused"] != ""]
    assert (refused["epochs"].fillna(0) == 0).all()


def test_no_trial_that_ran_is_beyond_the_limit_or_repeats_another(run: Path) -> None:
    table = load(run).trials
    ran = table[table["refused"] == ""]
    assert (ran["flops"] <= 0.9 * answer("status", run)["teacher"]["flops"]).all()
    searched = [name for name in ran.columns if name.startswith("level/")] + [
        "fuse",
        "ama/alpha",
        "ama/tau",
        "ama/beta",
        "optim/lr",
    ]
    assert not ran[searched].duplicated().any()


def test_every_price_follows_from_the_cost_table(run: Path) -> None:
    costs = CostTable.model_validate_json((run / "costs.json").read_bytes())
    profile = answer("profile", run / "experiment.yaml", "--out", run)
    assert profile["teacher"]["flops"] == costs.teacher.flops
    for trial in load(run).rows:
        price = costs.price(StudentSpec.model_validate(trial.user_attrs["config"]["student"]))
        assert trial.user_attrs["costs"] == price.as_dict()


def test_the_pick_is_the_most_accurate_within_its_limit(run: Path, picked: dict[str, Any]) -> None:
    table = load(run).trials
    limit = 0.6 * answer("status", run)["teacher"]["flops"]
    within = table[(table["state"] == "COMPLETE") & (table["flops"] <= limit)]
    assert picked["values"]["val_accuracy"] == within["val_accuracy"].max()
    assert picked["values"]["flops"] <= limit


def test_the_students_flops_are_those_it_was_priced_at(
    run: Path, student: Path, picked: dict[str, Any]
) -> None:
    costs = CostTable.model_validate_json((run / "costs.json").read_bytes())
    price = costs.price(StudentSpec.model_validate(picked["config"]["student"]))
    model, manifest = load_model(student)
    image = torch.zeros(1, 3, 8, 8)
    assert (price.flops, price.params) == (count_flops(model, image), count_params(model))
    assert picked["costs"]["flops"] == price.flops == manifest["results"]["flops"]


def test_retraining_beats_chance_by_far_and_stands_beside_the_teacher(run: Path) -> None:
    with (run / "retrained" / "results.csv").open() as file:
        rows = {row["kind"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["teacher", "student", "scratch", "finetune"]
    assert {kind: int(row["n"]) for kind, row in rows.items() if kind != "teacher"} == {
        "student": SEEDS,
        "scratch": SEEDS,
        "finetune": SEEDS,
    }
    assert float(rows["student"]["test_accuracy"]) > 0.8
    assert int(rows["student"]["flops"]) <= 0.6 * int(rows["teacher"]["flops"])


def test_a_second_retraining_only_reads(run: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (run / "retrained").glob("trial-*/**/*")}
    table = answer("retrain", run / "pick.yaml", "--seeds", SEEDS, "--epochs", 5, "--baselines")
    assert [row["kind"] for row in table["table"]] == ["teacher", "student", "scratch", "finetune"]
    assert {path: path.stat().st_mtime_ns for path in (run / "retrained").glob("trial-*/**/*")} == before


def test_evaluating_gives_the_tables_figure(student: Path) -> None:
    score = answer("evaluate", student)
    results = json.loads((student / "model.json").read_text())["results"]
    assert score["accuracy"] == results["test_accuracy"]
    assert score["n"] == 359


@pytest.mark.parametrize("format", ["pt2", "onnx"])
def test_the_exported_file_classifies_test_images_as_the_model_does(
    student: Path, tmp_path: Path, format: str
) -> None:
    file = tmp_path / f"student.{format}"
    answer("export", student, "--format", format, "--out", file)
    data = load_data(DataConfig(name="digits"), test=True)
    assert data.test is not None
    mean, std = (torch.tensor(value).view(1, 3, 1, 1) for value in (data.mean, data.std))
    inputs = (data.test.images.float() / 255 - mean) / std
    if format == "pt2":
        logits = torch.export.load(file).module()(inputs).detach().numpy()
    else:
        import onnxruntime

        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        logits = session.run(["logits"], {"images": inputs.numpy()})[0]
    accuracy = float(np.mean(logits.argmax(1) == data.test.labels.numpy()))
    results = json.loads((student / "model.json").read_text())["results"]
    assert accuracy == pytest.approx(results["test_accuracy"], abs=1 / 359)


def test_the_first_report_has_the_front_and_the_second_the_retrained_table_too(
    run: Path, picked: dict[str, Any]
) -> None:
    first = (run.parent / "first" / "summary.md").read_text()
    second = (run / "report" / "summary.md").read_text()
    assert "finetune" not in first
    for kind in ("student", "scratch", "finetune"):
        assert f"| {picked['number']} | {kind} | {SEEDS} |" in second
    page = (run / "report" / "index.html").read_text()
    assert "finetune" in page
    assert "<svg" in page
    for suffix in ("png", "svg"):
        assert len(list((run / "report").glob(f"*.{suffix}"))) >= 4
