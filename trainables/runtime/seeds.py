"""Seed the random generators."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from trainables.config_base import hash_json


def seed_everything(seed: int) -> None:
    """Seed Python's, NumPy's and torch's global generators."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's CPU and current GPU generators; restore their states on exit."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


def stream(*parts: str | int) -> int:
    """Return a seed that depends on all `parts`: separate streams of random numbers for separate uses."""
    return int(hash_json(list(parts)), 16) % 2**63


def generator(*parts: str | int) -> torch.Generator:
    """Return a generator on the CPU, seeded with `stream(*parts)`."""
    return torch.Generator().manual_seed(stream(*parts))
