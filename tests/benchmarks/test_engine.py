"""The engine benchmark: its arithmetic of figures, that its contenders train alike, and flat memory."""

from __future__ import annotations

import gc
import importlib.util

import pytest
import torch

from benchmarks.engine import ratios, spread, summary, table
from benchmarks.engine_jobs import CONTENDERS, Job, Parts, load
from benchmarks.engine_memory import lives
from benchmarks.engine_process import Contender, Epoch
from trainables.config import RuntimeConfig

JOB = Job(None, None, "cpu", 1, "fp32", "contiguous", 32, 96, epochs=3)


def times_of(**seconds: list[float]) -> dict[str, dict[str, list[Epoch]]]:
    return {
        name: {student: [Epoch(s, s / 2, 0.5) for s in each] for student in ("small", "medium", "large")}
        for name, each in seconds.items()
    }


def test_figures_are_medians_of_the_ratios_of_each_round() -> None:
    times = times_of(ours=[1.0, 2.0, 30.0], bare=[1.0, 1.0, 10.0], plain=[4.0, 4.0, 60.0])
    assert ratios(times, "bare")["small"] == [1.0, 2.0, 3.0]
    compared, figures = summary(times)
    assert figures["epoch_vs_bare"] == figures["epoch_vs_bare_cpu_time"] == 2.0
    assert figures["epoch_vs_plain"] == 0.5  # of 1/4, 2/4, 1/2
    assert compared["bare"]["all"]["n"] == 9
    assert "| plain | 4.00 s | 4.00 s | 4.00 s | 0.500" in table(times, compared, "title")


def test_spread_of_few_values_is_their_range() -> None:
    assert spread([3.0, 1.0]) == {"median": 2.0, "low": 1.0, "high": 3.0, "n": 2}


@pytest.fixture(scope="module")
def parts() -> Parts:
    return load(JOB)


@pytest.mark.parametrize("name", CONTENDERS)
def test_every_contender_trains_its_student_and_leaves_the_teacher(name: str, parts: Parts) -> None:
    if name == "torchdistill" and importlib.util.find_spec(name) is None:
        pytest.skip("torchdistill is not installed")
    teacher = {key: value.clone() for key, value in parts.teacher.state_dict().items()}
    contender = CONTENDERS[name](parts, "medium")
    student = contender.distiller.student if name == "ours" else contender.student
    before = student.conv1.weight.detach().clone()
    assert 0 <= contender.run_epoch() <= 1
    assert not torch.equal(student.conv1.weight, before)
    assert all(torch.equal(value, teacher[key]) for key, value in parts.teacher.state_dict().items())


def test_a_contender_in_its_process_trains_and_names_its_fault() -> None:
    with Contender("bare", JOB) as contender:
        assert contender.runtime == {"precision": "fp32", "channels_last": False}
        epoch = contender.epoch("small")
        assert epoch.seconds > 0 and epoch.cpu_seconds > 0
        with pytest.raises(RuntimeError, match=r"(?s)bare: .*KeyError: 'none'"):
            contender.epoch("none")


def test_memory_stays_flat_over_trials() -> None:
    runs = lives(26, RuntimeConfig(device="cpu", threads=1, precision="fp32"), images=100)
    resident, alive = [], []
    for each in runs:
        gc.collect()
        resident.append(each)
        alive.append(sum(isinstance(o, torch.Tensor) for o in gc.get_objects()))
    assert alive[-1] == alive[5]
    assert resident[-1] < 1.05 * resident[5]
