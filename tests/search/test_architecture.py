"""Which package may import what, read from the source: the arrows of the design."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OURS = {"search", "trainables", "analysis"}


def sources(package: str) -> list[Path]:
    files = sorted((ROOT / package).rglob("*.py"))
    assert len(files) > 5, f"no sources of {package}"
    return files


def imported(file: Path) -> Iterator[str]:
    """Dotted names of every module that `file` imports, inside functions too."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            yield str(node.module)


def offences(package: str, forbidden: set[str]) -> list[str]:
    return [
        f"{file.relative_to(ROOT)} imports {name}"
        for file in sources(package)
        for name in imported(file)
        if name.partition(".")[0] in forbidden
    ]


def test_analysis_imports_neither_torch_nor_ray_nor_the_other_packages() -> None:
    assert offences("analysis", {"torch", "torchvision", "ray", "search", "trainables"}) == []


def test_trainables_imports_neither_of_the_other_packages_nor_optuna() -> None:
    assert offences("trainables", {"search", "analysis", "optuna"}) == []


def test_ray_is_imported_by_the_search_and_by_the_trial_alone() -> None:
    assert {o.partition(" ")[0] for o in offences("trainables", {"ray"})} == {"trainables/trial.py"}
    assert any(offences("search", {"ray"})), "the check itself finds nothing"


def test_run_configs_come_from_ray_tune() -> None:
    names = [name for package in ("search", "trainables") for f in sources(package) for name in imported(f)]
    assert not [name for name in names if name.startswith(("ray.train", "ray.air"))]


@pytest.mark.parametrize("package", sorted(OURS))
def test_importing_a_package_is_cheap(package: str) -> None:
    code = f"import sys, {package}; print(*sorted({{m.partition('.')[0] for m in sys.modules}}))"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert package in loaded.stdout.split()
    assert not {"torch", "ray", "optuna", "pandas", "matplotlib", "numpy"} & set(loaded.stdout.split())


@pytest.mark.parametrize(
    "module",
    [
        "search.cli.app",
        "search.experiment.experiment",
        "search.cli.tables",
        "search.cli.console",
        "trainables.config",
        "analysis.picks.pick",
    ],
)
def test_modules_that_must_load_without_torch_and_ray_do(module: str) -> None:
    code = f"import sys, {module}; print(*sorted({{m.partition('.')[0] for m in sys.modules}}))"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert not {"torch", "ray"} & set(loaded.stdout.split())


def test_no_package_imports_the_tests_or_benchmarks() -> None:
    for package in sorted(OURS):
        assert offences(package, {"tests", "benchmarks", "pytest"}) == []
