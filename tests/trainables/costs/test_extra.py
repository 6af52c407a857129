"""Costs beside the built-in three: measured once, priced exactly for every student, written and read."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from trainables.blocks.blocks import find_blocks
from trainables.config import RuntimeConfig, StudentSpec
from trainables.costs.load import load_costs
from trainables.costs.measure import measure_costs
from trainables.costs.table import CostTable
from trainables.errors import InputError
from trainables.network.architectures import build_model
from trainables.runtime.runtime import resolve
from trainables.student.build import build_student

RUNTIME = resolve(RuntimeConfig(device="cpu", threads=1))
WIDTHS = (0.5, 1.0)


def cost(function, name="convs"):
    return {name: SimpleNamespace(metric=SimpleNamespace(name=name), measure=function)}


def convolutions(module, inputs, runtime):
    return sum(isinstance(each, nn.Conv2d) for each in module.modules())


def table_with(extra, arch="cifar_resnet8"):
    torch.manual_seed(0)
    teacher = build_model(arch, 10, (3, 8, 8)).eval()
    blocks = find_blocks(teacher, torch.zeros(1, 3, 8, 8))
    table = measure_costs(teacher, blocks, WIDTHS, True, (3, 8, 8), RUNTIME, 1, seconds=0.0, extra=extra)
    return teacher, blocks, table


@pytest.mark.parametrize("arch", ["cifar_resnet8", "cifar_resnet14", "torchvision:mobilenet_v3_small"])
def test_the_price_of_any_student_is_what_it_measures(arch):
    teacher, blocks, table = table_with(cost(convolutions), arch)
    assert table.teacher.others == {"convs": convolutions(teacher, None, None)}
    rng = random.Random(0)
    for fuse in (True, False, True):
        widths = {block.name: rng.choice(WIDTHS) for block in blocks if rng.random() < 0.7}
        spec = StudentSpec(widths=widths, fuse=fuse)
        student = build_student(teacher, blocks, spec)
        assert table.price(spec).as_dict()["convs"] == convolutions(student, None, None)
    spec, cheapest = table.cheapest("convs")
    assert cheapest.others["convs"] == table.price_bounds("convs")[0] == table.price(spec).others["convs"]


def test_a_table_with_more_costs_is_written_flat_as_format_2(tmp_path: Path):
    _, blocks, table = table_with(cost(convolutions))
    path = tmp_path / "costs.json"
    table.save(path)
    assert '"format": 2' in path.read_text() and '"convs": ' in path.read_text()
    wanted = {"teacher_hash": table.teacher_hash, "image_shape": (3, 8, 8), "blocks": blocks}
    assert load_costs(path, **wanted, extra=["convs"]) == table
    with pytest.raises(InputError, match="costs: expected energy too, got params, flops, latency_ms, convs"):
        load_costs(path, **wanted, extra=["energy"])


def test_a_table_of_the_built_in_costs_is_written_as_ever(tmp_path: Path):
    _, _, table = table_with({})
    table.save(tmp_path / "costs.json")
    text = (tmp_path / "costs.json").read_text()
    assert '"format": 1' in text and "others" not in text
    assert CostTable.model_validate_json(text) == table
    with pytest.raises(InputError, match=r"cost metric \(params, flops, latency_ms\), got 'convs'"):
        table.cheapest("convs")


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda *_: 1 / 0, "cost convs: measure failed: ZeroDivisionError"),
        (lambda *_: float("nan"), "cost convs: expected a finite number, got nan"),
        (lambda module, *_: convolutions(module, None, None) ** 2, "cost convs: it does not add up"),
    ],
)
def test_a_cost_that_cannot_be_used_says_why(function, message):
    with pytest.raises(InputError, match=message):
        table_with(cost(function))
