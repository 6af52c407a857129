"""The live board: its counts and front are right, and cost the same however many trials have ended."""

from __future__ import annotations

import io
import random
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

import search.cli.console as console_module
from search.cli.console import live_board
from search.cli.tables import draw
from search.tune.board import ENDED, Board, Front, dominates

ACCURACY_FLOPS = [("val_accuracy", "maximize"), ("flops", "minimize")]
DIRECTIONS = [direction for _, direction in ACCURACY_FLOPS]


def test_a_point_does_not_dominate_itself_nor_its_equal() -> None:
    assert dominates((1.0, 2.0), (1.0, 3.0))
    assert not dominates((1.0, 2.0), (1.0, 2.0))
    assert not dominates((0.0, 3.0), (1.0, 2.0))


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=30))
def test_the_front_is_what_no_point_dominates(points: list[tuple[int, int]]) -> None:
    front = Front(DIRECTIONS)
    for number, point in enumerate(points):
        front.add(number, point)
    flipped = [(-a, b) for a, b in points]
    expected = {
        number: points[number]
        for number, point in enumerate(flipped)
        if not any(dominates(other, point) for other in flipped)
    }
    assert front.values == expected


@given(st.lists(st.tuples(st.integers(0, 5), st.sampled_from([*ENDED, "RUNNING", "WAITING", "epoch"]))))
def test_figures_are_those_of_all_trials(changes: list[tuple[int, str]]) -> None:
    board = Board(6, 4, DIRECTIONS)
    for number, what in changes:
        if what == "epoch":
            board.reached(number, board.done_epochs.get(number, 0) + 1)
        else:
            board.change(number, what)
    ended = [number for number, state in board.states.items() if state in ENDED]
    assert board.counts() == Counter(board.states.values())
    assert sorted(board.ended) == sorted(ended)
    assert board.epochs_in_all == sum(board.done_epochs.values())
    assert board.epochs_of_ended == sum(board.done_epochs.get(number, 0) for number in ended)


def filled(trials: int) -> Board:
    """A board of ended trials, of which five are on the front."""
    board, rng = Board(trials + 1, 8, DIRECTIONS), random.Random(0)
    for number in range(trials):
        board.change(number, "RUNNING")
        board.reached(number, 8)
        values = (0.9 + 0.01 * number, 100.0 + number) if number < 5 else (rng.random() / 2, 200.0)
        board.complete(number, values)
        board.change(number, "COMPLETE")
    return board


def calls(action: Callable[[], Any]) -> int:
    """How many functions `action` calls, Python's and C's, a generator's steps among them."""
    count = 0

    def seen(frame: Any, event: str, argument: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(seen)
    try:
        action()
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.parametrize("terminal", [True, False])
def test_a_trial_costs_the_same_however_many_have_ended(
    terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    console = Console(file=io.StringIO(), force_terminal=terminal, width=100, highlight=False)
    monkeypatch.setattr(console_module, "console", console)
    costs = {}
    for trials in (500, 4_000, 8_000):
        board = filled(trials)
        with live_board(ACCURACY_FLOPS) as watch:
            watch(board)

            def one_more(board: Board = board, trials: int = trials) -> None:
                board.reached(trials, 8)
                board.complete(trials, (0.1, 300.0))
                board.change(trials, "COMPLETE")
                draw(board, ACCURACY_FLOPS, 9.0)
                if not terminal:  # on a terminal a second thread draws when it likes
                    watch(board)

            costs[trials] = calls(one_more)
        assert len(board.front()) == 5 and len(board.ended) == trials + 1
    # Longer numbers take a few calls more to format.
    assert max(costs.values()) - min(costs.values()) < 20 and max(costs.values()) < 5_000


def test_a_trial_beyond_a_limit_is_on_no_live_front() -> None:
    board = Board(2, 1, ["maximize", "minimize"])
    for number, (values, within) in enumerate([((0.9, 1.0), False), ((0.5, 2.0), True)]):
        board.change(number, "COMPLETE")
        board.complete(number, values, within)
    assert board.front() == {1: (0.5, 2.0)}
    assert board.values == {0: (0.9, 1.0), 1: (0.5, 2.0)}
