"""Prices of separate students: exact params and FLOPs, measured latency, extra costs, the table's file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trainables.blocks.blocks import find_blocks
from trainables.config import RuntimeConfig, StudentSpec
from trainables.costs.load import load_costs
from trainables.costs.measure import measure_costs
from trainables.costs.table import CostTable
from trainables.errors import InputError
from trainables.network.architectures import build_model
from trainables.network.flops import count_flops, count_params
from trainables.runtime.runtime import resolve

SHAPE = (3, 8, 8)
ARCHS = ("wrn10_1", "wrn10_2")


@pytest.fixture(scope="module")
def table() -> CostTable:
    teacher = build_model("cifar_resnet8", 10, SHAPE).eval()
    runtime = resolve(RuntimeConfig(device="cpu", threads=1))
    blocks = find_blocks(teacher, SHAPE)
    return measure_costs(teacher, blocks, [0.25], True, SHAPE, runtime, 2, seconds=0.05, students=ARCHS)


def test_params_and_flops_are_exact_and_the_latency_is_measured(table: CostTable) -> None:
    import torch

    for arch in ARCHS:
        model, price = build_model(arch, 10, SHAPE).eval(), table.price(StudentSpec(arch=arch))
        assert (price.params, price.flops) == (
            count_params(model),
            count_flops(model, torch.zeros(1, *SHAPE)),
        )
        assert price.latency_ms > 0 and table.spread.students[arch] >= 0
    with pytest.raises(InputError, match="no student wrn16_1 in the cost table; it has wrn10_1, wrn10_2"):
        table.price(StudentSpec(arch="wrn16_1"))


def test_the_cheapest_student_may_be_a_separate_one(table: CostTable) -> None:
    assert table.cheapest("params", students=ARCHS)[0].arch == "wrn10_1"
    assert table.cheapest("params")[0].arch is None
    both = table.cheapest("params", students=("teacher", *ARCHS))[1].params
    assert both == min(table.cheapest("params")[1].params, table.students["wrn10_1"].params)
    assert table.price_bounds("params", students=ARCHS)[1] == table.students["wrn10_2"].params


def test_the_file_keeps_them_and_older_files_are_read(table: CostTable, tmp_path: Path) -> None:
    path = tmp_path / "costs.json"
    table.save(path)
    fields = json.loads(path.read_text())
    assert fields["format"] == 3

    def load(students: tuple[str, ...]) -> CostTable:
        return load_costs(
            path,
            teacher_hash=table.teacher_hash,
            image_shape=SHAPE,
            blocks=table.structure,
            allow_other_device=True,
            students=students,
        )

    assert load(ARCHS) == table
    with pytest.raises(InputError, match="students: expected wrn16_1 too, got wrn10_1, wrn10_2"):
        load((*ARCHS, "wrn16_1"))
    del fields["students"], fields["spread"]["students"]
    fields["format"] = 1
    path.write_text(json.dumps(fields))
    old = load(())
    old.save(path)
    assert json.loads(path.read_text()) == fields  # as older versions wrote it
    with pytest.raises(InputError, match="students: expected wrn10_1 too, got none"):
        load(("wrn10_1",))
