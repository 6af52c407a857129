"""Where the `ama` command writes: two consoles, progress of the stages, the live view of a search."""

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

Stage = Callable[[str, int, int], None]  # what, done, of how many

LOG_WIDTH = 160  # columns of a file or pipe
LOG_SECONDS = 20.0  # between two lines of one stage in a log


def _width(stream: TextIO) -> int | None:
    return None if stream.isatty() or "COLUMNS" in os.environ else LOG_WIDTH


# Progress and errors go to stderr: stdout holds the answer, with `--json` nothing but JSON.
console = Console(stderr=True, highlight=False, width=_width(sys.stderr))
answers = Console(highlight=False, width=_width(sys.stdout))


@contextmanager
def stages() -> Iterator[Stage]:
    """Progress of the stages: a bar each on a terminal, now and then a line elsewhere.

    Yields:
        What the pipeline calls as work goes on. The part of its text before a comma names the stage.
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
    """A line when a stage begins, when it ends, and every `LOG_SECONDS` between."""

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
    """Progress of the stages before a search, which make room for the live board when it begins.

    Args:
        objectives: metric and direction, in the study's order.

    Yields:
        The `progress` and the `watch` callable for the runner.
    """
    with ExitStack() as before, ExitStack() as during:
        progress = before.enter_context(stages())
        board_view: list[Callable[[Board], None]] = []

        def watch(board: Board) -> None:
            if not board_view:
                before.close()  # a console has room for one live display
                board_view.append(during.enter_context(live_board(objectives)))
            board_view[0](board)

        yield progress, watch


@contextmanager
def live_board(objectives: Objectives) -> Iterator[Callable[[Board], None]]:
    """The live view of a search: a `watch` callable for the runner.

    On a terminal it redraws in place; elsewhere (a log) it prints one line a finished trial.

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
    """One line for every trial that ended."""

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
