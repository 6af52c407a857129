"""`resources: auto`: arithmetic of what is tried and chosen, and a real choice on two CPUs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from search.experiment.experiment import Experiment
from search.experiment.sections import Resources
from search.run.search import search
from search.stages import auto_resources
from search.stages.auto_resources import Share, choose_share, cpu_counts, fewest, gpu_counts
from search.study.record import StudyRecord


@pytest.mark.parametrize(
    ("cores", "counts"),
    [
        (1, [1]),
        (2, [1, 2]),
        (3, [1, 3]),
        (4, [1, 2, 4]),
        (5, [1, 2, 5]),
        (6, [1, 2, 3, 6]),
        (7, [1, 2, 3, 7]),
        (12, [1, 2, 4, 6, 12]),
        (16, [1, 2, 4, 8, 16]),
        (24, [1, 2, 4, 8, 12, 24]),
        (96, [1, 2, 4, 8, 16, 32, 48, 96]),
    ],
)
def test_trials_share_all_cores_where_these_can_be_divided(cores: int, counts: list[int]) -> None:
    assert cpu_counts(cores) == counts


@pytest.mark.parametrize("cores", range(1, 257))
def test_numbers_of_trials_are_few_and_leave_no_room_for_one_more(cores: int) -> None:
    counts = cpu_counts(cores)
    assert counts[0] == 1 and counts[-1] == cores and counts == sorted(set(counts))
    assert len(counts) <= 2 + 1.5 * math.log2(cores), "each costs seconds"
    for count in counts:
        assert cores // (cores // count) == count, "Ray starts as many trials as the CPUs have room for"


@pytest.mark.parametrize("cores", [3, 5, 6, 7, 12, 24, 96])
def test_where_memory_allows_fewer_trials_the_most_that_fit_are_tried(cores: int) -> None:
    for most in range(1, cores + 1):
        counts = cpu_counts(cores, most)
        full = max(count for count in range(1, most + 1) if cores // (cores // count) == count)
        assert counts[-1] == full and all(count <= most for count in counts)


@pytest.mark.parametrize("cores", [1, 2, 3, 5, 6, 7, 12, 24, 96])
@pytest.mark.parametrize("power", [0.6, 0.8, 1.0])
def test_no_core_is_idle_where_each_core_adds_images(cores: int, power: float) -> None:
    shares = {count: Share(cores // count) for count in cpu_counts(cores)}
    chosen = choose_share(shares, lambda count, share: 100 * count * share.cpu**power)
    assert cores % chosen.cpu == 0
    assert chosen.cpu == (cores if power == 1.0 else 1)


def test_no_more_trials_are_measured_once_they_get_in_each_others_way() -> None:
    rates = {1: 100.0, 2: 190.0, 4: 150.0, 8: 900.0}
    tried: list[int] = []

    def rate(count: int, share: Share) -> float:
        tried.append(count)
        return rates[count]

    assert choose_share({count: Share(8 // count) for count in rates}, rate) == Share(4)
    assert tried == [1, 2, 4]
    assert choose_share({count: Share(8 // count, 1 / count) for count in (1, 2)}, rate) == Share(4, 0.5)


def test_as_many_trials_share_a_gpu_as_its_memory_and_cpus_allow() -> None:
    # 80 GiB, of which nine tenths: a trial of 5 GiB and its context fit 12 times.
    assert gpu_counts(5 * 1024, 80 * 1024, 64) == [1, 2, 4, 8, 12]
    assert gpu_counts(5 * 1024, 80 * 1024, 3) == [1, 3]
    assert gpu_counts(30 * 1024, 80 * 1024, 3) == [1, 2]
    assert gpu_counts(5 * 1024, 80 * 1024, 6) == [1, 2, 3, 6]
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
