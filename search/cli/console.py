"""Console output of the `ama` command: two consoles, progress of the stages, live view of a search."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TextIO

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from analysis.metrics import show
from search.cli.tables import ENDED, Objectives, draw
from search.tune.board import Board

Stage = Callable[[str, int, int], None]  # description, done, total

LOG_WIDTH = 160  # columns when the output is a file or a pipe
LOG_SECONDS = 20.0  # time between two log lines of one stage


def _width(stream: TextIO) -> int | None:
    return None if stream.isatty() or "COLUMNS" in os.environ else LOG_WIDTH


# Progress and errors go to stderr. The answer goes to stdout; with `--json` stdout is pure JSON.
console = Console(stderr=True, highlight=False, width=_width(sys.stderr))
answers = Console(highlight=False, width=_width(sys.stdout))


@contextmanager
def stages() -> Iterator[Stage]:
    """Show the progress of the stages: one bar each on a terminal, log lines elsewhere.

    Yields:
        The progress callback of the pipeline. The text before the first comma is the stage's name.
    """
    if not console.is_terminal:
        yield _StageLog()
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(compact=True),
    )
    with Progress(*columns, console=console, transient=True) as bars:
        starting = bars.add_task("starting", total=None)
        tasks: dict[str, TaskID] = {}

        def report(what: str, done: int, total: int) -> None:
            stage = what.split(",")[0]
            bars.update(starting, visible=False)
            if stage not in tasks:
                tasks[stage] = bars.add_task(what, total=total)
            bars.update(tasks[stage], description=what, completed=done, total=total)

        yield report


class _StageLog:
    """Print a line when a stage starts, when it ends, and every `LOG_SECONDS` in between."""

    def __init__(self) -> None:
        self._stage = ""
        self._last = ("", -1)
        self._due = 0.0

    def __call__(self, what: str, done: int, total: int) -> None:
        stage, now = what.split(",")[0], time.monotonic()
        if (stage == self._stage and now < self._due and done < total) or self._last == (stage, done):
            return
        self._stage, self._last, self._due = stage, (stage, done), now + LOG_SECONDS
        console.print(f"{what}: {done}/{total}", markup=False, soft_wrap=True)


@contextmanager
def search_view(objectives: Objectives) -> Iterator[tuple[Stage, Callable[[Board], None]]]:
    """Show the stages before a search, then the live board once the search starts.

    Args:
        objectives: metric and direction, in the study's order.

    Yields:
        The callables `progress` and `watch` for the runner.
    """
    with ExitStack() as before, ExitStack() as during:
        progress = before.enter_context(stages())
        board_view: list[Callable[[Board], None]] = []

        def watch(board: Board) -> None:
            if not board_view:
                before.close()  # a console supports one live display at a time
                board_view.append(during.enter_context(live_board(objectives)))
            board_view[0](board)

        yield progress, watch


@contextmanager
def live_board(objectives: Objectives) -> Iterator[Callable[[Board], None]]:
    """Show a search live; yields the `watch` callable for the runner.

    On a terminal the view is redrawn in place. Elsewhere it prints one line per finished trial.

    Args:
        objectives: metric and direction, in the study's order.
    """
    began = time.monotonic()
    if not console.is_terminal:
        yield _Lines(objectives)
        return
    before: list[int] = []  # epochs that earlier sessions trained
    with Live(console=console, refresh_per_second=4, transient=True) as live:

        def watch(board: Board) -> None:
            before[:] = before or [board.epochs_in_all]
            live.update(draw(board, objectives, time.monotonic() - began, before[0]))

        yield watch


class _Lines:
    """Print one line for every trial that ended."""

    def __init__(self, objectives: Objectives) -> None:
        self._objectives = objectives
        self._said = 0

    def __call__(self, board: Board) -> None:
        for number in board.ended[self._said :]:
            values = board.values.get(number, ())
            shown = ", ".join(show(m, v) for (m, _), v in zip(self._objectives, values, strict=False))
            console.print(
                f"{f'{len(board.ended)}/{board.trials}':>9}  trial {number:>4}  "
                f"{ENDED[board.states[number]]:<13}  "
                f"{board.done_epochs.get(number, 0)}/{board.epochs} epochs  {shown}".rstrip(),
                markup=False,
                soft_wrap=True,
            )
        self._said = len(board.ended)
