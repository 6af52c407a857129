"""`resources: auto`: arithmetic of what is tried and chosen, and a real choice on two CPUs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from search.experiment.experiment import Experiment
from search.experiment.sections import Resources
from search.run.search import search
from search.stages import auto_resources
from search.stages.auto_resources import fewest, gpu_counts, thread_counts
from search.study.record import StudyRecord


def test_all_cpus_and_powers_of_two_are_tried() -> None:
    assert thread_counts(1) == [1]
    assert thread_counts(2) == [2, 1]
    assert thread_counts(12) == [12, 8, 4, 2, 1]
    assert thread_counts(16) == [16, 8, 4, 2, 1]


def test_as_many_trials_share_a_gpu_as_its_memory_and_cpus_allow() -> None:
    # 80 GiB, of which nine tenths: a trial of 5 GiB and its context fit 12 times, so 8 is tried last.
    assert gpu_counts(5 * 1024, 80 * 1024, 64) == [1, 2, 4, 8]
    assert gpu_counts(5 * 1024, 80 * 1024, 3) == [1, 2]
    assert gpu_counts(79 * 1024, 80 * 1024, 64) == [1], "the trial that was measured fits"
    assert gpu_counts(100, 80 * 1024, 64) == [1, 2, 4, 8, 16]


def test_fewer_trials_are_preferred_where_that_costs_next_to_nothing() -> None:
    assert fewest({1: 100.0, 2: 190.0, 4: 300.0}) == 4
    assert fewest({1: 100.0, 2: 296.0, 4: 300.0}) == 2
    assert fewest({1: 100.0, 2: 80.0}) == 1


def test_the_whole_section_may_be_auto() -> None:
    fields: dict[str, Any] = {"name": "toy", "run": {"dir": "r"}}
    experiment = Experiment.model_validate(fields | {"resources": "auto"})
    assert experiment.resources == Resources(concurrent="auto")
    again = Experiment.model_validate(experiment.model_dump(mode="json", by_alias=True))
    assert again.resources == experiment.resources
    with pytest.raises(ValueError, match="resources"):
        Experiment.model_validate(fields | {"resources": "most"})


def test_a_search_chooses_and_profiles(
    local_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auto_resources, "SECONDS", 0.5)
    experiment = Experiment.model_validate(
        {
            "name": "toy",
            "run": {"dir": str(tmp_path / "run")},
            "data": {"name": "digits", "train_limit": 100},
            "teacher": {"arch": "cifar_resnet8", "epochs": 1},
            "objectives": ["val_accuracy", "flops"],
            "space": {"widths": [0.25]},
            "budget": {"trials": 2, "epochs": 2, "grace_epochs": 2},
            "resources": "auto",
            "runtime": {"device": "cpu", "precision": "fp32", "layout": "contiguous"}
            | {"optimizer": "single", "compile": "off", "eval_batch": 512},
            "costs": {"seconds": 0.1},
        }
    )
    told: list[str] = []
    outcome = search(experiment, progress=lambda what, *_: told.append(what), profile_trial=True)
    record = StudyRecord.load(f"sqlite:///{tmp_path}/run/study.db", "toy")
    chosen = record.attrs["resources"]
    assert (chosen["cpu"], chosen["gpu"]) in {(1.0, 0.0), (2.0, 0.0)} and chosen["concurrent"] is None
    assert {"trying 1 trials at once", "trying 2 trials at once"} <= set(told)
    trace, table = (Path(file) for file in sorted(outcome.profile, key=lambda file: file.endswith(".txt")))
    assert trace.name.endswith(".trace.json") and "aten::" in table.read_text()
    for row in record.trials():
        metrics = row.user_attrs["metrics"]
        assert metrics["step_seconds"] > 0 and metrics["host_mib"] > 0 and metrics["micro_batches"] == 1
    record.close()
