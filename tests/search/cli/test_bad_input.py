"""Every mistake of the user's is one clear message and exit code 2, before any training."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from PIL import Image

from trainables.network.architectures import build_model
from trainables.network.weights import save_weights

Ama = Callable[..., Any]
SECRET = "hunter2"


def refused(ended: Any, *patterns: str) -> str:
    """The one message of a command that ended with 2; it matches every pattern."""
    assert ended.code == 2, f"exit code {ended.code}: {ended.out}{ended.err}"
    assert ended.out == ""
    assert "Traceback" not in ended.err
    message = str(ended.err.rpartition("error: ")[2])
    for pattern in patterns:
        assert re.search(pattern, message), f"{pattern!r} not in {message!r}"
    assert "training the teacher" not in ended.err
    return message


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


# The experiment file.


def test_unknown_keys_come_all_at_once_with_the_nearest_names(ama: Ama, here: Path) -> None:
    (here / "e.yaml").write_text("nmae: e\ndata: {nam: digits}\nbudget: {trails: 3}\nsampler: {name: tpee}\n")
    message = refused(
        ama("search", "e.yaml"),
        r"e\.yaml: 4 faults",
        r"\n  nmae: unknown key; the nearest valid key is name\n",
        r"\n  data\.nam: unknown key; the nearest valid key is data\.name\n",
        r"\n  budget\.trails: unknown key; the nearest valid key is budget\.trials\n",
        r"sampler\.name: unknown sampler 'tpee' \(nearest: tpe\): expected one of tpe, ",
    )
    assert len(message.strip().splitlines()) == 5


@pytest.mark.parametrize(
    ("text", "patterns"),
    [
        ("seed: 1\nbudget: {trials: 3}\nbudget: {epochs: 2}\n", ["budget: duplicate key, on lines 2 and 3"]),
        ("space: {widths: [0.25\nseed: 1\n", [r"e\.yaml", "line"]),
        ("- a list\n", [r"e\.yaml", "mapping"]),
        ("space: {loss: {tau: [8, 1]}}\n", [r"space\.loss\.tau", "8"]),
        ("space: {loss: {alpha: [0.1, 1.5]}}\n", [r"space\.loss\.alpha", r"1\.5"]),
        ("space: {optim: {lr: {low: 0, high: 1, log: true}}}\n", [r"space\.optim\.lr"]),
        ("space: {widths: [0.25, -1]}\n", [r"space\.widths\.1: expected a width above 0", "-1"]),
        ("budget: {epochs: 2, grace_epochs: 3}\n", [r"budget\.grace_epochs: expected at most", "2", "3"]),
        ("objectives: [val_accuracy]\n", ["objectives: expected at least two different metrics"]),
        ("constraints: {flops: 'under half'}\n", [r"constraints\.flops", "under half"]),
        (
            "data: {name: cifra10}\n",
            [r"data\.name: unknown data set 'cifra10' \(nearest: cifar10"],
        ),
    ],
)
def test_faults_of_the_experiment_file(ama: Ama, here: Path, text: str, patterns: list[str]) -> None:
    (here / "e.yaml").write_text(text)
    refused(ama("profile", "e.yaml"), *patterns)
    assert sorted(path.name for path in here.iterdir()) == ["e.yaml"]


@pytest.mark.parametrize("command", ["teacher", "profile", "search"])
def test_unknown_preset(ama: Ama, here: Path, command: str) -> None:
    refused(
        ama(command, "digts"), r"digts: no such file, and no preset .* nearest preset is digits, of cifar10"
    )


def test_unknown_override(ama: Ama, here: Path) -> None:
    refused(
        ama("profile", "digits", "-o", "budgte.trials=3"),
        "budgte: unknown key; the nearest valid key is budget$",
    )
    refused(ama("profile", "digits", "-o", "budget.trials"), r"budget\.trials")


# Data.


def make_images(root: Path, classes: tuple[str, ...] = ("cat", "dog"), count: int = 12) -> Path:
    for split in ("train", "test"):
        for shade, name in enumerate(classes):
            (root / split / name).mkdir(parents=True)
            for index in range(count):
                colour = (40 + 100 * shade, 10 * index, 50)
                Image.new("RGB", (8, 8), colour).save(root / split / name / f"{index}.png")
    return root


def folder_options(root: Path) -> list[str]:
    options = {"data.name": "imagefolder", "data.root": root, "data.cache": root.parent / "cache"}
    options |= {"teacher.arch": "cifar_resnet8", "costs.seconds": 0.1, "run.dir": root.parent / "run"}
    return [part for key, value in options.items() for part in ("-o", f"{key}={value}")]


def test_missing_data_folder(ama: Ama, here: Path) -> None:
    refused(
        ama("profile", "digits", *folder_options(here / "none")), f"data.root: no such folder: {here}/none"
    )
    (here / "empty").mkdir()
    refused(
        ama("profile", "digits", *folder_options(here / "empty")), "has no folder train/", "found nothing"
    )


@pytest.mark.parametrize("name", ["cifar10", "svhn", "fashion_mnist"])
def test_data_set_that_was_not_downloaded(ama: Ama, here: Path, name: str) -> None:
    ended = ama("profile", "digits", "-o", f"data.name={name}", "-o", f"data.root={here}")
    refused(ended, f"data.root: {name} is missing or damaged in {here}", "-o data.download=true")


def test_undecodable_image_is_named(ama: Ama, here: Path) -> None:
    root = make_images(here / "images")
    (root / "train" / "cat" / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\n torn off")
    refused(ama("profile", "digits", *folder_options(root)), r"images/train/cat/torn\.png", "skip_unreadable")


def test_undecodable_images_are_counted_and_skipped_where_that_is_asked_for(
    ama: Ama, here: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = make_images(here / "images")
    for name in ("cat", "dog"):
        (root / "train" / name / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\n torn off")
    options = folder_options(root)
    ended = ama(
        "profile", "digits", *options, "-o", "data.skip_unreadable=true", "-o", "space.blocks=[layer1.0]"
    )
    assert ended.code == 0, ended.err
    assert "data.skip_unreadable: 2 images could not be decoded and are left out" in caplog.text


# Teachers and blocks.


def test_checkpoint_that_is_missing(ama: Ama, here: Path) -> None:
    refused(
        ama("teacher", "digits", "-o", "teacher.checkpoint=none.pt"),
        f"{here}/none.pt",
        "no such file|No such",
    )


def test_checkpoint_that_does_not_fit_names_the_keys(ama: Ama, here: Path) -> None:
    save_weights(build_model("cifar_resnet14", 7, (3, 8, 8)), here / "other.safetensors", {})
    refused(
        ama("teacher", "digits", "-o", "teacher.checkpoint=other.safetensors"),
        r"other\.safetensors",
        r"missing.*layer1\.2\.conv1\.weight",
        r"fc\.weight.*7.*10|fc\.weight.*10.*7",
    )


def test_checkpoint_that_is_no_weights_file(ama: Ama, here: Path) -> None:
    (here / "text.pt").write_text("not weights")
    refused(ama("teacher", "digits", "-o", "teacher.checkpoint=text.pt"), f"{here}/text.pt")


def test_checkpoint_that_would_run_code_is_not_unpickled(ama: Ama, here: Path) -> None:
    torch.save({"model": subprocess.Popen}, here / "evil.pt")
    refused(ama("teacher", "digits", "-o", "teacher.checkpoint=evil.pt"), f"{here}/evil.pt")


def test_unknown_architecture(ama: Ama, here: Path) -> None:
    refused(ama("profile", "digits", "-o", "teacher.arch=cifar_resnt20"), r"teacher\.arch", "cifar_resnt20")
    refused(ama("profile", "digits", "-o", "teacher.arch=torchvision:resnet19"), r"teacher\.arch", "resnet19")


def test_model_without_replaceable_blocks(ama: Ama, here: Path) -> None:
    (here / "flat_model.py").write_text(
        "from torch import nn\n\n"
        "def flat(num_classes: int) -> nn.Module:\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(192, num_classes))\n"
    )
    arch = "teacher.arch=import:flat_model:flat"
    refused(
        ama("profile", "digits", "-o", arch),
        "no replaceable block in Sequential: looked at 3 submodule calls",
    )


def test_block_pattern_that_matches_nothing(ama: Ama, here: Path) -> None:
    for command in ("profile", "teacher"):
        ended = ama(command, "digits", "-o", "space.blocks=['layer9*']", "--out", here / "run")
        refused(ended, r"space\.blocks: no block matches 'layer9\*'", r"layer1\.0, layer1\.1")
    assert not (here / "run").exists()


# The search.


def test_a_limit_that_no_student_can_keep(ama: Ama, tiny_yaml: Path, here: Path, local_ray: None) -> None:
    options = ["-o", "constraints={flops: '<= 0.01x'}", "--out", here / "run"]
    for dry in ([], ["--dry-run"]):
        refused(
            ama("search", tiny_yaml, *options, *dry),
            r"constraints: no student keeps flops <= 0\.01x \(that is <= 15\.6 k\)",
            r"the cheapest, with 3 of 3 blocks replaced, has params 9\.85 k, flops 282 k",
        )


def test_a_run_directory_that_already_holds_a_run(ama: Ama, tiny_yaml: Path, tiny_run: Path) -> None:
    refused(ama("search", tiny_yaml, "--out", tiny_run), "already holds a run", "--resume", "--out")
    refused(ama("quickstart", "--out", tiny_run), "already holds a run", f"{tiny_run}/report")


def test_resume_without_a_run(ama: Ama, tiny_yaml: Path, here: Path) -> None:
    refused(ama("search", tiny_yaml, "--out", here / "run", "--resume"), f"{here}/run holds no run")


def test_resume_of_another_experiment(ama: Ama, tiny_yaml: Path, tiny_run: Path) -> None:
    options = ["--out", tiny_run, "--resume", "-o", "seed=5", "-o", "budget.epochs=3"]
    refused(
        ama("search", tiny_yaml, *options), "was another experiment", "seed: 0 → 5", "budget.epochs: 2 → 3"
    )


def test_gpus_and_cpus_that_do_not_exist(ama: Ama, tiny_yaml: Path, here: Path, local_ray: None) -> None:
    for dry in ([], ["--dry-run"]):
        if torch.cuda.device_count() < 64:
            ended = ama("search", tiny_yaml, "-o", "resources.gpu=64", "--out", here / "run", *dry)
            refused(ended, r"resources\.gpu: a trial needs 64 GPUs, but there are \d+")
        ended = ama("search", tiny_yaml, "-o", "resources.cpu=4096", "--out", here / "run", *dry)
        refused(ended, r"resources\.cpu: a trial needs 4096 CPUs, but there are \d+")


def test_an_address_where_no_cluster_answers(tiny_yaml: Path, here: Path) -> None:
    # In a process of its own: this one has a Ray already, and would use it.
    command = [sys.executable, "-m", "search.cli.app", "search", str(tiny_yaml), "--address", "127.0.0.1:1"]
    ended = subprocess.run([*command, "--out", "run"], capture_output=True, text=True, check=False, cwd=here)
    assert ended.returncode == 2, ended.stderr
    assert ended.stderr.startswith("error: --address 127.0.0.1:1: no Ray cluster answers there")
    assert "Traceback" not in ended.stderr


def test_an_unreachable_database_is_named_without_its_password(ama: Ama, tiny_yaml: Path, here: Path) -> None:
    url = f"postgresql://user:{SECRET}@127.0.0.1:1/none"
    ended = ama("search", tiny_yaml, "-o", f"storage.study={url}", "--out", here / "run")
    message = refused(
        ended, r"storage\.study: cannot open the database postgresql.*://user:\*\*\*@127\.0\.0\.1:1/none"
    )
    assert SECRET not in message


# Runs.


COMMANDS = [("status",), ("report",), ("pick", "--knee")]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_run_that_is_none(ama: Ama, here: Path, command: tuple[str, ...]) -> None:
    name, *options = command
    refused(ama(name, "nowhere", *options), "nowhere does not exist: expected a run directory")
    (here / "empty").mkdir()
    refused(ama(name, "empty", *options), "empty is not a run directory: it has neither")
    assert not list((here / "empty").iterdir())


@pytest.mark.parametrize("command", COMMANDS)
def test_a_damaged_database(ama: Ama, here: Path, tiny_run: Path, command: tuple[str, ...]) -> None:
    run = here / "run"
    run.mkdir()
    shutil.copy(tiny_run / "experiment.yaml", run)
    (run / "study.db").write_bytes(b"no database at all" * 100)
    name, *options = command
    refused(ama(name, run, *options), "the study database cannot be read")


def test_a_database_out_of_reach_shows_no_password(
    ama: Ama, tiny_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AMA_STUDY_URL", f"postgresql+psycopg://user:{SECRET}@127.0.0.1:1/none")
    assert SECRET not in refused(
        ama("status", tiny_run), "the study database cannot be read", r"user:\*\*\*@"
    )


def study_like(run: Path, copy: Path, states: list[optuna.trial.TrialState]) -> Path:
    """A run directory whose study has the attributes of `run`'s, and trials in these states."""
    copy.mkdir()
    shutil.copy(run / "experiment.yaml", copy)
    source = optuna.load_study(study_name="tiny", storage=f"sqlite:///{run / 'study.db'}")
    study = optuna.create_study(
        study_name="tiny", storage=f"sqlite:///{copy / 'study.db'}", directions=source.directions
    )
    for key, value in source.user_attrs.items():
        study.set_user_attr(key, value)
    for state in states:
        study.add_trial(optuna.trial.create_trial(state=state, user_attrs={"config": {}}))
    return copy


@pytest.mark.parametrize("command", [("report",), ("pick", "--knee"), ("pick", "--max", "flops=0.5x")])
def test_a_run_without_trials(ama: Ama, here: Path, tiny_run: Path, command: tuple[str, ...]) -> None:
    run = study_like(tiny_run, here / "run", [])
    name, *options = command
    refused(ama(name, run, *options), "study 'tiny' has no trials yet")


@pytest.mark.parametrize("options", [("--knee",), ("--top", "3"), ("--max", "flops=0.5x"), ()])
def test_an_empty_front(ama: Ama, here: Path, tiny_run: Path, options: tuple[str, ...]) -> None:
    states = [optuna.trial.TrialState.PRUNED, optuna.trial.TrialState.FAIL, optuna.trial.TrialState.RUNNING]
    run = study_like(tiny_run, here / "run", states)
    message = "no trial has finished yet: 1 running, 1 stopped early, 1 failed"
    refused(ama("pick", run, *options), message)
    assert not (run / "pick.yaml").exists()


@pytest.mark.parametrize(
    ("options", "patterns"),
    [
        (["--max", "flops=0.001x"], ["none of 4 fully trained trials is within", "The nearest is trial"]),
        (["--min", "accuracy=1.01"], ["none of 4 fully trained trials is within", "breaks val_accuracy"]),
        (["--max", "flop=0.5x"], ["flop"]),
        (["--max", "flops"], ["max 'flops': expected metric=value"]),
        (["--max", "flops=many"], ["'many' is not a number"]),
        (["--knee", "--top", "2"], ["knee and top exclude each other"]),
        (["--top", "0"], ["top must be at least 1, got 0"]),
    ],
)
def test_picks_that_cannot_be_made(
    ama: Ama, tiny_run: Path, here: Path, options: list[str], patterns: list[str]
) -> None:
    refused(ama("pick", tiny_run, *options, "--out", here / "pick.yaml"), *patterns)
    assert not (here / "pick.yaml").exists()


def test_the_nearest_metric_is_named(ama: Ama, tiny_run: Path) -> None:
    refused(ama("pick", tiny_run, "--max", "latncy=1"), "latncy", "latency_ms")


# Picks and models.


def test_a_pick_that_is_none(ama: Ama, here: Path) -> None:
    refused(ama("retrain", "none.yaml"), r"none\.yaml cannot be read as a pick")
    (here / "list.yaml").write_text("- 1\n")
    refused(
        ama("retrain", "list.yaml"),
        r"list\.yaml is not a pick file: expected a mapping with format: 1, got 'list'",
    )


@pytest.mark.parametrize("command", [("evaluate",), ("export", "--format", "pt2")])
def test_a_model_that_is_none(ama: Ama, here: Path, command: tuple[str, ...]) -> None:
    name, *options = command
    refused(
        ama(name, "nowhere", *options), r"nowhere: no such folder; a retrained model is one with model\.safet"
    )
    (here / "model.json").write_text("{}")
    refused(ama(name, here, *options), "expected a model manifest of format 1, got None")


def test_an_unknown_export_format(ama: Ama, here: Path) -> None:
    refused(ama("export", "anything", "--format", "tflite"), "--format: expected pt2 or onnx, got 'tflite'")
