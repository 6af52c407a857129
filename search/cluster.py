"""Ray: connect to a cluster or start one here, and check what is asked of it before anything runs."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import ray

from search.experiment import Resources
from trainables.errors import InputError

KNOCK_SECONDS = 10.0

# Keeps Ray quiet, and its older and newer output styles from mixing with ours.
QUIET = {
    "RAY_DEDUP_LOGS": "1",
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_SYNCER": "1",
}


@contextmanager
def connected(address: str | None, cpus: int | None = None) -> Iterator[None]:
    """A connection to Ray, closed afterwards; a Ray that was started here is stopped as well.

    Args:
        address: of a running cluster, `auto` for the one on this machine, None to start one here.
        cpus: CPUs of a Ray started here; None: all of this machine's.

    Raises:
        InputError: no cluster answers at `address`.
    """
    if ray.is_initialized():  # someone else's connection: use it and leave it open
        yield
        return
    for key, value in QUIET.items():
        os.environ.setdefault(key, value)
    # "local", not None: with None Ray would connect to the cluster of the environment's RAY_ADDRESS.
    here = {"address": "local", "include_dashboard": False, "num_cpus": cpus}
    options = here if address is None else {"address": address}
    try:
        if address is not None:
            _knock(address)
        ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
    except (OSError, ValueError, RuntimeError) as fault:
        if address is None:
            raise
        reason = (str(fault).splitlines() or [type(fault).__name__])[0]
        raise InputError(
            f"--address {address}: no Ray cluster answers there ({reason}); start one with `ray start "
            "--head` or `ray up cluster.yaml`, or leave --address away to run on this machine"
        ) from None
    try:
        yield
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """Check that something listens at `host:port`: Ray itself would try for minutes.

    Raises:
        OSError: nothing does.
    """
    host, colon, port = address.rpartition("://")[2].partition("/")[0].rpartition(":")
    if colon and port.isdigit():
        with socket.create_connection((host.strip("[]"), int(port)), timeout=KNOCK_SECONDS):
            pass


def slots(resources: Resources, total: Mapping[str, float] | None = None) -> int:
    """How many trials run at once.

    Args:
        resources: what one trial is to get.
        total: "CPU" and "GPU" that there are; None: of the cluster this process is connected to.

    Raises:
        InputError: there are not the CPUs or GPUs that one trial is to get.
    """
    total = ray.cluster_resources() if total is None else total
    fits = []
    for name, key, wanted in (("CPU", "cpu", resources.cpu), ("GPU", "gpu", resources.gpu)):
        if wanted <= 0:
            continue
        there = total.get(name, 0.0)
        if there < wanted:
            raise InputError(
                f"resources.{key}: a trial is to get {wanted:g} {name}s, but there are {there:g}; "
                f"lower resources.{key} or use a cluster that has them (--address)"
            )
        fits.append(int(there / wanted + 1e-9))
    most = min(fits, default=1)
    return most if resources.concurrent is None else min(resources.concurrent, most)
