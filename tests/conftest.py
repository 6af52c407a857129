"""The environment of every test: a temporary home, no state left by other tests, one shared Ray."""

from __future__ import annotations

import logging
import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent / "parts"))

from parallel import scheduler, sort_long_first
from temporary_home import TemporaryHome

# pytest-xdist's workers inherit the environment of the main process.
HOME = None if "PYTEST_XDIST_WORKER" in os.environ else TemporaryHome()

# Set before Ray is imported anywhere: `ray.init()` would switch token authentication on and leave it on for
# every process started afterwards; and torch's threads of several workers would fight over two cores.
os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ["OMP_NUM_THREADS"] = "1"
for name in ("AMA_STUDY_URL", "RAY_ADDRESS"):  # of the machine's user
    os.environ.pop(name, None)


def pytest_configure(config: pytest.Config) -> None:
    if HOME is not None:
        config.pluginmanager.register(HOME, "temporary_home")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if hasattr(config, "workerinput"):
        sort_long_first(items)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    return scheduler(config, log)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Let a test and its fixtures start from the same global state, whatever ran before them."""
    random.seed(0)
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed(0)
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0)
        torch.set_num_threads(1)
    if optuna := sys.modules.get("optuna"):
        optuna.logging.set_verbosity(optuna.logging.WARNING)


@pytest.fixture(autouse=True)
def unchanged_process() -> Iterator[None]:
    """Restore the environment, the import path and the working folder after a test."""
    environment, path, folder = dict(os.environ), list(sys.path), Path.cwd()
    yield
    current = {name: text for name, text in os.environ.items() if name == "PYTEST_CURRENT_TEST"}
    if os.environ != environment | current:
        os.environ.clear()
        os.environ.update(environment | current)
    sys.path[:] = path
    os.chdir(folder)


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """A Ray of two CPUs, started once; `search.cluster.connection.connected(None)` uses it as it is."""
    import ray

    from search.cluster.connection import SETTINGS

    os.environ.update(SETTINGS)
    ray.init(
        address="local",
        num_cpus=2,
        num_gpus=0,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=200 * 1024**2,
    )
    yield
    ray.shutdown()
