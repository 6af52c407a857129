"""A user's own distillation method, from a file outside the packages, through the real command.

The files are the code blocks of docs/extending.md.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest

from analysis.picks.pick_file import read_pick
from analysis.runs.run import Run
from trainables.finished.model_files import load_model

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
COMMAND = "import sys; from search.cli.app import main; sys.argv[0] = 'ama'; main()"
PLAIN = "import:mymethods:Plain"
RANGES = f'space.method={{"{PLAIN}": {{tau: [2, 4], smoothing: 0.0}}}}'  # the mapping that the page mentions


def block(name: str) -> str:
    """The page's code block whose first line names the file `name`."""
    (text,) = re.findall(rf"```\w+\n(# {re.escape(name)}\b.*?)```", PAGE, re.DOTALL)
    return str(text)


@dataclass(frozen=True)
class Place:
    """A working directory with the user's files."""

    folder: Path
    path: tuple[Path, ...] = ()  # before everything else on Python's path

    def ama(self, *arguments: object, code: int = 0) -> str:
        """Run the command in a process of its own; what it printed."""
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
    """The files of the page, a search of both methods, and one of the page's own method alone."""
    folder = tmp_path_factory.mktemp("outside")
    for name in ("mymethods.py", "methods.yaml"):
        (folder / name).write_text(block(name), encoding="utf-8")
    place = Place(folder)
    place.ama("search", "methods.yaml", "--out", "run")
    place.ama("search", "methods.yaml", "--out", "alone", "-o", RANGES, "-o", "budget.trials=2")
    return place


def test_two_methods_are_searched_together(place: Place) -> None:
    run = Run.open(place.folder / "run")
    done = run.trials[run.trials["state"] == "COMPLETE"]
    assert len(done) == 6 and set(done["method"]) == {"ama", PLAIN}
    own = done["method"] == PLAIN
    assert done.loc[own, "plain/alpha"].between(0.5, 1.0).all()
    assert done.loc[own, "plain/tau"].between(1.0, 8.0).all()
    assert done.loc[~own, ["plain/alpha", "plain/tau"]].isna().all(axis=None)
    assert done.loc[own, "ama/alpha"].isna().all() and done.loc[~own, "ama/alpha"].notna().all()
    assert "plain/smoothing" not in done.columns  # without a range it is fixed
    assert done["optim/lr"].notna().all()


def test_parts_and_metrics_of_the_method_are_recorded(place: Place) -> None:
    run = Run.open(place.folder / "run")
    assert {"loss/ce", "loss/kl", "alpha"} <= set(run.recorded)
    rows = [trial for trial in run.rows if trial.params["method"] == PLAIN]
    steps = 2 * -(-run.data["train"] // 32)
    for trial in rows:
        curve, last = trial.user_attrs["curve"], trial.user_attrs["metrics"]
        assert last["loss/ce"] > 0 < last["loss/kl"]
        assert last["loss/ce"] + last["loss/kl"] == pytest.approx(last["train_loss"], rel=1e-4)
        alpha = trial.params["plain/alpha"]  # after the last step of each epoch
        expected = [alpha * (1 - (steps // 2 - 1) / steps), alpha * (1 - (steps - 1) / steps)]
        assert curve["alpha"] == pytest.approx(expected, rel=1e-3)
        assert last["loss/kl"] == pytest.approx(curve["loss/kl"][-1], rel=1e-3)


def test_the_report_names_both_methods(place: Place) -> None:
    place.ama("report", "run")
    report = place.folder / "run" / "report"
    methods = pd.read_csv(report / "methods.csv")
    assert list(methods["method"]) == ["ama", "plain"]
    assert methods["complete"].sum() == 6
    assert "plain" in (report / "index.html").read_text()
    assert "loss/kl" in pd.read_csv(report / "trials.csv").columns


def test_a_pick_of_the_method_is_retrained_beside_its_baselines(place: Place) -> None:
    place.ama("pick", "alone", "--knee", "--out", "alone/pick.yaml")
    (picked,) = read_pick(place.folder / "alone" / "pick.yaml").picks
    assert picked.config["method"] == PLAIN
    assert 2 <= picked.config["loss"]["tau"] <= 4 and picked.config["loss"]["smoothing"] == 0.0
    place.ama("retrain", "alone/pick.yaml", "--seeds", 1, "--epochs", 1, "--baselines")
    manifests = {file.parent.parent.name: file for file in (place.folder / "alone").rglob("model.json")}
    assert set(manifests) == {"student", "scratch", "finetune"}
    told = {name: json.loads(file.read_text()) for name, file in manifests.items()}
    assert told["student"]["history"][-1]["loss/kl"] > 0 == told["finetune"]["history"][-1]["loss/kl"]
    model, manifest = load_model(manifests["student"].parent)  # without the user's file
    assert manifest["config"]["method"] == PLAIN
    assert sum(p.numel() for p in model.parameters()) == picked.costs["params"]


def test_the_method_of_an_installed_package(place: Place, tmp_path: Path) -> None:
    site = tmp_path / "site"
    metadata = site / "toys-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: toys\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[ama_search.method]\nplain = mymethods:Plain\n")
    assert '[project.entry-points."ama_search.method"]\nplain = "mymethods:Plain"' in PAGE
    (site / "mymethods.py").write_text(block("mymethods.py"))
    (tmp_path / "methods.yaml").write_text(block("methods.yaml").replace(PLAIN, "plain"))
    teacher = place.folder / "run" / "teacher.safetensors"
    said = Place(tmp_path, (site,)).ama(
        "search", "methods.yaml", "--dry-run", "-o", f"teacher.checkpoint={teacher}"
    )
    assert "2 (method)" in said


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("space.method=import:mymethods:Plane", ["space.method", "does not have 'Plane'", "nearest: Plain"]),
        ("space.method=plain", ["space.method", "unknown method 'plain'", "expected one of ama"]),
        (f'space.method={{"{PLAIN}": {{tua: 2}}}}', ["space.method", "tua", "tau"]),
        (f'space.method={{"{PLAIN}": {{alpha: [0.5, 2]}}}}', ["space.method", "alpha"]),
    ],
)
def test_mistakes_in_a_method_are_found_before_anything_trains(
    place: Place, override: str, parts: list[str], tmp_path: Path
) -> None:
    said = place.ama("search", "methods.yaml", "--out", tmp_path, "-o", override, code=2)
    for part in parts:
        assert part in said, said
    assert "Traceback" not in said and not list(tmp_path.rglob("teacher*"))
