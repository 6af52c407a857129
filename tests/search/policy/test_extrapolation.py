"""What an early-stopped trial would have come to, in closed form."""

from __future__ import annotations

import pytest

from search.policy.extrapolation import Curves

DIRECTIONS = ["maximize", "minimize"]


@pytest.fixture
def curves() -> Curves:
    return Curves(DIRECTIONS, trained=[0])


def train(curves: Curves, trial: int, accuracies: list[float], flops: float, complete: bool = False) -> None:
    for epoch, accuracy in enumerate(accuracies, start=1):
        curves.report(trial, epoch, [accuracy, flops])
    if complete:
        curves.complete(trial, [accuracies[-1], flops])


def test_a_stopped_trial_gains_what_complete_ones_gained(curves: Curves) -> None:
    train(curves, 0, [0.5, 0.7, 0.8], 10.0, complete=True)  # gains 0.3 from epoch 1
    train(curves, 1, [0.6, 0.7, 0.7], 10.0, complete=True)  # 0.1
    train(curves, 2, [0.1, 0.4, 0.6], 10.0, complete=True)  # 0.5
    train(curves, 3, [0.2], 5.0)  # cheaper than all: none of them is why it was stopped
    assert curves.expected(3) == pytest.approx([0.5, 5.0])


def test_gains_count_from_the_epoch_at_which_it_was_stopped(curves: Curves) -> None:
    train(curves, 0, [0.5, 0.7, 0.8], 10.0, complete=True)
    train(curves, 1, [0.2, 0.3], 5.0)
    assert curves.expected(1) == pytest.approx([0.4, 5.0])


def test_it_does_not_overtake_the_trial_that_it_was_stopped_for(curves: Curves) -> None:
    train(curves, 0, [0.5, 0.6, 0.6], 10.0, complete=True)
    train(curves, 1, [0.1, 0.4, 0.8], 20.0, complete=True)
    train(curves, 2, [0.4], 15.0)  # behind trial 0, which is cheaper; the median gain is 0.4
    assert curves.expected(2, capped=False) == pytest.approx([0.8, 15.0])
    assert curves.expected(2) == pytest.approx([0.6, 15.0])


def test_it_does_not_overtake_a_trial_that_is_still_running(curves: Curves) -> None:
    train(curves, 0, [0.3, 0.5], 50.0, complete=True)
    train(curves, 1, [0.6], 10.0)
    train(curves, 2, [0.6], 12.0)
    assert curves.expected(2) == pytest.approx([0.8, 12.0])  # as much as trial 1 is expected to reach


def test_an_equal_trial_is_no_rival(curves: Curves) -> None:
    train(curves, 0, [0.3, 0.4], 10.0, complete=True)
    train(curves, 1, [0.3, 0.9], 90.0, complete=True)
    train(curves, 2, [0.3], 10.0)
    assert curves.expected(2) == pytest.approx([0.65, 10.0])


def test_nothing_is_expected_while_no_trial_shows_a_gain(curves: Curves) -> None:
    train(curves, 0, [0.3], 10.0)
    assert curves.expected(0) is None
    curves.complete(1, [0.9, 20.0])  # of a run that kept no curve
    assert curves.expected(0) is None


def test_exact_objectives_stay_as_they_are(curves: Curves) -> None:
    train(curves, 0, [0.5, 0.9], 10.0, complete=True)
    train(curves, 1, [0.4], 12.5)
    expected = curves.expected(1)
    assert expected is not None and expected[1] == 12.5


def test_several_trained_objectives() -> None:
    curves = Curves(["maximize", "minimize", "minimize"], trained=[0, 1])
    for epoch, (accuracy, loss) in enumerate([(0.5, 1.0), (0.8, 0.4)], start=1):
        curves.report(0, epoch, [accuracy, loss, 10.0])
    curves.complete(0, [0.8, 0.4, 10.0])
    curves.report(1, 1, [0.4, 1.5, 10.0])
    assert curves.expected(1) == pytest.approx([0.7, 0.9, 10.0])
