import math

import pytest
from scipy import stats

from analysis.intervals import paired, summarise


def test_interval_of_a_mean_is_students() -> None:
    values = [0.91, 0.93, 0.92, 0.95]
    found = summarise(values)
    low, high = stats.t.interval(0.95, 3, loc=found.mean, scale=stats.sem(values))
    assert (found.n, found.mean) == (4, pytest.approx(0.9275))
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))


def test_one_value_has_no_spread() -> None:
    found = summarise([0.5])
    assert (found.n, found.mean, found.std, found.low, found.high) == (1, 0.5, None, None, None)


def test_pairs_are_the_seeds_that_both_have() -> None:
    ours = {1: 0.90, 2: 0.92, 3: 0.91, 9: 0.0}
    theirs = {3: 0.88, 1: 0.88, 2: 0.885, 7: 1.0}
    found = paired(ours, theirs)
    assert found is not None
    test = stats.ttest_rel([0.90, 0.92, 0.91], [0.88, 0.885, 0.88])
    assert found.n == 3
    assert found.difference == pytest.approx((0.02 + 0.035 + 0.03) / 3)
    assert found.p == pytest.approx(test.pvalue)
    interval = test.confidence_interval(0.95)
    assert (found.low, found.high) == (pytest.approx(interval.low), pytest.approx(interval.high))


def test_pairing_finds_what_means_alone_do_not() -> None:
    theirs = {seed: seed / 10 for seed in range(5)}
    ours = {seed: value + 0.01 + 0.001 * (seed % 2) for seed, value in theirs.items()}
    found = paired(ours, theirs)
    assert found is not None and found.p is not None and found.p < 1e-4
    assert stats.ttest_ind(list(ours.values()), list(theirs.values())).pvalue > 0.5


def test_what_cannot_be_tested_has_no_p_value() -> None:
    assert paired({1: 0.5}, {2: 0.5}) is None
    single = paired({1: 0.75}, {1: 0.5})
    assert single is not None and (single.n, single.difference, single.p, single.low) == (1, 0.25, None, None)
    constant = paired({1: 0.75, 2: 1.0}, {1: 0.5, 2: 0.75})
    assert constant is not None and constant.p is None and constant.difference == 0.25
    equal = paired({1: 0.5, 2: 0.25}, {1: 0.5, 2: 0.25})
    assert equal is not None and equal.p == 1.0
    assert math.isnan(summarise([math.nan, 1.0]).mean)
