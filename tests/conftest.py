"""Fixtures that several test folders use."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator

import pytest

# Set before Ray is imported anywhere: `ray.init()` would switch token authentication on and leave it on for
# every process started afterwards; and torch's threads of several workers would fight over two cores.
os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ.setdefault("OMP_NUM_THREADS", "1")


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
