"""Which room may import what, read from the source: the arrows of docs/architecture.md.

Imports inside functions and below `TYPE_CHECKING` count like all others.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from functools import cache
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("search", "trainables", "analysis")
MOST_MODULES = 12  # in a room, `__init__` aside

# Every room or single module of a package by its floor; imports go to lower floors of the same package.
FLOORS = {
    "trainables": (
        {"errors", "files"},
        {"registry"},
        {"config_base"},
        {"loss_config"},
        {"config"},
        {"runtime"},
        {"data", "network"},
        {"blocks"},
        {"student"},
        {"costs", "methods"},
        {"training"},
        {"library", "teacher"},
        {"finished", "trial"},
    ),
    "analysis": (
        {"errors"},
        {"metrics"},
        {"pareto", "intervals"},
        {"runs"},
        {"picks"},
        {"report"},
        {"compare"},
    ),
    "search": (
        {"errors", "presets", "clusters"},
        {"experiment"},
        {"policy", "study", "run_dir"},
        {"cluster"},
        {"stages", "cluster_files"},
        {"tune"},
        {"run"},
        {"cli"},
    ),
}
# Rooms of `search` in which Ray may be imported; in `trainables` only the trial may.
RAY_ROOMS = {"cluster", "cluster_files", "stages", "tune", "run"}
ADAPTERS = {"analysis/runs/optuna_adapter.py": "optuna", "search/cluster/ray_adapter.py": "ray"}
INTERNAL = ("ray.core.generated", "ray.experimental", "ray.autoscaler")  # not of Ray's documented API
TUNE_FILES = ("search/tune/", "trainables/trial.py")
# Imports that break a rule on purpose: "importer imports imported" and the reason.
EXCEPTIONS: dict[str, str] = {}


@cache
def modules() -> dict[str, Path]:
    """Every module of the three packages by its dotted name."""
    files = sorted(file for package in PACKAGES for file in (ROOT / package).rglob("*.py"))
    assert len(files) > 150, "the packages are not where this test looks"
    return {dotted(file): file for file in files}


def dotted(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@cache
def imported(file: Path) -> tuple[str, ...]:
    """Dotted names of what `file` imports: modules, and `module.name` for `from module import name`."""
    names: list[str] = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return tuple(names)


@cache
def arrows() -> dict[str, set[str]]:
    """Every module with the modules of the three packages that it imports."""

    def target(name: str) -> str | None:
        found = name if name in modules() else name.rpartition(".")[0]
        return found if found in modules() else None

    return {
        module: {found for name in imported(file) if (found := target(name)) and found != module}
        for module, file in modules().items()
    }


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def floor(module: str) -> int:
    package = module.partition(".")[0]
    return next(i for i, rooms in enumerate(FLOORS[package]) if room(module) in rooms)


def allowed(importer: str, name: str) -> bool:
    return f"{importer} imports {name}" in EXCEPTIONS


def importers(*names: str) -> set[str]:
    """Files that import one of these modules or something in them."""
    return {
        str(file.relative_to(ROOT))
        for file in modules().values()
        for name in imported(file)
        if any(name == each or name.startswith(f"{each}.") for each in names)
    }


def test_every_room_has_its_floor() -> None:
    for package, floors in FLOORS.items():
        listed = [name for rooms in floors for name in rooms]
        found = {room(module) for module in modules() if module.startswith(f"{package}.")}
        assert sorted(listed) == sorted(found)


def test_search_imports_the_other_packages_and_these_import_none() -> None:
    crossings = {
        (module.partition(".")[0], name.partition(".")[0]) for module, to in arrows().items() for name in to
    }
    assert {(a, b) for a, b in crossings if a != b} == {("search", "trainables"), ("search", "analysis")}


def test_arrows_between_rooms_point_down() -> None:
    upward = [
        f"{module} imports {name}"
        for module, to in arrows().items()
        for name in to
        if module.partition(".")[0] == name.partition(".")[0] and room(module) != room(name)
        if room(module) and not (room(name) and floor(name) < floor(module)) and not allowed(module, name)
    ]
    assert upward == []


def test_no_circles() -> None:
    left = {module: set(to) for module, to in arrows().items()}
    while free := [module for module, to in left.items() if not to & left.keys()]:
        for module in free:
            del left[module]
    assert left == {}, "these modules import each other in a circle, or are imported by such"


def test_the_circle_test_finds_one() -> None:
    assert "search.experiment.experiment" in arrows()["search.policy.space"]
    assert "analysis.metrics" in arrows()["analysis.pareto"]


@pytest.mark.parametrize("package", PACKAGES)
def test_rooms_are_small_enough_to_know(package: str) -> None:
    for folder in sorted((ROOT / package).glob("**/")):
        files = [file.name for file in folder.glob("*.py") if file.name != "__init__.py"]
        assert len(files) <= MOST_MODULES, f"{folder.relative_to(ROOT)}: {sorted(files)}"


def test_tests_mirror_the_rooms() -> None:
    for package, floors in FLOORS.items():
        for folder in (ROOT / "tests" / package).glob("*/"):
            if folder.name != "__pycache__":
                assert any(folder.name in rooms for rooms in floors), folder


def test_exceptions_are_needed() -> None:
    for text in EXCEPTIONS:
        importer, _, name = text.partition(" imports ")
        assert name in arrows()[importer], f"{text}: not so any more"


def test_libraries_stay_in_their_rooms() -> None:
    torch_or_ray = importers("torch", "torchvision", "ray")
    assert not {file for file in torch_or_ray if file.startswith("analysis/")}
    assert not {file for file in importers("optuna", "pandas", "typer") if file.startswith("trainables/")}
    ray = importers("ray")
    assert {file for file in ray if file.startswith("trainables/")} == {"trainables/trial.py"}
    outside = {file for file in ray if file.startswith("search/") and file.split("/")[1] not in RAY_ROOMS}
    assert outside == set()
    assert {file for file in importers("ray.tune") if not file.startswith(TUNE_FILES)} == set()
    # Run and checkpoint configurations come from `ray.tune`.
    assert importers("ray.train", "ray.air") == set()


def test_searcher_and_scheduler_know_verdicts_and_not_each_other() -> None:
    searcher, scheduler = "search.tune.searcher", "search.tune.scheduler"
    assert scheduler not in arrows()[searcher] and searcher not in arrows()[scheduler]
    assert "search.tune.verdicts" in arrows()[searcher] & arrows()[scheduler]


def private_names(file: Path) -> set[str]:
    """What `file` takes from a library that the library keeps to itself: imports, attributes, overrides."""
    found = {
        name
        for name in imported(file)
        if name.startswith(("optuna.", "ray."))
        and (any(part.startswith("_") for part in name.split(".")) or name.startswith(INTERNAL))
    }
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
            own = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            found |= set() if own else {ast.unparse(node)}
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            found |= set(re.findall(r"\b(?:ray|optuna)\._\w+", node.value))
    return found


def test_private_names_of_optuna_and_ray_are_used_in_one_file_each() -> None:
    found = {
        str(file.relative_to(ROOT)): names
        for package in ("search", "analysis")
        for file in sorted((ROOT / package).rglob("*.py"))
        if (names := private_names(file))
    }
    assert set(found) == set(ADAPTERS)
    for file, names in found.items():
        other = "ray" if ADAPTERS[file] == "optuna" else "optuna"
        assert not {name for name in names if name.startswith(other)}
    ray_in_trials = private_names(ROOT / "trainables/trial.py")
    assert not {name for name in ray_in_trials if name.startswith("ray")}


def test_the_next_major_version_of_a_library_with_an_adapter_is_not_installed() -> None:
    required = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert {"ray[tune]>=2.60,<3", "optuna>=5.0,<6"} <= set(required)
    for name, major in (("ray", 2), ("optuna", 5)):
        assert int(version(name).split(".")[0]) == major


def test_the_training_loop_knows_the_interface_of_methods_alone() -> None:
    training = [file for name, file in modules().items() if name.startswith("trainables.training.")]
    known = {
        name.removeprefix("trainables.methods.").partition(".")[0]
        for file in training
        for name in imported(file)
        if name.startswith("trainables.methods.")
    }
    assert known == {"base"}


def test_no_package_imports_the_tests_or_benchmarks() -> None:
    assert importers("tests", "benchmarks", "pytest") == set()


def loaded_by(module: str) -> set[str]:
    code = f"import sys, {module}; print(*sorted({{m.partition('.')[0] for m in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(done.stdout.split())


@pytest.mark.parametrize("package", PACKAGES)
def test_importing_a_package_is_cheap(package: str) -> None:
    loaded = loaded_by(package)
    assert package in loaded
    assert not {"torch", "ray", "optuna", "pandas", "matplotlib", "numpy"} & loaded


@pytest.mark.parametrize(
    "module",
    [
        "search.cli.app",
        "search.cli.tables",
        "search.cli.console",
        "search.experiment.load",
        "search.experiment.reference",
        "search.experiment.resolved",
        "trainables.config",
        "analysis.picks.pick",
    ],
)
def test_modules_that_must_load_without_torch_and_ray_do(module: str) -> None:
    assert not {"torch", "ray"} & loaded_by(module)
