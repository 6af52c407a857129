"""The engine benchmark: its arithmetic of figures, that its contenders train alike, and flat memory."""

from __future__ import annotations

import gc
import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.engine_epochs import accuracy_figures, epochs_table, plain, ratios, spread, summary
from benchmarks.engine_jobs import CONTENDERS, Job, Parts, load
from benchmarks.engine_memory import Life
from benchmarks.engine_process import Contender, Epoch
from benchmarks.engine_trials import Timeline, Work, ours, percentile, read_work, stock
from trainables.config import RuntimeConfig
from trainables.network.weights import save_weights

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
    assert compared["bare"]["time"]["all"]["n"] == compared["bare"]["cpu_time"]["small"]["n"] * 3 == 9
    assert "| plain | 4.00 s | 4.00 s | 4.00 s | 0.500 (0.250 to 0.500) |" in epochs_table(
        plain(times), compared
    )


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
    assert all(param.requires_grad for param in parts.teacher.parameters()), (
        "the next student is built from it"
    )


def test_a_contender_in_its_process_trains_and_names_its_fault() -> None:
    with Contender("bare", JOB) as contender:
        assert contender.runtime == {"precision": "fp32", "channels_last": False}
        epoch = contender.epoch("small")
        assert epoch.seconds > 0 and epoch.cpu_seconds > 0
        with pytest.raises(RuntimeError, match=r"(?s)bare: .*KeyError: 'none'"):
            contender.epoch("none")


def test_accuracy_gains_are_paired_by_student_and_seed() -> None:
    found = {
        "ours": {"small": [0.5, 0.6], "medium": [0.7, 0.8], "large": [0.9, 0.9]},
        "plain": {"small": [0.5, 0.5], "medium": [0.6, 0.8], "large": [0.9, 0.8]},
    }
    figures = accuracy_figures(found)
    assert figures["accuracy_ours"] == round(4.4 / 6, 4)
    assert figures["accuracy_gain_vs_plain"] == 0.05
    assert figures["accuracy_gain_vs_plain_se"] == round((0.003) ** 0.5 / 6**0.5, 4)


def test_busy_shares_and_first_steps_of_a_timeline() -> None:
    # Worker 1 trains a from 1 to 5, then c from 6 to 9; worker 2 b from 2 to 4, then d from 4.5 to 6.5.
    work = (
        Work("a", 1, 1.0, 4.0),
        Work("b", 2, 2.0, 1.0),
        Work("b", 2, 3.0, 1.0),
        Work("d", 2, 4.5, 2.0),
        Work("c", 1, 6.0, 3.0),
    )
    timeline = Timeline({"a": 0.0, "b": 0.0, "d": 4.25, "c": 5.0}, work, workers=2)
    assert timeline.busy_share() == 11 / 18
    assert timeline.busy_share_steady() == (3 + 2 + 0.5) / 6  # from 2, when both train, to 5
    assert timeline.first_steps() == [0.25, 1.0]
    assert timeline.trial_seconds() == [4.0, 2.0, 2.0, 3.0]


def test_work_is_read_from_the_results_that_ray_wrote(tmp_path: Path) -> None:
    for trial in ("a", "b"):
        folder = tmp_path / trial
        folder.mkdir()
        rows = [
            {"trial_id": trial, "pid": 7, "began_at": at, "seconds": 0.5, "loss": 1.0} for at in (1.0, 2.0)
        ]
        (folder / "result.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert sorted(read_work(tmp_path), key=lambda w: (w.trial, w.began))[1] == Work("a", 7, 2.0, 0.5)
    assert len(read_work(tmp_path)) == 4


@pytest.mark.slow
def test_ours_and_the_stock_trainable_leave_a_timeline(local_ray: None, parts: Parts, tmp_path: Path) -> None:
    save_weights(parts.teacher, tmp_path / "teacher.safetensors", {})
    job = replace(JOB, teacher=str(tmp_path / "teacher.safetensors"), epochs=2)
    found = [
        ours(job, 3, 2, tmp_path / "ours"),
        stock(job, 2, 2, tmp_path),
    ]
    for timeline, trials in zip(found, (3, 2), strict=True):
        assert len(timeline.trial_seconds()) == len(timeline.suggested) == trials
        assert len(timeline.work) == 2 * trials
        assert set(timeline.suggested) == {work.trial for work in timeline.work}
        assert 0 < timeline.busy_share() < 1
    reused = found[0].firsts
    assert len({work.worker for work in reused.values()}) == 2, (
        "the third trial ran in an actor of the others"
    )
    assert len(found[0].first_steps()) == 1


def test_percentile_is_a_value_that_occurred() -> None:
    assert percentile([3.0, 1.0, 2.0], 0.95) == 3.0
    assert percentile(range(100), 0.5) == 50


def test_memory_stays_flat_over_trials() -> None:
    life = Life(RuntimeConfig(device="cpu", threads=1, precision="fp32"), images=100)

    def live_through(numbers: range) -> tuple[float, int]:
        for number in numbers:
            life.live(number)
        resident = life.live(0).host  # the same trial each time: what it holds is the same
        gc.collect()
        return resident, sum(isinstance(o, torch.Tensor) for o in gc.get_objects())

    settled, alive = live_through(range(1, 6))
    last, alive_at_last = live_through(range(6, 26))
    assert alive_at_last == alive
    assert last < 1.05 * settled
