"""The `ama` command: help, answers for people and as JSON, exit codes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from search.cli.app import app  # which registers all commands
from search.cli.experiment_commands import load

Ama = Callable[..., Any]

# Names and options that the command promises.
OPTIONS = {
    "quickstart": ["--out"],
    "teacher": ["--json", "--out", "-o"],
    "profile": ["--json", "--out", "-o"],
    "search": ["--trials", "--address", "--resume", "--dry-run", "--out", "-o"],
    "status": ["--json"],
    "report": ["--out"],
    "pick": ["--max", "--min", "--knee", "--top", "--out", "--json"],
    "retrain": ["--seeds", "--epochs", "--baselines", "--out", "--json"],
    "evaluate": ["--data", "--json"],
    "export": ["--format", "--out"],
    "schema": [],
}


def answer(ended: Any) -> Any:
    """The JSON on stdout, which must be all there is."""
    assert ended.code == 0, ended.err
    return json.loads(ended.out)


COMMANDS = [
    command.name or command.callback.__name__ for command in app.registered_commands if command.callback
]


def test_the_promised_commands_are_there() -> None:
    assert set(OPTIONS) <= set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_the_options_and_an_example(ama: Ama, command: str) -> None:
    ended = ama(command, "--help")
    assert ended.code == 0
    assert f"Example: ama {command}" in ended.out
    for option in OPTIONS.get(command, []):
        assert option in ended.out


def test_help_waits_for_neither_torch_nor_ray() -> None:
    code = """if True:
        import sys
        from search.cli.app import app
        for command in [[], *([c.callback.__name__] for c in app.registered_commands)]:
            try:
                app([*command, "--help"])
            except SystemExit as ended:
                assert ended.code == 0
        print("loaded:", *sorted({m.partition(".")[0] for m in sys.modules}))
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = done.stdout.rpartition("loaded:")[2].split()
    assert "typer" in loaded
    assert not {"torch", "ray", "optuna", "pandas", "matplotlib", "sklearn"} & set(loaded)


def test_no_command_shows_the_help(ama: Ama) -> None:
    ended = ama()
    assert "quickstart" in ended.out + ended.err


def test_an_unknown_option_is_refused(ama: Ama) -> None:
    ended = ama("status", "--nope")
    assert ended.code == 2
    assert "--nope" in ended.err


def test_schema_lists_the_keys(ama: Ama) -> None:
    ended = ama("schema")
    assert ended.code == 0
    for key in (
        "data.name",
        "teacher.arch",
        "space.blocks",
        "budget.trials",
        "resources.gpu",
        "storage.study",
    ):
        assert f"`{key}`" in ended.out


def test_teacher_trains_once_and_then_reads_its_record(ama: Ama, tiny_yaml: Path, tmp_path: Path) -> None:
    first = ama("teacher", tiny_yaml, "--out", tmp_path / "run")
    assert first.code == 0, first.err
    assert "training the teacher" in first.err
    assert first.out.startswith("teacher cifar_resnet8: test accuracy ")
    assert str(tmp_path / "run" / "teacher.safetensors") in first.out
    second = ama("teacher", tiny_yaml, "--out", tmp_path / "run", "--json")
    record = answer(second)
    assert "training" not in second.err
    written = json.loads((tmp_path / "run" / "teacher.json").read_text())
    assert record.items() <= written.items()
    assert 0.5 < record["test_accuracy"] <= 1.0


def test_a_given_teacher_is_evaluated(ama: Ama, tiny_yaml: Path, tiny_run: Path, tmp_path: Path) -> None:
    checkpoint = tiny_run / "teacher.safetensors"
    override = f"teacher.checkpoint={checkpoint}"
    record = answer(ama("teacher", tiny_yaml, "-o", override, "--out", tmp_path / "run", "--json"))
    trained = json.loads((tiny_run / "teacher.json").read_text())
    assert (record["hash"], record["test_accuracy"]) == (trained["hash"], trained["test_accuracy"])
    assert record["source"] == "teacher.safetensors"
    assert not (tmp_path / "run").exists()


def test_profile_has_the_promised_form(ama: Ama, tiny_yaml: Path, tmp_path: Path) -> None:
    profile = answer(ama("profile", tiny_yaml, "--out", tmp_path / "run", "--json"))
    costs = {"params", "flops", "latency_ms"}
    assert costs <= set(profile["teacher"])
    assert [block["name"] for block in profile["blocks"]] == ["layer1.0", "layer2.0", "layer3.0"]
    for block in profile["blocks"]:
        assert {"in_shape", "out_shape"} | costs <= set(block)
    for module in profile["modules"]:
        assert {"span", "width"} | costs <= set(module)
    assert {module["width"] for module in profile["modules"]} == {0.25, 0.5}
    assert profile["blocks"][1]["in_shape"] == [16, 8, 8]


def test_profile_for_people_shows_every_block(
    ama: Ama, tiny_yaml: Path, tiny_run: Path, tmp_path: Path
) -> None:
    untrained = ama("profile", tiny_yaml, "--out", tmp_path / "run")
    assert "No teacher is trained yet" in untrained.out
    trained = ama("profile", tiny_yaml, "--out", tiny_run)
    assert trained.code == 0
    assert "No teacher" not in trained.out
    for text in ("layer1.0", "16×8×8", "the whole teacher", "78.0 k", "Latency of a batch of 4 on "):
        assert text in trained.out


def test_dry_run_prints_the_plan_and_nothing_else(ama: Ama, tiny_yaml: Path, tmp_path: Path) -> None:
    ended = ama("search", tiny_yaml, "--out", tmp_path / "run", "--trials", 7, "--dry-run")
    assert ended.code == 0
    assert ended.out.endswith("# nothing was started\n")
    assert yaml.safe_load(ended.out)["budget"]["trials"] == 7
    assert not (tmp_path / "run").exists()


def test_status_has_the_promised_form(ama: Ama, tiny_run: Path) -> None:
    status = answer(ama("status", tiny_run, "--json"))
    assert {"COMPLETE", "PRUNED", "FAIL", "RUNNING"} <= set(status["trials"])
    assert status["trials"]["COMPLETE"] == 4  # no early stopping: grace_epochs are the epochs
    assert status["trials"]["PRUNED"] == 0  # refused proposals count apart
    assert 0 < status["hypervolume"] <= 1
    for row in status["front"]:
        assert {"number", "values"} <= set(row)
        assert {"val_accuracy", "flops"} <= set(row["values"])


def test_status_for_people_shows_counts_front_and_hypervolume(ama: Ama, tiny_run: Path) -> None:
    shown = ama("status", tiny_run)
    status = answer(ama("status", tiny_run, "--json"))
    assert "trials: 4 complete, 0 stopped early, 0 failed" in shown.out
    assert f"hypervolume: {status['hypervolume']:.4f}" in shown.out
    assert shown.out.count(" %") == len(status["front"])


def test_report_writes_where_it_is_told(ama: Ama, tiny_run: Path, tmp_path: Path) -> None:
    ended = ama("report", tiny_run, "--out", tmp_path / "report")
    assert ended.code == 0, ended.err
    assert ended.out == f"report: {tmp_path / 'report' / 'index.html'}\n"
    assert (tmp_path / "report" / "index.html").stat().st_size > 10_000
    assert (tmp_path / "report" / "summary.md").exists()
    assert ended.err == ""


def test_pick_has_the_promised_form(ama: Ama, tiny_run: Path, tmp_path: Path) -> None:
    file = tmp_path / "pick.yaml"
    picks = answer(ama("pick", tiny_run, "--max", "flops=0.8x", "--out", file, "--json"))
    assert len(picks) == 1
    assert {"number", "values", "config", "reason"} <= set(picks[0])
    assert yaml.safe_load(file.read_text())["picks"] == picks
    several = answer(ama("pick", tiny_run, "--top", 2, "--out", file, "--json"))
    assert 1 <= len(several) <= 2
    assert len(yaml.safe_load(file.read_text())["picks"]) == len(several)


def test_pick_for_people_says_what_and_why(ama: Ama, tiny_run: Path, tmp_path: Path) -> None:
    ended = ama("pick", tiny_run, "--knee", "--out", tmp_path / "pick.yaml")
    assert ended.code == 0
    assert "the knee of" in ended.out
    assert ended.out.endswith(f"pick: {tmp_path / 'pick.yaml'}\n")


def test_limits_of_both_sides_bind(ama: Ama, tiny_run: Path, tmp_path: Path) -> None:
    front = answer(ama("status", tiny_run, "--json"))["front"]
    least = min(row["values"]["flops"] for row in front)
    best = max(row["values"]["val_accuracy"] for row in front)
    file = tmp_path / "pick.yaml"
    (cheapest,) = answer(ama("pick", tiny_run, "--max", f"flops={least}", "--out", file, "--json"))
    assert cheapest["values"]["flops"] == least
    (accurate,) = answer(ama("pick", tiny_run, "--min", f"accuracy={best}", "--out", file, "--json"))
    assert accurate["values"]["val_accuracy"] == best


def test_retrain_evaluate_and_export_follow_each_other(ama: Ama, tiny_run: Path, tmp_path: Path) -> None:
    assert ama("pick", tiny_run, "--knee", "--out", tmp_path / "pick.yaml").code == 0
    options = ["--seeds", 2, "--epochs", 1, "--out", tmp_path / "models"]
    shown = ama("retrain", tmp_path / "pick.yaml", *options)
    assert shown.code == 0, shown.err
    assert "retraining: 0/2" in shown.err
    assert "retraining: 2/2" in shown.err
    assert "± " in shown.out
    table = answer(ama("retrain", tmp_path / "pick.yaml", *options, "--json"))
    assert [row["kind"] for row in table["table"]] == ["teacher", "student"]
    model = next((tmp_path / "models").glob("trial-*/student/seed-1"))
    score = answer(ama("evaluate", model, "--json"))
    assert score["n"] == 359
    people = ama("evaluate", model)
    assert people.out == (
        f"test accuracy {score['accuracy'] * 100:.2f} %, test loss {score['loss']:.4f}, 359 images\n"
    )
    exported = ama("export", model, "--format", "pt2", "--out", tmp_path / "student.pt2")
    assert exported.code == 0, exported.err
    assert exported.out.startswith("import numpy as np\n")
    assert f"{tmp_path / 'student.pt2'}: " in exported.err.replace("\n", "")
    as_json = answer(ama("export", model, "--format", "pt2", "--out", tmp_path / "student.pt2", "--json"))
    assert as_json["max_abs_difference"] < 1e-4


def test_a_finished_search_is_not_resumed_in_vain(ama: Ama, tiny_yaml: Path, tiny_run: Path) -> None:
    ended = ama("search", tiny_yaml, "--out", tiny_run, "--resume")
    assert ended.code == 0, ended.err
    assert "search finished: all 4 trials are done already" in ended.out


def test_resume_with_more_trials_goes_on(ama: Ama, tiny_yaml: Path, tiny_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run, ignore=shutil.ignore_patterns("retrained", "report"))
    ended = ama("search", tiny_yaml, "--out", run, "--resume", "--trials", 5)
    assert ended.code == 0, ended.err
    assert "5 complete" in ended.out
    assert answer(ama("status", run, "--json"))["trials"]["COMPLETE"] == 5


def test_a_search_in_which_everything_fails_exits_with_1(
    ama: Ama, tiny_yaml: Path, tiny_run: Path, tmp_path: Path
) -> None:
    # A learning rate at which every loss is infinite within an epoch.
    overrides = ["-o", "space.optim.lr=1e30", "-o", "space.optim.warmup_epochs=0", "-o", "budget.trials=20"]
    given = ["-o", f"teacher.checkpoint={tiny_run / 'teacher.safetensors'}"]
    ended = ama("search", tiny_yaml, *overrides, *given, "--out", tmp_path / "run")
    assert ended.code == 1
    assert "failed" in ended.out
    assert "Traceback" not in ended.err
    assert answer(ama("status", tmp_path / "run", "--json"))["trials"]["FAIL"] >= 5


def test_a_retraining_that_fails_exits_with_1_and_names_the_seed(
    ama: Ama, tiny_run: Path, tmp_path: Path
) -> None:
    (picked,) = answer(ama("pick", tiny_run, "--knee", "--out", tmp_path / "pick.yaml", "--json"))
    blocked = tmp_path / "models" / f"trial-{picked['number']}" / "student" / "seed-1"
    blocked.parent.mkdir(parents=True)
    blocked.write_text("a file where the folder is to go")
    ended = ama("retrain", tmp_path / "pick.yaml", "--seeds", 1, "--epochs", 1, "--out", tmp_path / "models")
    assert ended.code == 1
    assert ended.out == ""
    assert "error: 1 of 1 training runs failed" in ended.err
    assert f"trial-{picked['number']}/student/seed-1: " in ended.err
    assert "Traceback" not in ended.err


def test_paths_of_an_experiment_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    overrides = [
        "data.root=images",
        "data.cache=~/cache",
        "teacher.checkpoint=weights/t.pt",
        "library.dir=lib",
    ]
    loaded = load("digits", overrides, None)
    assert loaded.data.root == str(tmp_path / "images")
    assert loaded.data.cache == str(Path.home() / "cache")
    assert loaded.teacher.checkpoint == str(tmp_path / "weights" / "t.pt")
    assert loaded.library.dir == str(tmp_path / "lib")
    assert load("digits", None, None).data.root is None


def test_a_place_that_cannot_be_written_is_one_message(ama: Ama, tiny_yaml: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    ended = ama("teacher", tiny_yaml, "--out", tmp_path / "file" / "run")
    assert ended.code == 2
    assert ended.err.splitlines()[-1] == f"error: {tmp_path / 'file' / 'run'}: Not a directory"
