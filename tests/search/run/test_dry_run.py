"""`--dry-run`: what it says, and that it starts nothing."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path

import pytest
import ray
import yaml

from analysis.metrics import duration
from search.experiment.load import load_experiment
from search.experiment.resolved import resolved
from search.run.dry_run import plan
from trainables.costs.table import CostTable
from trainables.errors import InputError

TRAIN = 300


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("plan")


@pytest.fixture(scope="module")
def text(tiny_yaml: Path, folder: Path) -> str:
    before = ray.is_initialized()
    written = plan(load_experiment(tiny_yaml, ["runtime.threads=1"], folder / "run"))
    assert ray.is_initialized() == before
    return written


def test_nothing_is_started_or_written(text: str, folder: Path) -> None:
    assert text.endswith("# nothing was started")
    assert list(folder.iterdir()) == []


def test_the_text_is_the_resolved_experiment_as_yaml(text: str, tiny_yaml: Path, folder: Path) -> None:
    experiment = load_experiment(tiny_yaml, ["runtime.threads=1"], folder / "run")
    assert yaml.safe_load(text) == resolved(experiment)


def test_space_blocks_and_limits_are_named(text: str) -> None:
    assert "# search space: 2^1·3^2 = 18 students × 2 (ama/supervision) × 4 continuous ranges" in text
    assert "# blocks (3): layer1.0, layer2.0, layer3.0" in text
    assert re.search(r"# teacher: params 78\.0 k, flops 1\.56 M, .*; it is trained first, 3 epochs", text)
    assert "# limit: flops <= 0.8x (that is <= 1.25 M)" in text
    assert "# cheapest student: params 9.85 k, flops 282 k" in text


def test_one_trial_and_all_trials_are_priced(text: str) -> None:
    assert f"# one trial: 2 epochs of {TRAIN} images, about" in text
    assert re.search(r"# in all: 4 trials, at most about \d", text)
    at_once = min(2, os.cpu_count() or 1)
    assert f"# at once: {at_once} trials of 1 CPU and 0 GPU each" in text


def test_the_price_of_a_trial_follows_from_the_cost_table(tiny_yaml: Path, tiny_run: Path) -> None:
    costs = CostTable.model_validate_json((tiny_run / "costs.json").read_bytes())
    overrides = ["budget.epochs=40", "budget.trials=9", "resources.cpu=1"]
    text = plan(load_experiment(tiny_yaml, overrides, tiny_run))
    batches = 40 * TRAIN / 4
    # The teacher forward, the student forward and twice as much backward.
    low, high = (
        batches * (costs.teacher.latency_ms + 3 * latency) / 1e3
        for latency in costs.price_bounds("latency_ms")
    )
    assert f"# one trial: 40 epochs of 300 images, about {duration(low)} to {duration(high)} (" in text
    rounds = math.ceil(9 / min(2, os.cpu_count() or 1))
    assert f"# in all: 9 trials, at most about {duration(rounds * high)}, " in text


def test_the_costs_of_a_given_teacher_are_not_written(
    tiny_yaml: Path, tiny_run: Path, tmp_path: Path
) -> None:
    given = f"teacher.checkpoint={tiny_run / 'teacher.safetensors'}"
    text = plan(load_experiment(tiny_yaml, [given], tmp_path / "run"))
    assert "it is trained first" not in text
    assert not (tmp_path / "run").exists()


def test_trained_teacher_and_a_run_that_is_there_are_noticed(tiny_run: Path, tiny_yaml: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in tiny_run.rglob("*") if path.is_file()}
    text = plan(load_experiment(tiny_yaml, [], tiny_run))
    assert f"# {tiny_run} holds a run: --resume continues it, --out goes elsewhere" in text
    assert "it is trained first" not in text
    after = {path: path.stat().st_mtime_ns for path in tiny_run.rglob("*") if path.is_file()}
    assert {p: t for p, t in after.items() if "study.db" not in p.name} == {
        p: t for p, t in before.items() if "study.db" not in p.name
    }


def test_slots_of_a_cluster_are_asked_of_the_cluster(
    tiny_yaml: Path, tmp_path: Path, local_ray: None
) -> None:
    overrides = ["resources.concurrent=null", "resources.cpu=0.5"]
    text = plan(load_experiment(tiny_yaml, overrides, tmp_path), address="auto")
    assert "# at once: 4 trials of 0.5 CPU" in text  # the local Ray has two CPUs


def test_cpus_that_are_not_there_are_refused(tiny_yaml: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"resources\.cpu: a trial needs 999 CPUs, but there are \d"):
        plan(load_experiment(tiny_yaml, ["resources.cpu=999"], tmp_path))
