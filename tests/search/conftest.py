"""The `ama` command inside this process, and one tiny real run that the tests share."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest

TINY = """
name: tiny
data: {name: digits, train_limit: 300}
teacher: {arch: cifar_resnet8, epochs: 3, batch_size: 32}
space: {widths: [0.25, 0.5], optim: {batch_size: 32}}
objectives: [val_accuracy, flops]
constraints: {flops: "<= 0.8x"}
budget: {trials: 4, epochs: 2, grace_epochs: 2}
costs: {batch_size: 4, seconds: 0.1}
resources: {concurrent: 2}
"""


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code, and what it wrote."""

    code: int
    out: str
    err: str


def call(*arguments: object) -> Ended:
    """Run `ama` with these arguments through its entry point."""
    from search.cli.app import main

    out, err, argv = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = ["ama", *map(str, arguments)]
    try:
        with redirect_stdout(out), redirect_stderr(err):
            main()
        code = 0
    except SystemExit as ended:
        code = int(ended.code or 0)
    finally:
        sys.argv = argv
    return Ended(code, out.getvalue(), err.getvalue())


@pytest.fixture(scope="session")
def ama() -> Callable[..., Ended]:
    """`ama("status", run)` gives exit code, stdout and stderr."""
    return call


@pytest.fixture(scope="session")
def tiny_yaml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An experiment of seconds."""
    path = tmp_path_factory.mktemp("experiment") / "tiny.yaml"
    path.write_text(TINY)
    return path


@pytest.fixture(scope="session")
def tiny_run(tiny_yaml: Path, tmp_path_factory: pytest.TempPathFactory, local_ray: None) -> Path:
    """The run directory of a finished search; tests may add files to it, and change none."""
    run = tmp_path_factory.mktemp("run") / "tiny"
    ended = call("search", tiny_yaml, "--out", run)
    assert ended.code == 0, ended.err
    return run
