"""What the command writes while it works: logs without control characters, live views on a terminal."""

from __future__ import annotations

import io
import sys

import pytest
from rich.console import Console

import search.cli.console as module
from search.cli.console import LOG_WIDTH, live_board, search_view, stages
from search.tune.board import Board

ACCURACY_FLOPS = [("val_accuracy", "maximize"), ("flops", "minimize")]
DIRECTIONS = [direction for _, direction in ACCURACY_FLOPS]


def end(board: Board, number: int, epochs: int, values: tuple[float, ...]) -> None:
    """A trial is complete, told in the order in which the searcher tells it."""
    board.reached(number, epochs)
    board.complete(number, values)
    board.change(number, "COMPLETE")


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """The console as it is on a terminal of 100 columns."""
    written = io.StringIO()
    console = Console(file=written, force_terminal=True, width=100, height=40, highlight=False)
    monkeypatch.setattr(module, "console", console)
    return written


def test_a_log_has_a_line_for_each_beginning_and_end(capsys: pytest.CaptureFixture[str]) -> None:
    with stages() as progress:
        for done in range(101):
            progress(f"training the teacher, validation accuracy 0.{done:03d}", done, 100)
        progress("measuring [the] cost table", 0, 10)
        progress("measuring [the] cost table", 10, 10)
        progress("measuring [the] cost table", 10, 10)
    captured = capsys.readouterr()
    assert captured.err.splitlines() == [
        "training the teacher, validation accuracy 0.000: 0/100",
        "training the teacher, validation accuracy 0.100: 100/100",
        "measuring [the] cost table: 0/10",
        "measuring [the] cost table: 10/10",
    ]
    assert captured.out == ""


def test_a_log_of_a_long_stage_has_a_line_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOG_SECONDS", 0.0)
    with stages() as progress:
        for done in range(4):
            progress("decoding", done, 100)
    assert capsys.readouterr().err.count("decoding") == 4


def test_a_search_logs_each_trial_once_when_it_ends(capsys: pytest.CaptureFixture[str]) -> None:
    board = Board(trials=3, epochs=4, directions=DIRECTIONS)
    with search_view(ACCURACY_FLOPS) as (progress, watch):
        progress("measuring", 1, 1)
        board.change(0, "RUNNING")
        board.change(1, "RUNNING")
        watch(board)
        end(board, 0, 4, (0.5, 2.07e6))
        watch(board)
        board.reached(1, 1)
        board.change(1, "PRUNED")
        watch(board)
        watch(board)
    assert capsys.readouterr().err.splitlines() == [
        "measuring: 1/1",
        "      1/3  trial    0  complete       4/4 epochs  50.00 %, 2.07 M",
        "      2/3  trial    1  stopped early  1/4 epochs",
    ]


def test_stages_are_bars_on_a_terminal(terminal: io.StringIO) -> None:
    with stages() as progress:
        progress("training the teacher, validation accuracy 0.5", 1, 4)
        progress("training the teacher, validation accuracy 0.7", 4, 4)
    shown = terminal.getvalue()
    assert "starting" in shown
    assert "validation accuracy 0.7" in shown
    assert "4/4" in shown


def test_the_board_takes_the_place_of_the_bars_on_a_terminal(terminal: io.StringIO) -> None:
    board = Board(trials=2, epochs=4, directions=DIRECTIONS)
    end(board, 0, 4, (0.5, 2.07e6))
    with search_view(ACCURACY_FLOPS) as (progress, watch):
        progress("measuring", 1, 1)
        watch(board)
        end(board, 1, 4, (0.75, 3e6))
        watch(board)
    shown = terminal.getvalue()
    assert shown.index("measuring") < shown.index("trials: ")
    assert "2/2 trials: 2 complete" in shown
    assert "75.00 %" in shown


def test_a_board_that_never_comes_leaves_the_bars(terminal: io.StringIO) -> None:
    with search_view(ACCURACY_FLOPS) as (progress, _):
        progress("measuring", 1, 1)
    assert "measuring" in terminal.getvalue()
    assert "trials" not in terminal.getvalue()


def test_epochs_of_an_earlier_session_do_not_count_as_speed(terminal: io.StringIO) -> None:
    board = Board(trials=4, epochs=4, directions=DIRECTIONS)
    end(board, 0, 4, (0.5, 2.07e6))
    with live_board(ACCURACY_FLOPS) as watch:
        watch(board)
    assert "left" not in terminal.getvalue(), "nothing was trained in this session yet"


def test_lines_of_a_log_are_long_and_those_of_a_terminal_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    assert module._width(io.StringIO()) == LOG_WIDTH
    monkeypatch.setenv("COLUMNS", "70")
    assert module._width(sys.stderr) is None
