"""The README's tour and Python code and the tutorial, with budgets so small that nothing is learnt.

Lines that start with `ama` run through the command's entry point, one after the other in one process in an
empty folder (starting Python for each would take longer than the work); other blocks are given to bash.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCS = sorted((ROOT / "docs").glob("*.md"))
FENCED = re.compile(r"^```bash\n(.*?)^```$", re.M | re.S)
PYTHON = re.compile(r"^```python\n(.*?)^```$", re.M | re.S)
README_LINES = 200
WRITTEN = [
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
    *(file for file in DOCS if file.name != "experiment.md"),
]
UNCLEAR = ("anew", "dear", "dearer", "is to get", "mend", "of one's own", "so many", "where there is one")

RUNNER = """
import glob, json, logging, os, shlex, sys
import ray
from search.cli.app import main
from search.cluster.connection import SETTINGS

os.environ.update(SETTINGS)
ray.init(address="local", num_cpus=2, num_gpus=0, include_dashboard=False, log_to_driver=False,
         logging_level=logging.ERROR, object_store_memory=200 * 1024**2)
for words in json.load(sys.stdin):
    sys.argv = [w for word in words for w in (sorted(glob.glob(word)) or [word])]
    print("$", shlex.join(sys.argv), flush=True)
    try:
        main()
        code = 0
    except SystemExit as ended:
        code = int(ended.code or 0)
    if code:
        sys.exit(f"{shlex.join(sys.argv)}: exit code {code}")
"""


def blocks(file: Path) -> list[str]:
    """The bash blocks of a document."""
    return [match.group(1) for match in FENCED.finditer(file.read_text())]


def commands(block: str) -> list[list[str]]:
    """The words of each `ama` line of a block."""
    lines = block.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True)) and words[0] == "ama"]


def cheaper(words: list[str]) -> list[str]:
    """The same command with a budget of seconds, by the overrides that the tutorial names."""
    match words[1]:
        case "teacher" | "profile":
            return [*words, *TINY]
        case "search":
            return [*words, *TINY, "--trials", "3"]
        case "retrain":
            return [*words, "--seeds", "1", "--epochs", "1"]
    return words


def run_document(file: Path, folder: Path) -> list[str]:
    """Run a document's blocks in `folder`, what `ama` reads before `ama` itself; the commands that ran."""
    environment = {key: value for key, value in os.environ.items() if key != "AMA_STUDY_URL"}
    environment |= {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    environment |= {"HOME": str(folder)}  # nothing comes from caches or goes there
    found = blocks(file)
    lines = [words for block in found for words in commands(block) if words[1] != "--help"]
    others = [
        line for block in found for line in block.splitlines() if not line.startswith(("ama ", "source "))
    ]
    run(["bash", "-e"], "\n".join(others), folder, environment)
    run([sys.executable, "-c", RUNNER], json.dumps([cheaper(words) for words in lines]), folder, environment)
    return [words[1] for words in lines]


def run(command: list[str], given: str, folder: Path, environment: dict[str, str]) -> None:
    """Run `command` on `given` as its input; it must succeed."""
    ended = subprocess.run(
        command, input=given, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, f"{ended.stdout[-3000:]}\n{ended.stderr[-3000:]}"


TINY = [
    word
    for setting in (
        "budget.epochs=1",
        "budget.grace_epochs=1",
        "teacher.epochs=1",
        "data.train_limit=200",
        "costs.seconds=0.1",
        "constraints={flops: <= 0.5x}",  # what the documents ask of the pick is then there
        "resources.concurrent=1",
    )
    for word in ("-o", setting)
]


@pytest.mark.slow
def test_the_readmes_tour_runs(tmp_path: Path) -> None:
    ran = run_document(ROOT / "README.md", tmp_path)
    assert {"status", "report", "pick", "compare", "retrain", "evaluate", "export"} <= set(ran)
    run = tmp_path / "runs" / "digits"
    assert (run / "report" / "index.html").is_file()
    assert list(run.glob("retrained/trial-*/student/seed-1/model.onnx"))


@pytest.mark.slow
def test_the_readmes_python_runs(tmp_path: Path) -> None:
    (code,) = PYTHON.findall((ROOT / "README.md").read_text())
    assert code.count('["budget.trials=24"]') == code.count("seeds=3") == 1
    small = [*TINY[1::2], "budget.trials=3", "teacher.arch=cifar_resnet8"]
    code = code.replace('["budget.trials=24"]', repr(small)).replace("seeds=3", "seeds=1, epochs=1")
    environment = {key: value for key, value in os.environ.items() if key != "AMA_STUDY_URL"}
    environment |= {"HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    run([sys.executable, "-c", code], "", tmp_path, environment)
    assert list((tmp_path / "runs" / "digits" / "retrained").rglob("model.safetensors"))


@pytest.mark.slow
def test_the_tutorial_runs(tmp_path: Path) -> None:
    run_document(ROOT / "docs" / "tutorial.md", tmp_path)
    assert len(list((tmp_path / "images" / "train").rglob("*.png"))) > 1000
    assert (tmp_path / "runs" / "compared" / "compare.md").is_file()
    assert list((tmp_path / "runs" / "first").glob("retrained/trial-*/student/seed-1/model.onnx"))


@pytest.mark.parametrize("file", [ROOT / "README.md", *DOCS], ids=lambda file: file.name)
def test_links_between_documents_lead_somewhere(file: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", file.read_text()):
        if not target.startswith("http"):
            assert (file.parent / target).exists(), f"{file.name}: {target}"


def test_the_errors_of_the_faq_are_the_ones_there_are() -> None:
    source = "".join(
        file.read_text()
        for folder in ("search", "trainables", "analysis")
        for file in (ROOT / folder).rglob("*.py")
    )
    quoted = re.findall(r"^### `(.+)`$", (ROOT / "docs" / "faq.md").read_text(), re.M)
    assert len(quoted) > 15
    assert [fragment for fragment in quoted if fragment not in source] == []


@pytest.mark.parametrize("file", [ROOT / "README.md", *DOCS], ids=lambda file: file.name)
def test_files_that_the_documents_name_are_there(file: Path) -> None:
    for name in re.findall(r"`((?:search|trainables|analysis|tests)/[\w/]+\.py)`", file.read_text()):
        assert (ROOT / name).is_file(), f"{file.name}: {name}"


def test_the_architecture_names_every_room() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    assert len(re.findall(r"`(?:search|trainables|analysis)/[\w/]+\.py`", text)) > 60
    for package in ("search", "trainables", "analysis"):
        rooms = [file.parent.name for file in (ROOT / package).glob("*/__init__.py")]
        assert [room for room in rooms if f"`{package}/{room}`" not in text] == []


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= README_LINES


def test_every_result_names_its_command_and_where_its_figures_are() -> None:
    _, *sections = (ROOT / "docs" / "results.md").read_text().split("\n## ")
    assert len(sections) > 8
    for section in sections:
        assert re.search(r"`make [\w-]+|^ama search", section, re.M), section[:60]
        assert re.search(r"\]\(\.\./benchmarks/results/|`runs/[\w-]+/retrained/results\.md`", section), (
            section[:60]
        )


@pytest.mark.parametrize("file", WRITTEN, ids=lambda file: file.name)
def test_the_words_are_plain(file: Path) -> None:
    text = " ".join(file.read_text().split())
    assert [words for words in UNCLEAR if re.search(rf"\b{words}\b", text)] == []
