"""Recording: real tiny distillations, kept row by row, taken up again, written as a table."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import table_record
from benchmarks.plans import CIFAR, Plan, cifar
from benchmarks.table import Table
from trainables.config import DataConfig, RuntimeConfig, StudentSpec, TeacherConfig
from trainables.data.load import load_data
from trainables.runtime.runtime import resolve
from trainables.teacher.training import train_teacher

TINY = Plan(
    {
        "name": "tiny",
        "objectives": ["val_accuracy", "flops"],
        "data": {"name": "digits", "train_limit": 200},
        "teacher": {"arch": "cifar_resnet8", "epochs": 2, "batch_size": 64},
        "space": {
            "blocks": ["layer1.0", "layer3.0"],
            "widths": [0.25],
            "loss": {"alpha": 0.5, "tau": 4.0, "beta": 1.0, "supervision": "uniform"},
            "optim": {"lr": 0.05},
        },
        "budget": {"epochs": 2},
        "library": {"epochs": 1.0, "student_epochs": 1.0},
        "runtime": {"device": "cpu", "precision": "fp32", "layout": "contiguous", "threads": 1},
    },
    (0,),
    None,
)


def silent(text: str) -> None:
    pass


def test_rows_are_kept_and_two_shards_give_one_table(tmp_path: Path) -> None:
    work = tmp_path / "work"
    bench = table_record.prepare(TINY, work)
    points = TINY.points([block.name for block in bench.setup.blocks])
    assert len(points) == 2 * 3 + 1  # the student that keeps everything starts in one way only
    table_record.record_all(bench, points[0::2], work / "rows-0of2.csv", silent)
    out = tmp_path / "table.csv.gz"
    assert not table_record.finish(bench, TINY, points, out, "a command")
    with (work / "rows-0of2.csv").open("a") as rows:
        rows.write('"{""level/layer1.0""')  # a process that was killed while it wrote
    first = table_record.recorded(work)
    table_record.record_all(bench, points, work / "rows-0of2.csv", silent)
    runs = table_record.recorded(work)
    assert len(runs) == len(points)
    assert all(runs[key] == run for key, run in first.items())  # nothing was trained again
    again = table_record.prepare(TINY, work)  # as a second process finds it
    assert again.libraries[0].solo_loss == bench.libraries[0].solo_loss
    assert table_record.finish(again, TINY, points, out, "a command")
    table = Table.load(out)
    assert table.runs == runs
    for run in table.runs.values():
        price = table.price(table.space.to_config(run.params, 0).student)
        assert (run.params_count, run.flops) == (price.params, price.flops)
        assert len(run.val_accuracy) == len(run.val_loss) == table.epochs == 2
    repeated = table_record.record(again, points[0])
    assert repeated.val_accuracy == pytest.approx(runs[repeated.key].val_accuracy, abs=1e-5)


def test_the_library_counts_both_phases_and_its_scoring(tmp_path: Path) -> None:
    bench = table_record.prepare(TINY, tmp_path)
    costs, train, val = bench.setup.costs, len(bench.setup.data.train), len(bench.setup.data.val)
    teacher, modules = costs.teacher.flops, sum(c.flops for c in costs.modules.values())
    # One epoch each: the teacher and all modules; the teacher and a student; two modules' scores.
    fixed = train * (teacher + 3 * modules) + train * teacher + val * (2 + 3) * teacher
    students = (table_record.library_flops(bench.setup, 0) - fixed) / (3 * train)
    cheapest = costs.price(StudentSpec(widths={"layer1.0": 0.25, "layer3.0": 0.25})).flops
    assert cheapest < students < teacher
    assert table_record.library_flops(bench.setup, 1) != table_record.library_flops(bench.setup, 0)


def test_a_sample_of_the_cifar_space_is_recorded_on_an_image_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng, root = np.random.default_rng(0), tmp_path / "images"
    for part, count in (("train", 12), ("test", 2)):
        for name in "ab":
            folder = root / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                Image.fromarray(rng.integers(0, 255, (32, 32, 3), np.uint8)).save(folder / f"{i}.png")
    data = load_data(DataConfig(**{**CIFAR["data"], "root": str(root), "cache": str(tmp_path)}), test=True)
    weights = tmp_path / "teacher.safetensors"
    runtime = resolve(RuntimeConfig(device="cpu", threads=1))
    train_teacher(TeacherConfig(epochs=1, batch_size=8), data, runtime, weights, 0, None)
    out = tmp_path / "cifar.csv.gz"
    command = f"cifar --root {root} --teacher {weights} --sampled 2 --epochs 1 --train-limit 20 --out {out}"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["table_record", *command.split()])
    table_record.main()
    table = Table.load(out)
    assert [run.start for run in table.runs.values()] == ["teacher", "library"] * 2
    assert str(tmp_path) not in str(table.meta["experiment"])


def test_the_cifar_sample_is_distinct_inside_the_space_and_covers_the_cost_axis() -> None:
    names = [f"layer{stage}.{block}" for stage in (1, 2, 3) for block in (0, 1, 2)]
    points = [p for p in cifar("images", "weights", None).points(names) if p.start == "teacher"]
    assert len({str(p.params) for p in points}) == len(points) >= 100
    kept = [sum(p.params[f"level/{name}"] == 3 for name in names) for p in points]
    assert set(kept) >= set(range(9))
    assert all(0.1 <= p.params["alpha"] <= 0.9 and 0.01 <= p.params["lr"] <= 0.2 for p in points)
