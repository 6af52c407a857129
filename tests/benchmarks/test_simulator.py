"""The simulator and the contenders on a small synthetic table with real prices."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import optuna
import pytest

from benchmarks.contenders import Ours, Policy, RayOptuna, contenders
from benchmarks.curves import Curve, Scale, interval, ratio_interval
from benchmarks.plans import STARTS, Params, Plan, digits
from benchmarks.search import ahead_from
from benchmarks.simulator import Contender, Metrics, Replay, simulate
from benchmarks.table import Run, Table

EPOCHS = 4
PLAN = Plan(
    {
        "name": "tiny",
        "objectives": ["val_accuracy", "flops"],
        "space": {
            "widths": [0.25, 0.5],
            "loss": {"alpha": {"choices": [0.1, 0.5]}, "tau": 4.0, "beta": 1.0, "supervision": "uniform"},
            "optim": {"lr": 0.05},
        },
        "budget": {"epochs": EPOCHS, "grace_epochs": 1, "reduction_factor": 2.0},
    },
    (0, 1),
    None,
)


@pytest.fixture(scope="module")
def table(empty_table: Callable[..., Table]) -> Table:
    """Dearer students are better, warm ones quicker; every run has seconds of its own."""
    empty, runs = empty_table(PLAN.experiment, PLAN.seeds, 5e9), []
    rng = np.random.default_rng(0)
    for point in PLAN.points(empty.space.blocks):
        price = empty.price(empty.space.to_config(point.params, 0).student)
        final = 0.9 + 0.08 * price.flops / empty.costs.teacher.flops + 0.01 * rng.random()
        pace = STARTS.index(point.start) + 1
        accuracy = [round(final - 0.6 * 3.0 ** -(pace * e), 5) for e in range(1, EPOCHS + 1)]
        loss = [round(1 - a, 5) for a in accuracy]
        seconds = round(float(rng.uniform(0.5, 1.5)), 4)
        start = (price.params, price.flops, 0.1, 0.25)
        runs.append(Run(point.params, point.start, point.seed, *start, seconds, tuple(accuracy), tuple(loss)))
    return Table(empty.meta, {run.key: run for run in runs})


class Script(Contender):
    """Proposes given points in turn, stops trials at given epochs, and writes down all it is told."""

    def __init__(self, points: list[Params], stop: dict[int, int] | None = None, start: str = "teacher"):
        self.start = start
        self.points, self.stop = points, stop or {}
        self.reports: dict[int, list[Metrics]] = {}
        self.ends: dict[int, bool] = {}
        self.in_flight: list[int] = []

    def suggest(self, number: int) -> Params | None:
        if number >= len(self.points):
            return None
        self.reports[number] = []
        self.in_flight.append(len(self.reports) - len(self.ends))
        return self.points[number]

    def report(self, number: int, metrics: Metrics) -> bool:
        self.reports[number].append(metrics)
        return self.stop.get(number) != metrics["epoch"]

    def ended(self, number: int, metrics: Metrics, full: bool) -> None:
        assert metrics == self.reports[number][-1]
        self.ends[number] = full


def points(table: Table, count: int) -> list[Params]:
    return [p.params for p in PLAN.points(table.space.blocks) if p.seed == 0 and p.start == "library"][:count]


def play(table: Table, contender: Contender, workers: int = 1, budget: float = float("inf")) -> Replay:
    return simulate(table, contender, seed=0, workers=workers, budget=budget)


def test_one_worker_takes_the_sum_of_all_seconds_and_operations(table: Table) -> None:
    replay = play(table, Script(points(table, 5)))
    runs = [table.run(p, "teacher", 0) for p in points(table, 5)]
    assert replay.clock == pytest.approx(sum(r.start_seconds + EPOCHS * r.seconds for r in runs))
    assert replay.compute == pytest.approx(sum(EPOCHS * table.epoch_flops(r) for r in runs))
    assert [c.run for c in replay.completions] == runs
    assert (replay.trials, replay.epochs, replay.stopped, replay.exhausted) == (5, 5 * EPOCHS, 0, True)


def test_an_epoch_costs_three_forwards_of_the_student_one_of_the_teacher_and_a_validation(
    table: Table,
) -> None:
    cold, warm = (table.run(points(table, 1)[0], start, 0) for start in STARTS)
    assert table.epoch_flops(cold) == 100 * (3 * cold.flops + table.costs.teacher.flops) + 50 * cold.flops
    assert (table.start_flops(cold), table.start_flops(warm)) == (0, 100 * warm.flops)


@pytest.mark.parametrize("workers", [1, 3, 8])
def test_workers_are_never_more_than_there_are_and_none_waits(table: Table, workers: int) -> None:
    script = Script(points(table, 20))
    replay = play(table, script, workers)
    assert max(script.in_flight) == workers
    assert script.in_flight[workers - 1 :] == [workers] * (20 - workers + 1)
    clocks = [c.clock for c in replay.completions]
    assert clocks == sorted(clocks)
    longest = max(r.start_seconds + EPOCHS * r.seconds for r in table.runs.values())
    alone = play(table, Script(points(table, 20)))
    assert alone.clock / workers <= replay.clock + 1e-9 <= alone.clock / workers + longest
    assert replay.compute == pytest.approx(alone.compute)


def test_early_stops_save_what_was_not_trained_and_leave_no_completion(table: Table) -> None:
    whole = play(table, Script(points(table, 4)))
    script = Script(points(table, 4), stop={1: 1, 2: 3})
    replay = play(table, script)
    saved = {1: EPOCHS - 1, 2: EPOCHS - 3}
    runs = [table.run(p, "teacher", 0) for p in points(table, 4)]
    assert whole.compute - replay.compute == pytest.approx(
        sum(n * table.epoch_flops(runs[i]) for i, n in saved.items())
    )
    assert whole.clock - replay.clock == pytest.approx(sum(n * runs[i].seconds for i, n in saved.items()))
    assert [c.run for c in replay.completions] == [runs[0], runs[3]]
    assert script.ends == {0: True, 1: False, 2: False, 3: True}
    assert replay.stopped == 2


def test_nobody_sees_later_epochs(table: Table) -> None:
    script = Script(points(table, 6), stop={2: 2})
    play(table, script, workers=3)
    assert [m["epoch"] for m in script.reports[2]] == [1, 2]
    for number, reports in script.reports.items():
        run = table.run(points(table, 6)[number], "teacher", 0)
        assert [m["val_accuracy"] for m in reports] == list(run.val_accuracy[: len(reports)])
        assert all(set(m) == {"epoch", "val_accuracy", "val_loss", "flops", "params"} for m in reports)
        assert not any(isinstance(value, tuple | list) for m in reports for value in m.values())


def test_what_was_seen_is_paid_and_no_epoch_begins_beyond_the_budget(table: Table) -> None:
    limit = 0.6 * play(table, Script(points(table, 10))).compute
    script = Script(points(table, 10))
    replay = play(table, script, workers=3, budget=limit)
    seen = sum(
        table.epoch_flops(table.run(points(table, 10)[number], "teacher", 0)) * len(reports)
        for number, reports in script.reports.items()
    )
    assert replay.compute == pytest.approx(seen)
    dearest = max(table.epoch_flops(run) for run in table.runs.values())
    assert limit <= replay.compute < limit + dearest
    assert all(c.compute <= replay.compute for c in replay.completions)
    assert len(script.ends) == len(replay.completions) < replay.trials  # trials cut off are not judged


def test_the_library_is_charged_before_the_first_trial_to_those_who_use_it(table: Table) -> None:
    replay = play(table, Script(points(table, 1), start="library"))
    run = table.run(points(table, 1)[0], "library", 0)
    assert replay.clock == pytest.approx(3.0 + run.start_seconds + EPOCHS * run.seconds)
    assert replay.compute == pytest.approx(5e9 + table.start_flops(run) + EPOCHS * table.epoch_flops(run))


def test_the_seed_chooses_the_recorded_run(table: Table) -> None:
    replay = simulate(table, Script(points(table, 1)), seed=1, workers=1, budget=float("inf"))
    assert replay.completions[0].run == table.run(points(table, 1)[0], "teacher", 1)
    assert replay.completions[0].run != table.run(points(table, 1)[0], "teacher", 0)


@pytest.mark.parametrize("first", [0, 4])
def test_ours_tries_every_student_once_and_then_has_nothing_left(table: Table, first: int) -> None:
    seen: list[str] = []

    class Watched(Ours):
        def suggest(self, number: int) -> Params | None:
            params = super().suggest(number)
            seen.extend([] if params is None else [str(params)])
            return params

    replay = play(table, Watched(table, 0, 0, Policy(first=first, eta=2.0, startup=4)), workers=4)
    assert replay.exhausted
    # Both widths of the first block give one module: 2 levels, of the others 3, less the teacher; 2 alphas.
    assert len(seen) == len(set(seen)) == 2 * (2 * 3 * 3 - 1)
    assert 0 < replay.stopped < len(seen)
    assert len(replay.completions) == len(seen) - replay.stopped


def test_the_first_proposals_of_ours_are_the_proxys_and_begin_with_the_cheapest(table: Table) -> None:
    ours = Ours(table, 0, 0, Policy(first=4))
    proposed = [ours.suggest(number) for number in range(4)]
    prices = [table.price(table.space.to_config(p, 0).student).flops for p in proposed if p is not None]
    assert prices == sorted(prices)
    assert prices[0] == table.costs.cheapest("flops", True)[1].flops


def test_ray_tells_optuna_that_a_stopped_trial_is_complete(table: Table) -> None:
    stock = RayOptuna(table, 0, eta=2.0)
    replay = play(table, stock, workers=2, budget=1.5e11)
    rows = stock._search._ot_study.get_trials()
    complete = [t for t in rows if t.state == optuna.trial.TrialState.COMPLETE]
    assert replay.stopped > 0
    assert len(complete) == replay.stopped + len(replay.completions)


@pytest.mark.parametrize("name", list(contenders(Policy(), (1, 2.0))))
def test_a_contender_repeats_itself_with_its_seed(table: Table, name: str) -> None:
    if name == "syne_moasha":
        pytest.importorskip("syne_tune")
    make = contenders(Policy(startup=3), (1, 2.0))[name]
    replays = [play(table, make(table, 5, 0), workers=3, budget=5e10) for _ in range(2)]
    assert replays[0] == replays[1]
    assert replays[0].completions


def test_a_curve_counts_the_true_values_of_full_trials_alone(table: Table) -> None:
    scale = Scale.of(table)
    every = [p.params for p in PLAN.points(table.space.blocks) if (p.seed, p.start) == (0, "teacher")]
    script = Script(every, stop={0: 2})
    cold = Curve.of(play(table, script), scale, 0)
    assert (np.diff(cold.volume) >= 0).all()
    assert len(cold.volume) == len(every) - 1
    warm = Curve.of(play(table, Script(every, start="library")), scale, 0)
    assert max(cold.volume[-1], warm.volume[-1]) <= 1.0
    assert cold.spent_until(2.0, "compute") == float("inf")
    reached = cold.spent_until(0.5, "compute")
    assert cold.at(np.array([0.0, reached - 1, reached]), "compute")[0] == 0.0
    assert cold.at(np.array([reached - 1]), "compute")[0] < 0.5 <= cold.at(np.array([reached]), "compute")[0]


def test_intervals_hold_the_mean_and_ratios_their_own_scale() -> None:
    mean, low, high = interval([1.0, 2.0, 3.0, 4.0])
    assert low < mean == 2.5 < high
    assert ratio_interval([1.0, 2.0, 3.0], [2.0, 4.0, 6.0]) == pytest.approx((0.5, 0.5, 0.5))


def test_ahead_from_is_the_last_budget_at_which_anybody_leads() -> None:
    ours = np.array([0.0, 0.5, 0.9, 1.0])
    assert ahead_from(ours, [ours, ours - 0.1]) == 0.0
    assert ahead_from(ours, [np.array([0.1, 0.6, 0.8, 1.0])]) == 0.5
    assert ahead_from(ours, [np.array([0.0, 0.0, 0.0, 1.1])]) == 1.0


def test_a_table_comes_back_as_it_was_saved(table: Table, tmp_path: Path) -> None:
    table.save(tmp_path / "one.csv.gz")
    again = Table.load(tmp_path / "one.csv.gz")
    assert again.runs == table.runs
    assert (again.costs, again.libraries) == (table.costs, table.libraries)
    replace(again, meta={k: v for k, v in again.meta.items() if k != "format"}).save(tmp_path / "two.csv.gz")
    assert (tmp_path / "one.csv.gz").read_bytes() == (tmp_path / "two.csv.gz").read_bytes()


def test_the_digits_plan_holds_every_student_and_the_teacher_once_a_setting() -> None:
    blocks = [f"layer{stage}.{block}" for stage in (1, 2, 3) for block in (0, 1)]
    found = digits().points(blocks)
    assert len(found) == 3 * 3 * (2 * 2**6 - 1)
    assert len({(str(p.params), p.start, p.seed) for p in found}) == len(found)
