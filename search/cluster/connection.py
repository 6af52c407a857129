"""Connect to a Ray cluster, or start Ray on this machine; check address and token first."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ray
from ray.exceptions import AuthenticationError, RayError, RayTaskError

from search.cluster.ray_adapter import check_token
from trainables.errors import InputError
from trainables.files import first_line

KNOCK_SECONDS = 10.0

SETTINGS = {
    # Silence Ray's own output, old and new style.
    "RAY_DEDUP_LOGS": "1",
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_SYNCER": "1",
    # By default Ray retries a task that ran out of memory for ever.
    "RAY_task_oom_retries": "2",
}


@contextmanager
def connected(address: str | None, cpus: int | None = None, modules: Sequence[str] = ()) -> Iterator[None]:
    """Connect to Ray, and disconnect on exit; a Ray started here is also stopped.

    Args:
        address: address of a running cluster, `auto` for the one on this machine, None to start Ray here.
        cpus: number of CPUs for a Ray started here; None: all of this machine.
        modules: Python files and packages to send to the workers of a running cluster.

    Raises:
        InputError: no cluster answers at `address`, or it requires another token.
    """
    if ray.is_initialized():  # the caller's connection: use it and leave it open
        yield
        return
    for key, value in SETTINGS.items():
        os.environ.setdefault(key, value)
    # "local", not None: with None Ray would connect to the cluster in the variable RAY_ADDRESS.
    here = {"address": "local", "include_dashboard": False, "num_cpus": cpus}
    there: dict[str, Any] = {"address": address}
    if modules:
        there["runtime_env"] = {"py_modules": list(modules)}
    options = here if address is None else there
    try:
        if address is not None:
            _knock(address)
            check_token(address)  # Ray itself would try for 20 seconds, and then say that nobody answers
        ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
    except AuthenticationError:
        raise InputError(
            f"--address {address}: the cluster asks for a token, and this process has none or another one; "
            "set RAY_AUTH_MODE=token and put the cluster's token into ~/.ray/auth_token, or name its file in "
            "RAY_AUTH_TOKEN_PATH"
        ) from None
    except (OSError, ValueError, RuntimeError) as fault:
        if address is None:
            raise
        reason = first_line(fault)
        raise InputError(
            f"--address {address}: no Ray cluster answers there ({reason}); start one with `ray start "
            "--head` or `ray up cluster.yaml`, or omit --address to run on this machine"
        ) from None
    try:
        yield
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """Check that something listens at `host:port`; Ray itself would retry for minutes.

    Raises:
        OSError: nothing listens there.
    """
    host, colon, port = address.rpartition("://")[2].partition("/")[0].rpartition(":")
    if colon and port.isdigit():
        with socket.create_connection((host.strip("[]"), int(port)), timeout=KNOCK_SECONDS):
            pass


def cause_of(fault: RayError) -> str:
    """Return the cause of a failed task in one line."""
    cause = fault.cause if isinstance(fault, RayTaskError) and fault.cause is not None else fault
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return f"{type(cause).__name__}: {lines[0] if lines else 'no message'}"
