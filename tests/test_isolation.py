"""Tests use a temporary home, and leave nothing for the tests after them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import optuna
import pytest
import ray
import torch

TESTS = Path(__file__).parent

WRITES = """
import subprocess
import sys
from pathlib import Path

def test_here():
    place = Path({place!r}).expanduser()
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text("x")

def test_in_a_process():
    subprocess.run([sys.executable, "-c", {code!r}], check=True)
"""


def run_session(
    home: Path, folder: Path, place: Path | str, *options: str
) -> subprocess.CompletedProcess[str]:
    """Run a session of two tests that write to `place`, by a user whose home is `home`."""
    code = f"from pathlib import Path; Path({str(place)!r} + '.2').expanduser().write_text('x')"
    (folder / "test_writes.py").write_text(WRITES.format(place=str(place), code=code))
    environment = {name: text for name, text in os.environ.items() if not name.startswith("PYTEST_")}
    environment |= {"HOME": str(home), "PYTHONPATH": str(TESTS), "TMPDIR": str(folder)}
    command = [sys.executable, "-m", "pytest", "-p", "conftest", "-p", "no:cacheprovider", *options]
    command += ["-c", str(TESTS.parent / "pyproject.toml"), "--rootdir", str(folder), str(folder)]
    return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home whose cache holds one measured runtime."""
    (tmp_path / "home" / ".cache" / "ama-search" / "runtime").mkdir(parents=True)
    (tmp_path / "home" / ".cache" / "ama-search" / "runtime" / "known.json").write_text("{}")
    return tmp_path / "home"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "session").mkdir()
    return tmp_path / "session"


@pytest.mark.parametrize("options", [("-n", "0"), ("-n", "2")])
def test_what_goes_to_the_home_goes_to_a_temporary_one(home: Path, folder: Path, options: tuple[str]) -> None:
    ended = run_session(home, folder, "~/.cache/ama-search/runtime/found.json", *options)
    assert ended.returncode == 0 and "2 passed" in ended.stdout, ended.stdout + ended.stderr
    assert [path.name for path in home.rglob("*.json*")] == ["known.json"]
    assert not (home / ".cache" / "matplotlib").exists()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        (".cache/ama-search/runtime/new.json", ("-n", "0")),
        (".cache/ama-search/runtime/known.json", ("-n", "2")),
        ("ray_results/run/result.json", ("-n", "0")),
        (".ama", ("-n", "0")),
    ],
)
def test_a_session_that_writes_to_the_real_home_fails(
    home: Path, folder: Path, name: str, options: tuple[str]
) -> None:
    ended = run_session(home, folder, home / name, *options)
    assert ended.returncode == 1 and "2 passed" in ended.stdout, ended.stdout + ended.stderr
    assert "the real home changed" in ended.stdout and f"{home / name}.2" in ended.stdout


def test_workers_of_ray_have_the_temporary_home(local_ray: None) -> None:
    @ray.remote(num_cpus=0.5)
    def found() -> str:
        from trainables.training.fastest_runtime import DEFAULT_CACHE

        return str(DEFAULT_CACHE.expanduser())

    assert ray.get(found.remote()) == f"{os.environ['HOME']}/.cache/ama-search/runtime"
    assert Path(os.environ["HOME"]).parent.name.startswith("ama-tests-")


@pytest.mark.parametrize("turn", [1, 2])
def test_a_test_finds_nothing_that_an_earlier_one_changed(turn: int, tmp_path: Path) -> None:
    assert "AMA_STUDY_URL" not in os.environ and str(tmp_path.parent) not in sys.path
    assert Path.cwd() not in tmp_path.parents and torch.get_num_threads() == 1
    assert optuna.logging.get_verbosity() == optuna.logging.WARNING
    assert torch.rand(()).item() == torch.rand((), generator=torch.Generator().manual_seed(0)).item()
    os.environ["AMA_STUDY_URL"] = "sqlite:///nowhere.db"
    sys.path.append(str(tmp_path.parent))
    os.chdir(tmp_path.parent)
    torch.set_num_threads(2)
    optuna.logging.set_verbosity(optuna.logging.DEBUG)
