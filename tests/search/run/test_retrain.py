"""`ama retrain`: what it trains, reads back, writes and refuses, on a real run and a real Ray."""

from __future__ import annotations

import csv
import json
import shutil
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from scipy.stats import ttest_rel

from analysis.picks.pick import pick
from analysis.picks.pick_file import write_pick
from analysis.report.tables import retrained as read_by_the_report
from analysis.runs.run import Run
from search.errors import FailedError
from search.run.retrain import FULL_BUDGET, retrain_picks
from trainables.errors import InputError
from trainables.finished.model_files import load_model


@pytest.fixture(scope="module")
def picked(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pick of one trial, outside the run directory."""
    path = tmp_path_factory.mktemp("pick") / "pick.yaml"
    return write_pick(path, pick(tiny_run, knee=True), tiny_run)


@pytest.fixture(scope="module")
def folder(tiny_run: Path, picked: Path) -> Path:
    """The pick and its baselines, retrained with two seeds."""
    done = retrain_picks(picked, seeds=2, epochs=1, with_baselines=True)
    assert done.folder == tiny_run / "retrained"
    return done.folder


def edited(picked: Path, path: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    content = yaml.safe_load(picked.read_text())
    change(content)
    path.write_text(yaml.safe_dump(content))
    return path


def models(folder: Path) -> dict[str, int]:
    """Every model below `folder`, with the time it was written."""
    return {
        str(f.parent.relative_to(folder)): f.stat().st_mtime_ns for f in folder.rglob("model.safetensors")
    }


def test_every_kind_and_seed_leaves_a_model(folder: Path, picked: Path) -> None:
    number = yaml.safe_load(picked.read_text())["picks"][0]["number"]
    kinds, seeds = ("student", "scratch", "finetune"), (1, 2)
    assert set(models(folder)) == {f"trial-{number}/{kind}/seed-{s}" for kind in kinds for s in seeds}


def test_results_are_one_entry_a_model_and_the_table_their_means(folder: Path, tiny_run: Path) -> None:
    entries = json.loads((folder / "results.json").read_text())
    assert [(e["kind"], e["seed"]) for e in entries] == [
        (kind, seed) for kind in ("student", "scratch", "finetune") for seed in (1, 2)
    ]
    with (folder / "results.csv").open() as file:
        teacher, *rows = csv.DictReader(file)
    record = json.loads((tiny_run / "teacher.json").read_text())
    assert teacher["kind"] == "teacher"
    assert float(teacher["test_accuracy"]) == record["test_accuracy"]
    costs = json.loads((tiny_run / "costs.json").read_text())["teacher"]
    assert (int(teacher["flops"]), float(teacher["latency_ms"])) == (costs["flops"], costs["latency_ms"])
    for row in rows:
        group = [e for e in entries if e["kind"] == row["kind"]]
        accuracies = [e["test_accuracy"] for e in group]
        assert (int(row["number"]), int(row["n"])) == (group[0]["number"], 2)
        assert float(row["latency_ms"]) == group[0]["latency_ms"] != costs["latency_ms"]
        assert float(row["test_accuracy"]) == pytest.approx(statistics.fmean(accuracies))
        assert float(row["test_accuracy_std"]) == pytest.approx(statistics.stdev(accuracies))
    markdown = (folder / "results.md").read_text().splitlines()
    assert markdown[0].startswith("| trial | model | n | test accuracy | 95 % interval | gain | p |")
    assert [line.split(" | ")[1] for line in markdown[2:6]] == ["teacher", "student", "scratch", "finetune"]
    assert markdown[-1].startswith("Test data, read once per model") and "paired t-test" in markdown[-1]


def test_baselines_have_the_students_paired_gain_over_them(folder: Path) -> None:
    scores = {
        (e["kind"], e["seed"]): e["test_accuracy"] for e in json.loads((folder / "results.json").read_text())
    }
    with (folder / "results.csv").open() as file:
        rows = {row["kind"]: row for row in csv.DictReader(file)}
    for kind in ("scratch", "finetune"):
        ours, theirs = ([scores[k, seed] for seed in (1, 2)] for k in ("student", kind))
        assert int(rows[kind]["pairs"]) == 2
        gain = statistics.fmean(ours) - statistics.fmean(theirs)
        assert float(rows[kind]["gain_test_accuracy"]) == pytest.approx(gain)
        test = ttest_rel(ours, theirs)
        if test.pvalue > 0:  # it is not told where both differences are the same
            assert float(rows[kind]["gain_test_accuracy_p"]) == pytest.approx(test.pvalue, rel=1e-6)
            low = test.confidence_interval(0.95).low
            assert float(rows[kind]["gain_test_accuracy_low"]) == pytest.approx(low)
    assert rows["student"]["gain_test_accuracy"] == rows["teacher"]["gain_test_accuracy"] == ""


def test_costs_counted_on_the_model_are_the_price_known_before(folder: Path, picked: Path) -> None:
    priced = yaml.safe_load(picked.read_text())["picks"][0]["costs"]
    for entry in json.loads((folder / "results.json").read_text()):
        assert (entry["flops"], entry["params"]) == (priced["flops"], priced["params"])
        assert entry["latency_ms"] == pytest.approx(priced["latency_ms"])


def test_models_load_and_know_their_kind_and_data(folder: Path, tiny_run: Path) -> None:
    for entry in json.loads((folder / "results.json").read_text()):
        _, manifest = load_model(folder / entry["path"])
        assert manifest["kind"] == entry["kind"]
        assert manifest["config"]["seed"] == entry["seed"]
        assert manifest["data"]["config"]["train_limit"] == 300


def test_baselines_are_trained_without_distillation(folder: Path) -> None:
    manifests = {f.parts[-3]: json.loads(f.read_text()) for f in folder.glob("trial-*/*/seed-1/model.json")}
    for kind, start in (("scratch", "none"), ("finetune", "teacher")):
        config = manifests[kind]["config"]
        assert (config["loss"]["alpha"], config["loss"]["beta"], config["warm_start"]) == (0.0, 0.0, start)
    assert manifests["student"]["config"]["loss"]["beta"] > 0


def test_finished_models_are_read_back_and_new_ones_join_the_table(
    folder: Path, picked: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    before, results = models(folder), (folder / "results.json").read_text()
    monkeypatch.chdir(tmp_path)
    again = retrain_picks(picked, seeds=2, epochs=1)
    assert models(folder) == before
    assert (folder / "results.json").read_text() == results
    assert [row["kind"] for row in again.rows] == ["teacher", "student", "scratch", "finetune"]
    third = retrain_picks(picked, seeds=3, epochs=1)
    assert {name: models(folder)[name] for name in before} == before
    assert [(row["kind"], row["n"]) for row in third.rows][1:] == [
        ("student", 3),
        ("scratch", 2),
        ("finetune", 2),
    ]
    shutil.rmtree(next(folder.glob("trial-*/student/seed-3")))


def test_the_report_reads_the_results(folder: Path, tiny_run: Path) -> None:
    table = read_by_the_report(Run.open(tiny_run))
    assert list(table["kind"]) == ["student", "scratch", "finetune"]
    assert (table["n"] >= 2).all()
    assert table["latency_ms"].notna().all()


def test_another_length_does_not_overwrite_a_finished_model(folder: Path, picked: Path) -> None:
    with pytest.raises(InputError, match=r"seed-1/model\.json: holds a finished model of another config"):
        retrain_picks(picked, seeds=1, epochs=2)


def test_one_pick_of_a_moved_run_is_trained_with_its_full_budget(
    tiny_run: Path, picked: Path, tmp_path: Path
) -> None:
    moved = tmp_path / "moved"
    ignored = shutil.ignore_patterns("retrained", "trials", "study.db*")
    shutil.copytree(tiny_run, moved, ignore=ignored)
    inside = edited(picked, moved / "pick.yaml", lambda content: content.update(run="/not/there"))
    done = retrain_picks(inside, seeds=1)
    assert done.folder == moved / "retrained"
    assert done.rows[1]["epochs"] == FULL_BUDGET * 2
    assert done.rows[1]["test_accuracy_std"] is None


def test_overrides_train_on_other_data_and_say_so(picked: Path, tmp_path: Path) -> None:
    overrides = ["data.train_limit=400", "resources.concurrent=1"]
    done = retrain_picks(
        picked, seeds=1, epochs=1, out=tmp_path, overrides=overrides, command="ama retrain -o …"
    )
    (file,) = tmp_path.glob("trial-*/student/seed-1/model.json")
    manifest = json.loads(file.read_text())
    assert manifest["data"]["images"]["train"] == manifest["data"]["config"]["train_limit"] == 400
    made = {"command": "ama retrain -o …", "study": "tiny", "seeds": [1], "overrides": overrides}
    assert manifest["made"] == made
    assert (
        "- overrides: data.train_limit=400, resources.concurrent=1" in (file.parent / "README.md").read_text()
    )
    assert done.rows[1]["n"] == 1
    with pytest.raises(InputError, match=r"seed-1/model\.json: holds a finished model of another data_hash"):
        retrain_picks(picked, seeds=1, epochs=1, out=tmp_path)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "space.widths=[1]",
            r"override 'space.widths=\[1\]': a retraining accepts only keys of data, library",
        ),
        ("teacher.arch=x", "a retraining accepts only keys of data"),
        ("data.train_limit", "expected dotted.key=value"),
        ("data.train_limt=3", "train_limt"),
    ],
)
def test_overrides_that_cannot_be_used_are_refused(picked: Path, override: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        retrain_picks(picked, seeds=1, epochs=1, overrides=[override])


def test_a_training_that_fails_is_named_and_the_others_are_kept(picked: Path, tmp_path: Path) -> None:
    number = yaml.safe_load(picked.read_text())["picks"][0]["number"]
    blocked = tmp_path / f"trial-{number}" / "student" / "seed-2"
    blocked.parent.mkdir(parents=True)
    blocked.write_text("a file where the folder is to go")
    with pytest.raises(
        FailedError, match=rf"1 of 2 training runs failed(.|\n)*trial-{number}/student/seed-2: "
    ):
        retrain_picks(picked, seeds=2, epochs=1, out=tmp_path)
    assert set(models(tmp_path)) == {f"trial-{number}/student/seed-1"}
    before = models(tmp_path)
    blocked.unlink()
    done = retrain_picks(picked, seeds=2, epochs=1, out=tmp_path)
    assert done.rows[1]["n"] == 2
    assert before.items() <= models(tmp_path).items()


def test_a_diverged_training_says_so(picked: Path, tiny_run: Path, tmp_path: Path) -> None:
    def explode(content: dict[str, Any]) -> None:
        content["picks"][0]["config"]["optim"]["lr"] = 1e12

    wild = edited(picked, tmp_path / "pick.yaml", explode)
    with pytest.raises(FailedError, match=r"student/seed-1: TrainingDiverged: "):
        retrain_picks(wild, seeds=1, epochs=1, out=tmp_path / "out")
    assert models(tmp_path / "out") == {}


def lose_the_experiment(run: Path) -> None:
    (run / "experiment.yaml").unlink()


def lose_the_teacher(run: Path) -> None:
    (run / "teacher.safetensors").unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lose_the_experiment, r"its run .* does not exist, and the pick is not in a run directory"),
        (lose_the_teacher, r"the teacher of its run is gone: .*teacher\.safetensors does not exist"),
    ],
)
def test_a_run_that_is_incomplete_is_refused(
    tiny_run: Path, picked: Path, tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    run = tmp_path / "run"
    ignored = shutil.ignore_patterns("retrained", "trials", "study.db*")
    shutil.copytree(tiny_run, run, ignore=ignored)
    damage(run)
    inside = edited(picked, run / "pick.yaml", lambda content: content.update(run="."))
    with pytest.raises(InputError, match=message):
        retrain_picks(inside, seeds=1, epochs=1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda c: c["teacher"].update(hash="feed"),
            "made from the teacher feed, but the teacher of its run",
        ),
        (lambda c: c["experiment"].update(sampler="tpee"), r"experiment cannot be used\n  sampler.*tpee"),
        (lambda c: c["picks"][0]["config"].update(epochs=0), r"config of trial \d+ cannot be used\n  epochs"),
        (lambda c: c.update(picks=[]), "picks must be a list with at least one pick"),
        (lambda c: c.update(format=99), "expected a mapping with format: 1, got 99"),
    ],
)
def test_a_pick_that_cannot_be_used_is_refused(
    picked: Path, tmp_path: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    broken = edited(picked, tmp_path / "pick.yaml", change)
    with pytest.raises(ValueError, match=message) as refused:
        retrain_picks(broken, seeds=1, epochs=1, out=tmp_path / "out")
    assert type(refused.value).__name__ == "InputError"
    assert not (tmp_path / "out").exists()


def test_a_damaged_manifest_is_named(picked: Path, tmp_path: Path) -> None:
    manifest = tmp_path / "trial-1" / "student" / "seed-1" / "model.json"
    manifest.parent.mkdir(parents=True)
    manifest.write_text("{}")
    with pytest.raises(InputError, match=r"model\.json: not a manifest of a retrained model"):
        retrain_picks(picked, seeds=1, epochs=1, out=tmp_path)
