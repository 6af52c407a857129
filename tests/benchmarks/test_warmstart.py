"""What warm starts save: the search for the least epochs, and the figures."""

from __future__ import annotations

import pytest

from benchmarks.curves import Scale
from benchmarks.table import LibraryRecord
from benchmarks.warmstart import figures, least_epochs


class Rising:
    """Warm trials that end at 0.1 an epoch; remembers which were trained."""

    def __init__(self) -> None:
        self.trained: list[int] = []

    def __call__(self, epochs: int) -> float:
        self.trained.append(epochs)
        return epochs / 10


@pytest.mark.parametrize(
    ("target", "full", "least", "trained"),
    [
        (0.05, 0.9, 1, [3, 2, 1]),
        (0.2, 0.9, 2, [3, 2, 1]),
        (0.3, 0.9, 3, [3, 2]),
        (0.5, 0.9, 5, [3, 4, 5]),
        (0.85, 0.9, 9, [3, 4, 5, 6, 7, 8]),
        (0.95, 0.9, None, [3, 4, 5, 6, 7, 8]),
    ],
)
def test_the_least_epochs_are_found_from_a_third_on(
    target: float, full: float, least: int | None, trained: list[int]
) -> None:
    train = Rising()
    assert least_epochs(target, 9, full, train) == least
    assert train.trained == trained


def test_what_was_never_reached_counts_as_more_than_all_epochs() -> None:
    rows = [
        {"least_epochs": least, "reached_at": at, "warm": 0.8, "cold": cold}
        for least, at, cold in [(1, 2, 0.7), (2, 4, 0.75), (2, None, 0.78), (None, None, 0.9)]
    ]
    scale = Scale((), None, {}, trial_flops=10.0, trial_seconds=0.0)  # type: ignore[arg-type]
    library = LibraryRecord(seconds=0.0, flops=18.0, solo_loss={})
    lines = figures(rows, 6, library, scale, (6.0, 4.0))
    assert lines["n"] == 4
    assert lines["warm_epochs_share_median"] == pytest.approx(2 / 6, abs=1e-3)
    assert lines["warm_within_a_third"] == 0.75
    assert lines["warm_full_length_share_median"] == pytest.approx((4 + 7) / 2 / 6, abs=1e-3)
    assert lines["warm_gain_points"] == pytest.approx(100 * (0.8 - 0.7825))
    assert lines["library_trials_flops"] == 1.8
    assert lines["library_trials_seconds"] == 1.5
