"""Run directories that version 0.1 left, opened by today's code in another folder of another machine.

`tests/data/run-v0.1/finished.tar.xz` is a search that ended (6 trials × 2 epochs, started from a module
library, some stopped early) with its `pick.yaml`; `unfinished.tar.xz` is one (6 trials × 5 epochs) whose
driver, Ray and workers were killed with SIGKILL while trials 2 and 3 were in their third epoch. The study
knows of two epochs of each; of trial 2 the newest checkpoint is of the first, as happens when a trial is
killed between its report and its checkpoint.

Both were made by `ama search tiny.yaml --out run` in an otherwise empty folder, with HOME elsewhere. An
archive holds the run directory `run/` and the library of `~/.cache/ama-search/library` as `library/`. Left
out are what Ray wrote for itself, `report/`, and the checkpoints of trials that have ended. No file in them
holds an absolute path: version 0.1 writes `run.dir` as it was given, and checkpoints relative to it.

A search only goes on with a cost table of its own device, so the test enters this machine's name there.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
import yaml
from optuna.trial import FrozenTrial

from trainables.runtime.runtime import device_name

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
RUNS = ROOT / "tests" / "data" / "run-v0.1"
CACHE = Path(".cache/ama-search/library")
CURVE = ("epoch", "val_accuracy", "val_loss", "train_loss", "seconds")


class Place:
    """A folder with a run directory `run` in it, and a home folder beside it with its library."""

    def __init__(self, archive: str, folder: Path) -> None:
        self.home, self.folder = folder / "home", folder / "elsewhere"
        self.run = self.folder / "run"
        with tarfile.open(RUNS / archive) as file:
            file.extractall(self.folder, filter="data")
        (self.home / CACHE).parent.mkdir(parents=True)
        shutil.move(self.folder / "library", self.home / CACHE)

    def ama(self, *words: object) -> tuple[str, str]:
        """What the command writes to stdout and stderr; it must succeed."""
        paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        kept = {name: value for name, value in os.environ.items() if name != "AMA_STUDY_URL"}
        ended = subprocess.run(
            [sys.executable, "-m", "search.cli.app", *map(str, words)],
            cwd=self.folder,
            env={**kept, "HOME": str(self.home), "XDG_CACHE_HOME": str(self.home), "PYTHONPATH": paths},
            capture_output=True,
            text=True,
            check=False,
        )
        assert ended.returncode == 0, f"{words}: {ended.stdout}\n{ended.stderr}"
        return ended.stdout, ended.stderr

    def answer(self, *words: object) -> Any:
        return json.loads(self.ama(*words, "--json")[0])

    def rows(self, study: str) -> dict[int, FrozenTrial]:
        """Rows of trials that ran, by number."""
        found = optuna.load_study(study_name=study, storage=f"sqlite:///{self.run}/study.db")
        rows = {row.number: row for row in found.trials if "refused" not in row.user_attrs}
        found._storage.remove_session()
        return rows


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place("finished.tar.xz", tmp_path_factory.mktemp("finished"))


def test_archives_hold_no_path_of_the_machine_they_were_made_on() -> None:
    for archive in sorted(RUNS.glob("*.tar.xz")):
        assert archive.stat().st_size < 2 * 2**20
        with tarfile.open(archive) as file:
            for entry in file:
                if (content := file.extractfile(entry)) is not None:
                    found = re.search(rb"/(home|root|tmp|srv|work|mnt|Users)/|sqlite:///", content.read())
                    assert not found, f"{archive.name}: {entry.name}"


def test_status_of_a_finished_run(finished: Place) -> None:
    status = finished.answer("status", "run")
    counts = {"COMPLETE": 3, "PRUNED": 3, "FAIL": 0, "RUNNING": 0, "WAITING": 0, "refused": 1}
    assert {name: status["trials"][name] for name in counts} == counts
    front = {row["number"]: row["values"] for row in status["front"]}
    flops = {0: 281856, 2: 681216, 1: 1080576}
    assert {number: values["flops"] for number, values in front.items()} == flops
    assert front[2]["val_accuracy"] == 98 / 144
    assert status["teacher"]["hash"] == json.loads((finished.run / "teacher.json").read_text())["hash"]


def test_report_of_a_finished_run(finished: Place) -> None:
    finished.ama("report", "run", "--out", "drawn")
    drawn = finished.folder / "drawn"
    assert {"index.html", "summary.md", "trials.csv", "front.csv"} <= {file.name for file in drawn.iterdir()}
    assert "tiny" in (drawn / "summary.md").read_text()
    assert len((drawn / "trials.csv").read_text().splitlines()) == 1 + 7


def test_a_pick_of_a_finished_run_is_the_pick_that_was_made_then(finished: Place) -> None:
    (picked,) = finished.answer("pick", "run", "--knee", "--out", "again.yaml")
    (before,) = yaml.safe_load((finished.run / "pick.yaml").read_text())["picks"]
    (again,) = yaml.safe_load((finished.folder / "again.yaml").read_text())["picks"]
    assert picked["number"] == before["number"] == again["number"] == 2
    assert before["values"].items() <= again["values"].items()
    # A key that came later has its default, and trained the same.
    for section, values in before["config"].items():
        ours = again["config"][section]
        assert values.items() <= ours.items() if isinstance(values, dict) else values == ours


def test_the_old_pick_is_retrained(finished: Place) -> None:
    made = finished.answer("retrain", "run/pick.yaml", "--seeds", 1, "--epochs", 1)
    assert made
    model = finished.run / "retrained" / "trial-2" / "student" / "seed-1"
    assert {file.name for file in model.iterdir()} == {"model.safetensors", "model.json", "README.md"}
    (result,) = json.loads((finished.run / "retrained" / "results.json").read_text())
    assert (result["kind"], result["number"], result["epochs"]) == ("student", 2, 1)
    assert (result["flops"], result["params"]) == (681216, 22746)


def test_an_unfinished_run_goes_on_from_its_checkpoints(tmp_path: Path) -> None:
    place = Place("unfinished.tar.xz", tmp_path)
    costs = json.loads((place.run / "costs.json").read_text())
    costs["device"] = device_name(torch.device("cpu"))
    (place.run / "costs.json").write_text(json.dumps(costs))
    before = place.rows("cut")
    assert {n: row.state.name for n, row in before.items()} == dict.fromkeys(
        (0, 1), "COMPLETE"
    ) | dict.fromkeys((2, 3), "RUNNING")
    saved = {
        number: 1 + max(int(path.name[-6:]) for path in place.run.glob(f"trials/{number:05d}-1/checkpoint_*"))
        for number in (2, 3)
    }
    assert saved == {2: 1, 3: 2}
    teacher = (place.run / "teacher.safetensors").read_bytes()

    out, err = place.ama("search", "run/experiment.yaml", "--resume")

    assert "all trials used" in out
    for words in ("starts from scratch", "trains", "checkpoint passed over", "checkpoint unreadable"):
        assert words not in err, err
    assert (place.run / "teacher.safetensors").read_bytes() == teacher
    assert [folder.name for folder in (place.home / CACHE).iterdir()] == ["09c6077ff24bbebd"]
    after = place.rows("cut")
    assert len(after) == 6
    for row in after.values():
        assert (row.state.name, row.user_attrs["epochs"]) == ("COMPLETE", 5)
        assert row.user_attrs["curve"]["epoch"] == [1, 2, 3, 4, 5]
        assert "epochs_lost" not in row.user_attrs and "retries" not in row.user_attrs
    for number in (0, 1):
        assert after[number] == before[number], "an ended row was written again"
    for number, epochs in saved.items():
        # An epoch takes another time whenever it is trained: the same seconds are the same training.
        ours, theirs = (rows[number].user_attrs["curve"] for rows in (after, before))
        for column in CURVE:
            assert ours[column][:epochs] == theirs[column][:epochs], (number, column)
        assert after[number].params == before[number].params
    status = place.answer("status", "run")
    assert (status["trials"]["COMPLETE"], status["trials"]["RUNNING"]) == (6, 0)
    assert set(place.answer("pick", "run", "--knee")[0]["config"]) >= {"student", "loss", "optim"}
    place.ama("report", "run")
    assert (place.run / "report" / "index.html").is_file()
