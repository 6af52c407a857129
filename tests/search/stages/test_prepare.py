"""The stages before a search: what each leaves, takes up again, and refuses."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from search.experiment.experiment import Experiment
from search.experiment.load import load_experiment
from search.run_dir.files import COSTS_FILE, TEACHER_FILE
from search.stages.limits import absolute_limits, figures
from search.stages.prepare import prepare, profile, read_data
from search.stages.teacher import get_teacher
from trainables.config import StudentSpec
from trainables.costs.table import CostTable
from trainables.errors import InputError
from trainables.runtime.runtime import resolve
from trainables.teacher.record import TeacherRecord


@pytest.fixture
def experiment(tiny_yaml: Path, tmp_path: Path) -> Experiment:
    return load_experiment(tiny_yaml, ["constraints={}"], tmp_path / "run")


@pytest.fixture(scope="module")
def measured(tiny_yaml: Path, tmp_path_factory: pytest.TempPathFactory) -> CostTable:
    experiment = load_experiment(tiny_yaml, ["constraints={}"], tmp_path_factory.mktemp("costs") / "run")
    return profile(experiment, read_data(experiment))[2]


def limited(experiment: Experiment, **limits: str) -> Experiment:
    values = {**experiment.model_dump(mode="json"), "constraints": limits}
    return Experiment.model_validate(values)


def test_the_teacher_and_the_cost_table_are_made_once(experiment: Experiment) -> None:
    seen: list[str] = []
    first = prepare(experiment, progress=lambda what, done, total: seen.append(what.split(",")[0]))
    assert list(dict.fromkeys(seen)) == ["training the teacher", "measuring the cost table"]
    written = {path.name: path.stat().st_mtime_ns for path in first.run_dir.iterdir()}
    assert {TEACHER_FILE, "teacher.json", COSTS_FILE} <= set(written)
    seen.clear()
    second = prepare(experiment, progress=lambda what, done, total: seen.append(what))
    assert seen == []
    assert second.teacher.record == first.teacher.record
    assert second.costs == first.costs
    assert {path.name: path.stat().st_mtime_ns for path in first.run_dir.iterdir()} == written


@pytest.mark.parametrize(
    "overrides",
    [
        ["space.loss.logits=[kl, dist]", "space.optim.batch_size={choices: [16, 64]}"],
        ["space.loss.logits=dist", "space.optim.batch_size=16", "space.loss.alpha={choices: [0.0, 0.5]}"],
        ["space.method={crd: {logits: dist}}", "space.optim.batch_size=16"],
    ],
    ids=["one of several values", "alpha may be 0", "another method"],
)
def test_settings_that_cannot_work_are_refused_before_the_teacher_is_trained(
    tiny_yaml: Path, tmp_path: Path, overrides: list[str]
) -> None:
    experiment = load_experiment(tiny_yaml, ["constraints={}", *overrides], tmp_path / "run")
    with pytest.raises(InputError, match=r"logits: dist .* optim.batch_size >= 32, got 16"):
        prepare(experiment)
    assert not (tmp_path / "run" / TEACHER_FILE).exists()
    kept = load_experiment(tiny_yaml, ["constraints={}", *overrides, "space.optim.batch_size=32"], tmp_path)
    assert read_data(kept).num_classes == 10


def test_the_teachers_record_has_test_scores_though_the_search_sees_no_test_image(
    experiment: Experiment,
) -> None:
    setup = prepare(experiment)
    assert setup.data.test is None
    assert setup.teacher.record.test_accuracy is not None
    assert len(setup.data.train) == 300


def test_profiling_random_weights_writes_nothing(experiment: Experiment) -> None:
    record, blocks, table = profile(experiment, read_data(experiment))
    assert record is None
    assert [block.name for block in blocks] == ["layer1.0", "layer2.0", "layer3.0"]
    assert table.teacher.flops > sum(costs.flops for costs in table.blocks.values())
    assert not Path(experiment.run.dir).exists()


def test_a_given_teachers_costs_are_kept_only_where_asked(experiment: Experiment, tmp_path: Path) -> None:
    setup = prepare(experiment)
    given = experiment.teacher.model_copy(update={"checkpoint": str(setup.run_dir / TEACHER_FILE)})
    elsewhere = experiment.model_copy(
        update={"teacher": given, "run": experiment.run.model_copy(update={"dir": str(tmp_path / "other")})}
    )
    record, _, table = profile(elsewhere, setup.data, keep=False)
    assert record is not None
    assert record.hash == setup.teacher.record.hash == table.teacher_hash
    assert not (tmp_path / "other").exists()
    profile(elsewhere, setup.data)
    assert (tmp_path / "other" / COSTS_FILE).exists()


def test_costs_of_another_teacher_are_refused(experiment: Experiment) -> None:
    setup = prepare(experiment)
    for name in (TEACHER_FILE, "teacher.json"):
        (setup.run_dir / name).unlink()
    other = experiment.model_copy(update={"seed": 1})
    with pytest.raises(InputError, match=r"costs\.json: .*teacher hash: expected"):
        prepare(other)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"space.blocks": "['nope*']"}, "no block matches 'nope\\*'"),
        ({"constraints": "{flops: '<= 0.01x'}"}, r"no student keeps flops <= 0.01x .*cheapest.*flops 2"),
        (
            {"constraints": "{params: '>= 100M'}"},
            r"no student keeps params >= 100M .*most expensive has params 78",
        ),
    ],
)
def test_what_needs_no_teacher_is_found_before_it_trains(
    tiny_yaml: Path, tmp_path: Path, changes: dict[str, str], message: str
) -> None:
    overrides = [f"{key}={value}" for key, value in changes.items()]
    experiment = load_experiment(tiny_yaml, overrides, tmp_path / "run")
    with pytest.raises(InputError, match=message):
        get_teacher(experiment, read_data(experiment), resolve())
    assert not (tmp_path / "run").exists()


def test_a_relative_limit_counts_in_the_teachers_own_figure(
    experiment: Experiment, measured: CostTable
) -> None:
    limits = absolute_limits(limited(experiment, flops="<= 0.5x", latency_ms="<= 1000"), None, measured)
    assert [(limit.metric, limit.op, limit.limit) for limit in limits] == [
        ("flops", "<=", 0.5 * measured.teacher.flops),
        ("latency_ms", "<=", 1000.0),
    ]


def test_limits_on_scores_need_the_teachers_record(experiment: Experiment, measured: CostTable) -> None:
    limits = limited(experiment, val_accuracy=">= 0.9x")
    assert math.isnan(absolute_limits(limits, None, measured)[0].limit)
    record = TeacherRecord(
        arch="cifar_resnet8",
        hash="0" * 16,
        data_hash="0" * 16,
        small_stem=True,
        num_classes=10,
        image_shape=(3, 8, 8),
        val_accuracy=0.8,
        val_loss=0.5,
        test_accuracy=None,
        test_loss=None,
        epochs=1,
        seconds=1.0,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        source="trained",
    )
    assert absolute_limits(limits, record, measured)[0].limit == pytest.approx(0.72)


@pytest.mark.parametrize("metric", ["flops", "params", "latency_ms"])
def test_a_limit_is_refused_exactly_where_the_cheapest_student_is_beyond_it(
    experiment: Experiment, measured: CostTable, metric: str
) -> None:
    least = measured.cheapest(metric, True)[1].as_dict()[metric]
    assert absolute_limits(limited(experiment, **{metric: f"<= {least * 1.001}"}), None, measured)
    with pytest.raises(InputError, match=f"no student keeps {metric} .* the cheapest, with . of 3 blocks"):
        absolute_limits(limited(experiment, **{metric: f"<= {least * 0.999}"}), None, measured)


def test_a_lower_limit_is_refused_above_the_most_expensive_student(
    experiment: Experiment, measured: CostTable
) -> None:
    most = measured.price_bounds("params", True)[1]
    assert absolute_limits(limited(experiment, params=f">= {most}"), None, measured)
    with pytest.raises(InputError, match="the most expensive has params"):
        absolute_limits(limited(experiment, params=f">= {most * 1.01}"), None, measured)


def test_limits_that_the_table_cannot_judge_are_left_alone(
    experiment: Experiment, measured: CostTable
) -> None:
    impossible = limited(experiment, latency_ms="<= 1e-9", flops="<= 0.9x")
    assert len(absolute_limits(impossible, None, measured, known=("params", "flops"))) == 2


def test_figures_name_every_cost(measured: CostTable) -> None:
    whole = figures(measured.teacher)
    assert whole.startswith("params 78.0 k, flops 1.56 M, latency_ms ")
    assert measured.price(StudentSpec()) == measured.teacher
