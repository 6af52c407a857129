"""Separate students the whole way: search, resume's inputs, report, pick, retrain, load, export."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch

from analysis import pick, write_pick
from analysis.report.write import write_report
from analysis.runs.run import Run
from search import load_experiment, retrain_picks, search
from trainables import export_model, load_model

SEPARATE = """
name: separate
data: {name: digits, train_limit: 200}
teacher: {arch: cifar_resnet14, epochs: 2, batch_size: 32}
space:
  student: [teacher, cifar_resnet8]
  method: [ama, separate, fitnet]
  widths: [0.25]
  optim: {batch_size: 64}
objectives: [val_accuracy, flops]
constraints: {flops: "<= 0.9x"}
warm_start: library
library: {epochs: 0.1, student_epochs: 0}
sampler: random
budget: {trials: 7, epochs: 1, grace_epochs: 1}
costs: {batch_size: 4, seconds: 0.1}
resources: {concurrent: 2}
"""


def test_the_whole_way(tmp_path: Path, local_ray: None) -> None:
    file = tmp_path / "separate.yaml"
    file.write_text(SEPARATE + f"\nrun: {{dir: {tmp_path / 'run'}}}\n")
    experiment = load_experiment(file, [f"library.dir={tmp_path / 'library'}"])
    outcome = search(experiment)
    assert outcome.reason == "all trials used", outcome
    run = Run.open(tmp_path / "run")
    rows = [row for row in run.rows if row.state.name == "COMPLETE"]
    configs = [row.user_attrs["config"] for row in rows]
    assert {config["student"]["arch"] for config in configs} == {None, "cifar_resnet8"}
    assert {row.state.name for row in run.rows} <= {"COMPLETE", "PRUNED"}
    table = json.loads((tmp_path / "run" / "costs.json").read_text())
    own = table["students"]["cifar_resnet8"]
    assert table["format"] == 3 and own["latency_ms"] > 0
    for row, config in zip(rows, configs, strict=True):
        if config["student"]["arch"]:
            assert row.user_attrs["costs"] == own and row.user_attrs["replaced"] == []
        if config["method"] == "separate":
            assert 0 <= row.user_attrs["metrics"]["teacher_with_modules"] <= 1
    report = write_report(tmp_path / "run", tmp_path / "report")
    assert "cifar_resnet8" in report.summary.read_text()
    row = next(row for row in rows if row.user_attrs["config"]["method"] == "separate")
    (knee,) = pick(tmp_path / "run", knee=True)
    chosen, separate = replace(knee, number=row.number, config=row.user_attrs["config"]), row.number
    write_pick(tmp_path / "pick.yaml", [chosen], tmp_path / "run")
    done = retrain_picks(tmp_path / "pick.yaml", seeds=1, epochs=1, with_baselines=True)
    results = pd.DataFrame(done.rows)
    assert results["kind"].tolist() == ["teacher", "student", "scratch"]
    folder = done.folder / f"trial-{separate}" / "student" / "seed-1"
    model, manifest = load_model(folder)
    assert manifest["results"]["params"] == own["params"] == sum(p.numel() for p in model.parameters())
    assert not any("stands" in name for name in model.state_dict())
    assert "cifar_resnet8" in (folder / "README.md").read_text()
    exported = export_model(folder, "pt2", tmp_path / "student.pt2")
    program = torch.export.load(exported.path).module()
    assert program(torch.zeros(2, *exported.image_shape)).shape == (2, 10)
