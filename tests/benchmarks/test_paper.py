"""The paper's table: its statistics in closed form, its data, and one tiny table from start to finish."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.stats import ttest_rel

from benchmarks.fastnas import FASTNAS_POINTS, markdown, summary
from benchmarks.paper import (
    LEARNING_RATES,
    learning_rates,
    parser,
    prepare,
    read_plan,
    record,
    rows,
    train,
    tune,
    untried,
)
from benchmarks.paper_arms import ARMS, LOGITS, SIZES, STEPS, Job, jobs
from benchmarks.paper_data import table_data
from benchmarks.paper_report import figures_of, measured, reached, statistics_of, write_table
from trainables.config import DataConfig, OptimConfig, StudentSpec
from trainables.errors import InputError

TINY = [
    *("-o", "data.name=digits", "-o", "data.size=null", "-o", "data.mean=null", "-o", "data.std=null"),
    *("-o", "data.augment=none", "-o", "teacher.arch=cifar_resnet14", "-o", "teacher.epochs=2"),
    *("-o", "costs.seconds=0.1", "--train-limit", "150", "--epochs", "1", "--seeds", "1", "--sizes", "half"),
]


def row(arm: str, seed: int, accuracy: float, curve: list[float], loss: float = 1.0) -> dict[str, Any]:
    return {
        "size": "half", "arm": arm, "seed": seed, "lr": 0.1, "test_accuracy": accuracy, "test_loss": loss,
        "val_accuracy": curve, "val_loss": [1.0] * len(curve), "seconds": [2.0] * len(curve),
    }  # fmt: skip


ROWS = [
    row("scratch", 1, 0.60, [0.2, 0.5, 0.6, 0.6], 1.0),
    row("scratch", 2, 0.62, [0.2, 0.4, 0.5, 0.7], 1.2),
    row("finetune", 1, 0.70, [0.5, 0.6, 0.7, 0.7], 0.8),
    row("finetune", 2, 0.71, [0.4, 0.5, 0.6, 0.65], 0.9),
]


def test_epochs_and_seconds_count_to_the_same_seeds_scratch_student() -> None:
    assert reached(ROWS[0], 0.6) == (3, 6.0)
    assert reached(ROWS[0], 0.61) is None
    found = measured(ROWS)
    assert found["scratch"]["values"]["epochs"] == {1: 3.0, 2: 4.0}
    assert found["finetune"]["values"]["epochs"] == {1: 2.0, 2: 4.0}  # seed 2 never had 0.7: all its epochs
    assert (found["finetune"]["reached"], found["finetune"]["compared"]) == (1, 2)
    assert found["finetune"]["values"]["seconds"] == {1: 4.0, 2: 8.0}


def test_differences_are_paired_by_seed() -> None:
    entry = statistics_of(ROWS)["half"]
    against = entry["arms"]["finetune"]["against_scratch"]
    assert against["test_accuracy"]["difference"] == pytest.approx(0.095)
    assert against["test_accuracy"]["p"] == pytest.approx(ttest_rel([0.70, 0.71], [0.60, 0.62]).pvalue)
    assert against["test_loss"]["percent"] == pytest.approx(-100 * 0.25 / 1.1)
    (step,) = entry["steps"]
    assert (step["arm"], step["over"]) == ("finetune", "scratch")
    figures = figures_of({"half": entry})
    assert figures["paper_half_finetune_points_over_scratch"] == 9.5
    assert figures["paper_half_finetune_epochs_share"] == round(3.0 / 3.5, 3)
    assert "paper_half_scratch_points_over_scratch" not in figures


def test_every_step_changes_one_thing() -> None:
    for arm, other, _ in STEPS:
        ours, theirs = ARMS[arm], ARMS[other]
        differs = [ours.start != theirs.start, ours.loss.supervision != theirs.loss.supervision]
        differs += [(ours.loss.alpha > 0) != (theirs.loss.alpha > 0)]
        differs += [(ours.loss.beta > 0) != (theirs.loss.beta > 0)]
        assert sum(differs) == 1, (arm, other)


def test_jobs_pair_all_arms_seed_by_seed_and_never_use_the_tuning_seed() -> None:
    found = list(jobs(["half", "quarter"], ["scratch", "logits"], 2))
    assert [job.seed for job in found] == [1] * 4 + [2] * 4
    config = Job("half", "logits", 2).config(
        ARMS["logits"], StudentSpec(), OptimConfig(batch_size=50), 7, 0.3
    )
    assert (config.loss, config.optim.lr, config.optim.batch_size) == (LOGITS, 0.3, 50)
    assert (config.epochs, config.seed, config.warm_start) == (7, 2, "teacher")


def image_folder(root: Path, train: int, test: int) -> Path:
    """Two classes; the n-th training image of a class is of grey n."""
    for split, count in (("train", train), ("test", test)):
        for name in ("a", "b"):
            (root / split / name).mkdir(parents=True)
            for index in range(count):
                Image.fromarray(np.full((8, 8, 3), index, np.uint8)).save(
                    root / split / name / f"{index:03}.png"
                )
    return root


def test_validation_is_on_files_that_the_teacher_has_not_seen(tmp_path: Path) -> None:
    root = image_folder(tmp_path / "images", 10, 2)
    config = DataConfig(
        name="imagefolder", root=str(root), size=8, train_limit=6, cache=str(tmp_path / "cache"),
        mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2),
    )  # fmt: skip
    data = table_data(config, saw=7, val_images=100)
    assert (len(data.train), len(data.val), len(data.test or ())) == (6, 6, 4)
    assert int(data.train.images.max()) < 7 <= int(data.val.images.min())
    assert data.val.labels.tolist() == [0, 0, 0, 1, 1, 1]
    fewer = table_data(config, saw=7, val_images=2)
    assert fewer.val.labels.tolist() == [0, 1]
    assert fewer.hash != data.hash
    with pytest.raises(InputError, match="no more than 10 training images"):
        table_data(config, saw=10, val_images=2)
    with pytest.raises(InputError, match="--teacher-saw needs"):
        table_data(DataConfig(), saw=10, val_images=2)


def test_a_size_that_replaces_nothing_is_refused() -> None:
    with pytest.raises(InputError, match="leaves no block of the teacher to replace"):
        SIZES["half"].spec([])


def test_a_tiny_table_from_start_to_finish(tmp_path: Path) -> None:
    args = parser().parse_args(
        [*TINY, "--work", str(tmp_path / "work"), "--arms", "scratch", "finetune", "library"]
    )
    said: list[str] = []
    bench = prepare(read_plan(args))
    assert bench.library is not None and set(bench.specs) == {"half"}
    first = record(bench, 0, 2, said.append)
    assert len(first) == len(said) == 2  # the other shard has one still to do
    done = record(bench, 1, 2, said.append)
    assert [r["arm"] for r in done] == ["scratch", "finetune", "library"]
    assert record(bench, 0, 1, said.append) == done and len(said) == 3  # nothing is trained twice
    file = next(bench.folder.glob("rows-0of2.jsonl"))
    file.write_text(file.read_text() + '{"size": "ha')  # a line that was cut off
    assert len(rows(bench.folder, "rows")) == 3
    assert train(bench, Job("half", "scratch", 1), 0.1)["test_accuracy"] == done[0]["test_accuracy"]
    text, figures = write_table(done, {**conditions_of(bench), "command": "x"}, tmp_path, "paper-tiny")
    assert "from scratch, cross-entropy | 1 |" in text
    written = json.loads((tmp_path / "paper-tiny.json").read_text())
    assert written["figures"].keys() == figures.keys()
    assert (tmp_path / "paper-tiny.png").stat().st_size > 10_000


def conditions_of(bench: Any) -> dict[str, Any]:
    from benchmarks.paper import conditions

    return conditions(bench)


def test_tuning_reads_no_test_image_and_picks_by_validation(tmp_path: Path) -> None:
    args = parser().parse_args([*TINY, "--work", str(tmp_path), "--arms", "scratch"])
    bench = prepare(read_plan(args))
    data = bench.setup.data
    data._on_device.clear()  # the teacher's record read them
    assert learning_rates(bench) == {"scratch": (0.1, False)}
    tune(bench, 0, 1, lambda _: None)
    assert {name for name, _ in data._on_device} == {"train", "val"}
    found = {r["lr"]: r["val_accuracy"] for r in rows(bench.folder, "tune")}
    (best, tuned) = learning_rates(bench)["scratch"]
    assert tuned and found[best] == max(found.values())
    assert min(found) < best < max(found)
    third = parser().parse_args([*TINY, "--work", str(tmp_path), "--arms", "scratch", "--sizes", "third"])
    other = prepare(read_plan(third))
    assert other.folder == bench.folder and learning_rates(other) == {"scratch": (0.1, False)}


def test_tuning_goes_on_beyond_an_end_of_the_grid() -> None:
    grid = dict.fromkeys(LEARNING_RATES, 0.5)
    assert untried({}) == 0.02
    assert untried(dict.fromkeys(LEARNING_RATES[:2], 0.5)) == 0.1
    assert untried({**grid, 0.05: 0.6}) is None
    assert untried({**grid, 0.2: 0.6}) == 0.4
    assert untried({**grid, 0.2: 0.6, 0.4: 0.1}) is None
    assert untried({**grid, 0.02: 0.6}) == 0.01


def test_points_lost_at_fastnas_limits() -> None:
    teacher = {"arch": "r", "test_accuracy": 0.90, "flops": 100, "params": 50}
    model = {"flops": 70, "params": 30, "epochs": 3}
    models = [{**model, "test_accuracy": a} for a in (0.895, 0.897, 0.896)]
    found = summary(teacher, models)
    assert found["fastnas_drop_points"] == 0.4
    assert found["fastnas_drop_low"] < 0.4 < found["fastnas_drop_high"]
    assert (found["fastnas_flops_share"], found["fastnas_params_share"]) == (0.7, 0.6)
    assert found["fastnas_drop_theirs"] == FASTNAS_POINTS
    text = markdown(
        found,
        {
            "command": "c", "trials": 3, "epochs": 2, "search_images": 10, "retrain_images": 20,
            "teacher": teacher, "models": models, "device": "d", "pick": "best",
        },
    )  # fmt: skip
    assert "| 90.00 → 89.60 ± 0.10 % | 0.40 [0.15, 0.65] |" in text
    assert summary(teacher, models[:1])["fastnas_drop_low"] is None
