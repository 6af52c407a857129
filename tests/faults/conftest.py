"""Parts of the tests that break running searches. The long ones run under `make test-faults`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "parts"))

from faultbench import experiment
from server import Postgres


@pytest.fixture(scope="session")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a trained teacher and its cost table, which every run starts from."""
    from search.stages.prepare import prepare

    folder = tmp_path_factory.mktemp("teacher")
    prepare(experiment(folder))
    return folder


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL of this session's own."""
    with Postgres.running() as server:
        yield server
