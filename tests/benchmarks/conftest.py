"""A table without runs, with the prices of a real teacher."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from benchmarks.table import Table
from trainables.blocks.blocks import find_blocks
from trainables.config import RuntimeConfig
from trainables.costs.measure import measure_costs
from trainables.network.architectures import build_model
from trainables.runtime.runtime import resolve


@pytest.fixture(scope="module")
def empty_table() -> Callable[..., Table]:
    """`empty_table(experiment, seeds, library_flops)`: prices of cifar_resnet8 at the experiment's widths."""

    def make(experiment: dict[str, Any], seeds: tuple[int, ...], library_flops: float) -> Table:
        teacher = build_model("cifar_resnet8", 10, (3, 8, 8)).eval()
        blocks = find_blocks(teacher, torch.zeros(1, 3, 8, 8))
        runtime = resolve(RuntimeConfig(device="cpu", threads=1))
        widths = tuple(experiment["space"]["widths"])
        costs = measure_costs(teacher, blocks, widths, True, (3, 8, 8), runtime, seconds=0.05)
        library = {
            "seconds": 3.0,
            "flops": library_flops,
            "solo_loss": {key: 1 / cost.flops for key, cost in costs.modules.items()},
        }
        meta = {
            "experiment": experiment,
            "classes": 10,
            "train": 100,
            "val": 50,
            "costs": costs.model_dump(mode="json"),
            "libraries": {str(seed): library for seed in seeds},
        }
        return Table(meta, {})

    return make
