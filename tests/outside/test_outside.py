"""A user's own data set, sampler, metric and cost, from files outside the packages, through the real command.

The files are the code blocks of docs/extending.md.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import optuna
import pandas as pd
import pytest

import analysis.runs.run as runs
from analysis.compare.compare import compare_runs
from analysis.picks.pick_file import read_pick

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs" / "extending.md"
COMMAND = "import sys; from search.cli.app import main; sys.argv[0] = 'ama'; main()"
BLOCK = re.compile(r"```(?:python|yaml|toml)\n(.*?)```", re.DOTALL)


def blocks() -> dict[str, str]:
    """The page's code blocks by the file name in their first line; the entry points as `entry_points`."""
    found = {}
    for text in BLOCK.findall(DOCS.read_text(encoding="utf-8")):
        name = re.match(r"# ([\w.]+)", text)
        found[name[1] if name else "entry_points"] = text
    return found


@dataclass(frozen=True)
class Place:
    """A working directory with the user's files, and the command in processes of their own."""

    folder: Path
    path: tuple[Path, ...] = ()  # before everything else on Python's path

    def ama(self, *arguments: object, code: int = 0) -> str:
        path = os.pathsep.join(map(str, [*self.path, ROOT]))
        env = {**os.environ, "PYTHONPATH": path, "HOME": str(self.folder / "home"), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", COMMAND, *map(str, arguments)]
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, cwd=self.folder, env=env, timeout=300
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """The files of the page, and a finished search of its experiment."""
    folder = tmp_path_factory.mktemp("outside")
    files = {name: text for name, text in blocks().items() if "." in name}
    own = ["mycosts.py", "mydata.py", "mymetrics.py", "mysampler.py", "own.yaml"]
    assert sorted(files) == sorted([*own, "methods.yaml", "mymethods.py"])
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    place = Place(folder)
    place.ama("search", "own.yaml", "--out", "run")
    return place


@pytest.fixture
def laptop(place: Place, tmp_path: Path) -> Place:
    """A copy of the run where the user's files are not."""
    shutil.copytree(place.folder / "run", tmp_path / "run")
    return Place(tmp_path)


def test_rows_hold_the_users_metric_and_cost(place: Place) -> None:
    run = runs.Run.open(place.folder / "run")
    assert run.metrics == ["macro_f1", "int8_kib"]
    trials = run.trials
    complete = trials[trials["state"] == "COMPLETE"]
    assert len(complete) == 4
    assert complete["macro_f1"].between(0, 1).all() and complete["macro_f1"].nunique() > 1
    size = run.teacher["int8_kib"]
    assert complete["int8_kib"].between(1, 0.9 * size).all()
    assert (
        run.teacher["macro_f1"] > 0.3
        and run.teacher["params"] / 1024 < size < 4 * run.teacher["params"] / 1024
    )
    assert run.box.reference[1] == size
    assert run.data["classes"] == 3 and run.data["train"] == 324
    curves = run.curves()
    last = curves[curves["epoch"] == 2].set_index("number")["macro_f1"]
    assert last.to_dict() == pytest.approx(complete.set_index("number")["macro_f1"].to_dict(), abs=1e-4)
    texts = [limit["text"] for limit in run.constraints]
    assert texts == ["int8_kib <= 0.9x", "macro_f1 >= 10%"]
    attrs = run.trial(int(complete["number"].iloc[0])).user_attrs
    assert attrs["config"]["scores"] == ["import:mymetrics:MACRO_F1"]
    study = optuna.load_study(study_name="own", storage=f"sqlite:///{place.folder}/run/study.db")
    for row in study.trials:  # the limit's violation is told to Optuna
        if row.state.name == "COMPLETE":
            beyond = row.system_attrs["constraints:macro_f1 >= 10%"]
            assert beyond == pytest.approx((0.1 - row.values[0]) / 0.1)


def test_the_report_and_the_pick_need_no_file_of_the_user(laptop: Place, place: Place) -> None:
    laptop.ama("report", "run")
    report = laptop.folder / "run" / "report"
    for table in ("trials", "front"):
        assert {"macro_f1", "int8_kib"} <= set(pd.read_csv(report / f"{table}.csv").columns)
    assert "int8_kib_share" in pd.read_csv(report / "front.csv").columns
    points = pd.read_csv(report / "front-macro_f1-int8_kib.csv")
    assert points.loc[points["role"] == "teacher", "int8_kib"].item() > 70
    assert "macro_f1" in pd.read_csv(report / "learning-curves.csv").columns
    assert set(pd.read_csv(report / "importance-int8_kib.csv")["metric"]) == {"int8_kib"}
    summary = (report / "summary.md").read_text()
    assert "best macro F1" in summary and re.search(r"macro F1 \| size in int8", summary)
    laptop.ama("status", "run")
    status = json.loads(laptop.ama("status", "run", "--json"))
    assert {"macro_f1", "int8_kib"} <= set(status["front"][0]["values"])
    laptop.ama("pick", "run", "--max", "int8_kib=1x", "--min", "macro_f1=10%", "--out", "run/pick.yaml")
    (picked,) = read_pick(laptop.folder / "run" / "pick.yaml").picks
    assert {"macro_f1", "int8_kib"} <= set(picked.values) and "int8_kib" in picked.costs
    assert "macro_f1" in picked.reason
    assert "macro_f1" in laptop.ama("pick", "run", "--max", "int8_kb=3", code=2)
    found = compare_runs([laptop.folder / "run", place.folder / "run"])
    assert found.objectives == ("macro_f1", "int8_kib")


def test_a_retraining_uses_the_users_files(place: Place) -> None:
    place.ama("pick", "run", "--knee", "--out", "run/pick.yaml")
    place.ama("retrain", "run/pick.yaml", "--seeds", 1, "--epochs", 1)
    (manifest,) = (place.folder / "run" / "retrained").rglob("model.json")
    assert 0 <= json.loads(manifest.read_text())["history"][-1]["macro_f1"] <= 1
    results = pd.read_csv(place.folder / "run" / "retrained" / "results.csv")
    assert results["int8_kib"].notna().all()
    place.ama("report", "run", "--out", "again")
    assert "int8_kib" in pd.read_csv(place.folder / "again" / "retrained.csv").columns


def test_a_search_with_the_users_files_is_taken_up_again(place: Place, tmp_path: Path) -> None:
    for file in place.folder.iterdir():
        if file.is_file():
            shutil.copy(file, tmp_path)
    shutil.copytree(place.folder / "run", tmp_path / "run")
    again = Place(tmp_path)
    again.ama("search", "own.yaml", "--out", "run", "--resume", "-o", "budget.trials=6")
    trials = runs.Run.open(tmp_path / "run").trials
    complete = trials[trials["state"] == "COMPLETE"]
    assert len(complete) == 6 and complete["macro_f1"].notna().all()


def test_entry_points_of_an_installed_package(place: Place, tmp_path: Path) -> None:
    site = tmp_path / "site"
    metadata = site / "toys-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: toys\nVersion: 1.0\n")
    points = re.sub(r'\[project\.entry-points\."(.*?)"\]', r"[\1]", blocks()["entry_points"])
    (metadata / "entry_points.txt").write_text(points.replace('"', ""))
    for file in place.folder.glob("my*.py"):
        shutil.copy(file, site)
    text = blocks()["own.yaml"]
    for name, value in re.findall(r'(\w+) = "(.*?)"', blocks()["entry_points"]):
        text = text.replace(f"import:{value}", name).replace(f"import:./{value.replace(':', '.py:')}", name)
    assert "import:" not in text
    (tmp_path / "own.yaml").write_text(text.replace("trials: 4", "trials: 2"))
    Place(tmp_path, (site,)).ama("search", "own.yaml", "--out", "run")
    run = runs.Run.open(tmp_path / "run")
    assert run.metrics == ["macro_f1", "int8_kib"]
    assert run.experiment["data"]["name"] == "bars" and run.experiment["sampler"]["name"] == "qmc"
    assert (run.trials["state"] == "COMPLETE").sum() == 2


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("data.name=import:mydata:BARZ", ["data.name", "mydata does not have 'BARZ'", "nearest: BARS"]),
        ("data.name=digit", ["data.name", "unknown data set 'digit'", "nearest: digits"]),
        ("data.name=import:mymetrics:MACRO_F1", ["data.name", "expected a data set", "got MacroF1"]),
        ("sampler=tpee", ["sampler.name", "unknown sampler 'tpee'", "nearest: tpe"]),
        ("sampler=import:mydata:BARS", ["sampler.name", "expected a sampler"]),
        ("objectives=[import:mymetrics:F1, flops]", ["objectives.0.metric", "does not have 'F1'"]),
        ("objectives=[import:mydata:BARS, flops]", ["objectives.0.metric", "a metric of predictions"]),
        ("objectives=[val_accuracy, int8]", ["objectives.1.metric", "nearest is int8_kib"]),
        ("costs.extra=[import:mymetrics:MACRO_F1]", ["costs.extra", "expected a cost"]),
        ("constraints={int8_kb: <= 3}", ["constraints.int8_kb", "nearest is int8_kib"]),
        ("constraints={int8_kib: <= 1}", ["no student keeps int8_kib <= 1"]),
    ],
)
def test_what_cannot_be_used_is_found_before_anything_trains(
    place: Place, override: str, parts: list[str], tmp_path: Path
) -> None:
    said = place.ama("search", "own.yaml", "--out", tmp_path, "-o", override, code=2)
    for part in parts:
        assert part in said, said
    assert not list(tmp_path.rglob("teacher*"))
