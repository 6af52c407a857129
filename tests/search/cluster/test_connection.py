"""What is asked of Ray, checked before anything runs."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import ray

from search.cluster.connection import connected
from search.cluster.slots import slots
from search.experiment.sections import Resources
from trainables.errors import InputError


@pytest.mark.parametrize(
    ("resources", "expected"),
    [
        ({}, 8),
        ({"cpu": 3}, 2),
        ({"cpu": 0.5}, 16),
        ({"gpu": 1}, 2),
        ({"gpu": 0.25}, 8),
        ({"cpu": 0.1, "gpu": 0.1}, 20),  # 2 / 0.1 is below 20 in floating point
        ({"concurrent": 3}, 3),
        ({"concurrent": 30}, 8),
    ],
)
def test_slots_are_what_fits(resources: dict[str, float], expected: int) -> None:
    assert slots(Resources.model_validate(resources), {"CPU": 8, "GPU": 2}) == expected


@pytest.mark.parametrize(
    ("resources", "message"),
    [
        ({"cpu": 9}, r"resources\.cpu: a trial needs 9 CPUs, but there are 8"),
        ({"gpu": 1}, r"resources\.gpu: a trial needs 1 GPUs, but there are 0; .*--address"),
    ],
)
def test_what_is_not_there_is_refused(resources: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        slots(Resources.model_validate(resources), {"CPU": 8})


def test_a_connection_that_is_there_is_used_and_left_open(local_ray: None) -> None:
    with connected(None):
        assert slots(Resources()) == 2
    assert ray.is_initialized()


SCRIPT = """
import ray
from search.cluster.connection import connected
from trainables.errors import InputError
try:
    with connected("127.0.0.1:1"):
        print("connected")
except InputError as fault:
    print("refused:", fault)
with connected(None, cpus=1):
    print("here:", ray.cluster_resources()["CPU"])
print("open:", ray.is_initialized())
"""


def test_an_address_where_no_cluster_answers_and_a_ray_of_our_own() -> None:
    # RAY_ADDRESS must not lead a search astray that is to run on this machine.
    env = {**os.environ, "RAY_ADDRESS": "127.0.0.1:2"}
    run = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, env=env)
    refused, here, still_open = run.stdout.splitlines()[-3:]
    assert refused.startswith("refused: --address 127.0.0.1:1: no Ray cluster answers there (")
    assert "ray start --head" in refused
    assert (here, still_open) == ("here: 1.0", "open: False")
