import json

import numpy as np
import pytest
from hypothesis import given as given_draws
from hypothesis import settings
from hypothesis import strategies as st

from search.policy.moasha import Decision, MoAsha
from trainables.errors import InputError

FACTORS = st.sampled_from([2, 2.5, 3, 4])
# A coarse grid, so that ties and equal trials are common.
COORDINATE = st.integers(0, 12)


def given(*strategies):
    """Random draws without a time limit: a busy machine is no fault."""
    return lambda test: settings(deadline=None)(given_draws(*strategies)(test))


@st.composite
def rungs(draw, least=1, distinct=False):
    """Values (n, M) of one rung and a reduction factor."""
    n_objectives = draw(st.integers(2, 3))
    point = st.tuples(*[COORDINATE] * n_objectives)
    return draw(st.lists(point, min_size=least, max_size=40, unique=distinct)), draw(FACTORS)


def judge_last(points, factor, names=None, costs=None):
    """The decision about the last of the points, which arrive in this order at one rung."""
    rule = MoAsha(9, 1, factor, len(points[0]), costs)
    names = range(len(points)) if names is None else names
    return [rule.on_result(name, 1, point) for name, point in zip(names, points, strict=True)][-1]


def dominates(a, b):
    return all(x <= y for x, y in zip(a, b, strict=True)) and tuple(a) != tuple(b)


# ---- invariants of a rung


@given(rungs())
def test_newcomer_that_dominates_its_rung_goes_on(rung):
    points, factor = rung
    best = np.array(points).min(0) - 1
    assert judge_last([*points, best], factor) is Decision.CONTINUE


@given(rungs())
def test_newcomer_on_the_front_goes_on(rung):
    points, factor = rung
    for point in (p for p in points if not any(dominates(other, p) for other in points)):
        assert judge_last([*points, point], factor) is Decision.CONTINUE


@given(rungs(least=3), st.data())
def test_newcomer_dominated_by_the_keep_fraction_is_stopped(rung, data):
    points, factor = rung
    keep = int((len(points) + 1) / factor)
    dominators = data.draw(st.permutations(points))[: max(1, keep)]
    newcomer = np.array(dominators).max(0)
    newcomer[data.draw(st.integers(0, len(newcomer) - 1))] += 1
    expected = Decision.STOP if keep else Decision.CONTINUE
    assert judge_last([*points, newcomer], factor) is expected


@given(rungs(), st.randoms(use_true_random=False), st.integers(0, 2))
def test_names_and_arrival_change_nothing(rung, random, cost):
    points, factor = rung
    names = random.sample(range(1000), len(points))
    others = random.sample(points[:-1], len(points) - 1)
    costs = [min(cost, len(points[0]) - 1)]
    assert judge_last([*others, points[-1]], factor, names, costs) is judge_last(points, factor, costs=costs)


@given(rungs(), st.lists(st.tuples(st.integers(1, 1000), st.integers(-1000, 1000)), min_size=3, max_size=3))
def test_scaling_an_objective_changes_nothing(rung, affine):
    points, factor = rung
    scaled = [tuple(a * x + b for x, (a, b) in zip(point, affine, strict=False)) for point in points]
    assert judge_last(scaled, factor) is judge_last(points, factor)


@given(rungs())
def test_first_trials_of_a_rung_go_on(rung):
    points, factor = rung
    first = points[: int(np.ceil(factor)) - 1]
    assert judge_last(first, factor) is Decision.CONTINUE


@given(rungs(distinct=True), st.sampled_from([None, [0], [1]]))
def test_a_full_rung_passes_its_front_or_the_keep_fraction(rung, costs):
    """Reported again, every trial is judged against the same rung, so what passes can be counted."""
    points, factor = rung
    rule = MoAsha(9, 1, factor, len(points[0]), costs)
    rule.replay((name, 1, point) for name, point in enumerate(points))
    passed = [p for name, p in enumerate(points) if rule.on_result(name, 1, p) is Decision.CONTINUE]
    front = [p for p in points if not any(dominates(other, p) for other in points)]
    keep = int(len(points) / factor)
    assert len(passed) == (len(points) if keep == 0 else max(len(front), keep))
    # Whatever dominates a trial that passes, passes.
    assert all(better in passed for p in passed for better in points if dominates(better, p))


@given(rungs(least=6), st.integers(2, 6))
def test_equal_trials_share_their_fate(rung, copies):
    points, factor = rung
    rule = MoAsha(9, 1, factor, len(points[0]))
    names = list(range(len(points) + copies - 1))
    table = points + [points[-1]] * (copies - 1)
    rule.replay((name, 1, point) for name, point in zip(names, table, strict=True))
    fates = {rule.on_result(name, 1, points[-1]) for name in names[-copies:]}
    assert len(fates) == 1


# ---- closed forms


def pass_names(table, factor, costs):
    rule = MoAsha(9, 1, factor, 2, costs)
    rule.replay((name, 1, values) for name, values in enumerate(table))
    return {name for name, v in enumerate(table) if rule.on_result(name, 1, v) is Decision.CONTINUE}


def test_spread_fills_the_empty_region_of_the_cost_axis_first():
    front = [(1.0, 0.30), (2.0, 0.20)]
    crowded, dear = (1.1, 0.33), (9.0, 0.205)  # the second front: each dominated by one trial
    rest = [(8.8, 0.5), (8.9, 0.6)]
    # Six trials, keep three: the front and one more.
    assert pass_names([*front, crowded, dear, *rest], 2, [0]) == {0, 1, 3}


def test_within_one_cost_the_more_accurate_goes_first():
    same_cost = [(1.0, error) for error in (0.5, 0.4, 0.3, 0.2, 0.1)]
    assert pass_names(same_cost, 2, [0]) == {3, 4}


def test_cheap_student_is_not_stopped_by_accurate_dear_ones_nor_the_reverse():
    dear = [(10.0 + i, 0.1 - 0.001 * i) for i in range(20)]
    assert judge_last([*dear, (1.0, 0.8)], 3) is Decision.CONTINUE
    cheap = [(1.0 + i, 0.8 - 0.01 * i) for i in range(20)]
    assert judge_last([*cheap, (100.0, 0.5)], 3) is Decision.CONTINUE


def test_one_cost_for_all_is_plain_successive_halving():
    errors = np.random.default_rng(0).permutation(30) / 30
    assert pass_names([(5.0, e) for e in errors], 3, [0]) == set(np.argsort(errors)[:10])


# ---- epochs, resume and restart


def test_rungs_are_powers_of_eta_below_the_last_epoch():
    assert list(MoAsha(27, 1, 3, 2).rungs) == [1, 3, 9]
    assert list(MoAsha(28, 1, 3, 2).rungs) == [1, 3, 9, 27]
    assert list(MoAsha(10, 2, 2, 2).rungs) == [2, 4, 8]
    assert list(MoAsha(4, 1, 1.2, 2).rungs) == [1, 2, 3]
    assert not MoAsha(5, 5, 3, 2).rungs


def test_only_the_rung_epoch_is_judged():
    rule = MoAsha(9, 2, 2, 2)
    for name in range(4):
        assert rule.on_result(name, 2, (0.0, 0.0)) is Decision.CONTINUE
    bad = (1.0, 1.0)
    assert rule.on_result(9, 1, bad) is Decision.CONTINUE  # below the first rung
    assert rule.on_result(0, 3, bad) is Decision.CONTINUE  # between two rungs, counted already
    assert rule.on_result(9, 2, bad) is Decision.STOP
    assert rule.on_result(9, 9, bad) is Decision.CONTINUE  # complete
    assert rule.rungs[2][0] == (2, (0.0, 0.0)) and not rule.rungs[8]


def test_a_skipped_rung_epoch_still_counts_at_that_rung_and_no_lower():
    rule = MoAsha(27, 1, 3, 2)
    for name in range(4):
        rule.on_result(name, 3, (0.0, 0.0))
    assert rule.on_result(9, 5, (1.0, 1.0)) is Decision.STOP
    assert rule.rungs[3][9] == (5, (1.0, 1.0)) and 9 not in rule.rungs[1]


def test_a_rung_reported_twice_counts_once():
    rule = MoAsha(9, 1, 3, 2)
    assert rule.on_result(0, 1, (0.0, 0.0)) is Decision.CONTINUE
    for _ in range(5):
        assert rule.on_result(1, 1, (1.0, 1.0)) is Decision.CONTINUE  # still the second of two
    assert len(rule.rungs[1]) == 2
    rule.on_result(2, 1, (0.5, 0.5))
    assert rule.on_result(1, 1, (1.0, 1.0)) is Decision.STOP  # judged again against three


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite_stop_and_leave_no_trace(bad):
    rule = MoAsha(9, 1, 3, 2)
    assert rule.on_result(0, 1, (bad, 0.0)) is Decision.STOP  # even as the first of its rung
    assert rule.on_result(0, 2, (0.0, bad)) is Decision.STOP
    assert rule.record(0, 3, (0.0, bad)) is None
    assert not any(rule.rungs.values())


HISTORY = st.lists(
    st.tuples(st.integers(0, 9), st.integers(1, 12), st.tuples(COORDINATE, COORDINATE)), max_size=60
)


@given(HISTORY, st.randoms(use_true_random=False))
def test_rungs_come_back_from_histories_in_any_order(history, random):
    live = MoAsha(10, 1, 2, 2, [0])
    for result in history:
        live.on_result(*result)
    rebuilt = MoAsha(10, 1, 2, 2, [0])
    rebuilt.replay(random.sample(history, len(history)))
    assert rebuilt.rungs == live.rungs
    assert rebuilt.state() == live.state()


@given(HISTORY, FACTORS)
def test_state_survives_json(history, factor):
    rule = MoAsha(10, 2, factor, 2, [1])
    rule.replay(history)
    state = json.loads(json.dumps(rule.state(), allow_nan=False))
    back = MoAsha.from_state(state)
    assert back.rungs == rule.rungs and back.state() == rule.state() and back.costs == (1,)


def test_state_of_another_format_is_refused():
    with pytest.raises(InputError, match="format 1, got 2"):
        MoAsha.from_state(MoAsha(9, 1, 3, 2).state() | {"format": 2})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 1, 3, 2), "epochs must be at least 1, but got 0"),
        ((9, 0, 3, 2), "grace_epochs must be at least 1, but got 0"),
        ((9, 1, 3, 0), "objectives must be at least 1, but got 0"),
        ((9, 1, 1, 2), "reduction_factor must be greater than 1, but got 1"),
        ((9, 1, float("nan"), 2), "reduction_factor must be greater than 1, but got nan"),
        ((9, 1, 3, 2, [2]), "must index one of 2 objectives"),
    ],
)
def test_numbers_outside_their_range_are_named(arguments, message):
    with pytest.raises(InputError, match=message):
        MoAsha(*arguments)
