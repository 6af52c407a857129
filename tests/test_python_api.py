"""The public Python API: lazily exported names, their examples, docs/python.md and docs/example.py.

Examples run in a folder that holds the tiny run `runs/digits`, with a pick, and its repeat `runs/other`, a
retrained model in `models/student` and a teacher in `teacher.safetensors`. They find the names of their own
package, `data`, `teacher`, `blocks`, `setup`, `costs` and the usual imports, as docs/python.md has them.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import re
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("trainables", "search", "analysis")
MOST_LINES = 8  # of an example
PAGE_LINES = 120
DOCS = ROOT / "docs"
SECTION = re.compile(r"^Example:\n((?:    .*\n|\n)+)", re.M)
FENCED = re.compile(r"^```python\n(.*?)^```$", re.M | re.S)


def exported() -> list[tuple[str, str]]:
    """Package and name of everything public."""
    return [(package, name) for package in PACKAGES for name in importlib.import_module(package).__all__]


def documented() -> list[tuple[str, str]]:
    """Exported functions and classes: everything but the registries and tables, in capitals."""
    return [(package, name) for package, name in exported() if not name.isupper()]


def example(thing: Any) -> str:
    """The code below `Example:` in a docstring."""
    found = SECTION.search(inspect.getdoc(thing) + "\n")
    assert found, f"{thing.__name__}: no example"
    return textwrap.dedent(found.group(1)).strip() + "\n"


@pytest.mark.parametrize("package", PACKAGES)
def test_public_names_resolve_and_are_listed(package: str) -> None:
    module = importlib.import_module(package)
    assert len(set(module.__all__)) == len(module.__all__) > 8
    assert set(module.__all__) <= set(dir(module))
    for name in module.__all__:
        value = getattr(module, name)
        if not name.isupper():
            assert value.__name__ == name
            assert value.__module__.startswith(("trainables.", f"{package}."))
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'serach'"):
        module.serach  # noqa: B018


@pytest.mark.parametrize("package", PACKAGES)
def test_no_public_name_hides_a_room_or_module(package: str) -> None:
    module = importlib.import_module(package)
    inside = {entry.stem for entry in Path(module.__path__[0]).iterdir()}
    assert inside.isdisjoint(module.__all__)


@pytest.mark.parametrize("package", PACKAGES)
def test_what_a_type_checker_sees_is_what_is_exported(package: str) -> None:
    tree = ast.parse((ROOT / package / "__init__.py").read_text())
    (block, *_) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {
        (a.name, node.module) for node in block.body if isinstance(node, ast.ImportFrom) for a in node.names
    }
    module = importlib.import_module(package)
    assert seen == {(name, f"{package}.{home}") for name, home in module._MODULES.items()}


def test_modules_keep_their_paths() -> None:
    code = (
        "from search import search\nfrom search.run import search as module\n"
        "from analysis import compare_runs, pick\nimport analysis.picks.pick, analysis.compare.compare\n"
        "from search import search as again\nfrom analysis import pick as picked\n"
        "assert callable(search) and search is again is module.search\n"
        "assert picked is pick is analysis.picks.pick.pick\n"
        "assert compare_runs is analysis.compare.compare.compare_runs"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_packages_say_that_they_are_typed() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    data = settings["tool"]["setuptools"]["package-data"]
    for package in PACKAGES:
        assert (ROOT / package / "py.typed").is_file()
        assert "py.typed" in data[package]


# Without this project's settings and pydantic's plugin: as in a user's own project.
MYPY = ("--strict", "--follow-imports=silent", "--ignore-missing-imports", f"--config-file={os.devnull}")
SNIPPET = """
from analysis import Run, front, load, pick
from search import Outcome, load_experiment, search
from trainables import DataConfig, DistillConfig, Setup, StudentSpec
from trainables import distill, evaluate, find_blocks, load_data, load_teacher

data = load_data(DataConfig(name="digits", train_limit=200))
teacher = load_teacher("teacher.safetensors", data)
blocks = find_blocks(teacher.model, data.image_shape)
config = DistillConfig(student=StudentSpec(fuse=False), epochs=2)
result = distill(config, Setup.of(teacher.model, blocks, data))
reveal_type(evaluate(result.student, data).accuracy)
reveal_type(search(load_experiment("digits")))
reveal_type(load("runs/digits"))
reveal_type(pick("runs/digits", max={"flops": "0.5x"})[0].number)
load_data(3)
from trainables import load_dato
"""


@pytest.mark.slow
def test_mypy_sees_the_names_and_their_types(tmp_path: Path) -> None:
    file = tmp_path / "snippet.py"
    file.write_text(SNIPPET)
    environment = {**os.environ, "MYPYPATH": str(ROOT)}
    ended = subprocess.run(
        [sys.executable, "-m", "mypy", *MYPY, "--cache-dir", str(tmp_path / "cache"), str(file)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    said = re.findall(r"snippet\.py:\d+: (.*)", ended.stdout)
    assert [line for line in said if line.startswith("note: Revealed")] == [
        f'note: Revealed type is "{kind}"'
        for kind in ("float", "search.run.search.Outcome", "analysis.runs.run.Run", "int")
    ], ended.stdout + ended.stderr
    errors = [line for line in said if line.startswith("error: ")]
    assert len(errors) == 2, errors
    assert 'Argument 1 to "load_data" has incompatible type "int"' in errors[0]
    assert 'Module "trainables" has no attribute "load_dato"' in errors[1]


@pytest.mark.parametrize(("package", "name"), documented())
def test_every_public_name_is_documented(package: str, name: str) -> None:
    thing = getattr(importlib.import_module(package), name)
    text = inspect.getdoc(thing) or ""
    assert len(example(thing).splitlines()) <= MOST_LINES
    if inspect.isfunction(thing):
        assert f"{name}(" in example(thing)
        sections = re.findall(r"^(Args|Returns|Raises|Example):$", text, re.M)
        assert sections == [s for s in ("Args", "Returns", "Raises", "Example") if s in sections]
        assert {"Args", "Example"} <= set(sections)
        described = set(re.findall(r"^    \**([\w, *]+):", text.partition("Args:")[2], re.M))
        described = {each.strip(" *") for names in described for each in names.split(",")}
        assert set(inspect.signature(thing).parameters) <= described
        assert "Returns" in sections or inspect.signature(thing).return_annotation == "None"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working directory for examples; nothing comes from the home directory or goes there."""
    place = tmp_path_factory.mktemp("api")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setenv("HOME", str(place))
        patch.delenv("AMA_STUDY_URL", raising=False)
        yield place


@pytest.fixture(scope="module")
def names(folder: Path, local_ray: None) -> dict[str, Any]:
    """What examples find: the variables, and the files in `folder`."""
    import numpy as np
    import torch
    from torch.nn.functional import cross_entropy

    import analysis
    import search
    import trainables as t

    tiny = ["budget.trials=2", "budget.epochs=1", "budget.grace_epochs=1", "data.train_limit=200"]
    tiny += ["teacher.arch=cifar_resnet8", "teacher.epochs=1", "teacher.batch_size=64", "costs.seconds=0.1"]
    for seed, run in enumerate(("runs/digits", "runs/other")):
        search.search(search.load_experiment("digits", [*tiny, f"seed={seed}"], out=run))
    analysis.write_pick("runs/digits/pick.yaml", analysis.pick("runs/digits"), "runs/digits")
    sample = t.DataConfig(name="digits", train_limit=200)
    data = t.load_data(sample, test=True)
    config = t.TeacherConfig(arch="cifar_resnet8", epochs=1, batch_size=64)
    teacher = t.train_teacher(config, data, t.resolve(), "teacher.safetensors")
    blocks = t.find_blocks(teacher.model, data.image_shape)
    costs = t.measure_costs(
        teacher.model, blocks, [0.25, 0.5], True, data.image_shape, t.resolve(), seconds=0.1
    )
    setup = t.Setup.of(teacher.model, blocks, data)
    t.retrain_one(
        t.DistillConfig(epochs=1), teacher, blocks, data, t.resolve(), "models/student", data_config=sample
    )
    found = {"data": data, "teacher": teacher, "blocks": blocks, "costs": costs, "setup": setup}
    return {**found, "torch": torch, "np": np, "Path": Path, "cross_entropy": cross_entropy}


def names_of(package: ModuleType) -> dict[str, Any]:
    return {name: getattr(package, name) for name in package.__all__}


@pytest.mark.parametrize(("package", "name"), documented())
def test_every_example_runs(package: str, name: str, names: dict[str, Any], capsys: Any) -> None:
    module = importlib.import_module(package)
    code = example(getattr(module, name))
    exec(compile(code, f"{package}.{name}", "exec"), {**names, **names_of(module), "__name__": "example"})
    assert capsys.readouterr().out or "print" not in code


def test_every_block_of_the_page_runs(names: dict[str, Any], folder: Path) -> None:
    """The blocks of docs/python.md, one after the other, in a folder without anything."""
    text = (DOCS / "python.md").read_text()
    assert len(text.splitlines()) <= PAGE_LINES
    place = folder / "page"
    place.mkdir()
    found = FENCED.findall(text)
    assert len(found) >= 6
    space: dict[str, Any] = {"__name__": "page"}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        for number, block in enumerate(found, start=1):
            exec(compile(block, f"python.md, block {number}", "exec"), space)
    imported = set(re.findall(r"\w+", " ".join(re.findall(r"^from \w+ import (.*)$", text, re.M))))
    assert imported <= {name for _, name in exported()}
    assert {"load_data", "load_teacher", "find_blocks", "distill", "evaluate", "search", "front"} <= imported


@pytest.mark.slow
def test_the_example_runs(tmp_path: Path) -> None:
    environment = {**os.environ, "AMA_EXAMPLE": "2 1 2", "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    environment |= {"MPLBACKEND": "agg"}
    ended = subprocess.run(
        [sys.executable, str(DOCS / "example.py")],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert (tmp_path / "front.png").stat().st_size > 5000
    assert re.search(r"^retrained: test accuracy 0\.\d+, loaded again: 0\.\d+$", ended.stdout, re.M)
    assert list((tmp_path / "runs" / "example").glob("study.db"))
