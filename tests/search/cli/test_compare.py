"""`ama compare` on real runs, in a process of its own: it needs neither torch nor Ray."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

CODE = """
import sys
from search.cli.app import main
try:
    main()
finally:
    print([name for name in ("torch", "ray") if name in sys.modules], file=sys.stderr)
"""


@pytest.fixture(scope="module")
def repeat(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run at another place."""
    copy = tmp_path_factory.mktemp("repeat") / "again"
    shutil.copytree(tiny_run, copy, ignore=shutil.ignore_patterns("trials", "retrained"))
    return copy


def test_compare_writes_and_answers_without_torch_and_ray(
    tiny_run: Path, repeat: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-c", CODE, "compare", tiny_run, repeat, "--json", "--out", tmp_path]
    ended = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.splitlines()[-1] == "[]"
    answer = json.loads(ended.stdout)
    assert [row["n"] for row in answer["groups"]] == [2]
    assert {row["hypervolume"] for row in answer["runs"]} == {answer["groups"][0]["hypervolume"]}
    assert (tmp_path / "compare.md").is_file() and (tmp_path / "hypervolume.png").is_file()


def test_compare_for_people(tiny_run: Path, repeat: Path, ama: Callable[..., object]) -> None:
    ended = ama("compare", tiny_run, repeat)
    assert ended.code == 0, ended.err  # type: ignore[attr-defined]
    assert "Hypervolume: the share of the box" in ended.out  # type: ignore[attr-defined]
    refused = ama("compare", tiny_run)
    assert refused.code == 2 and "two runs or more" in refused.err  # type: ignore[attr-defined]
