"""What the `ama` command shows: progress of the stages, the live board of a search, small tables."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from analysis.metrics import show

if TYPE_CHECKING:  # both import torch, which `ama --help` need not wait for
    from search.searcher import Board

# Everything for people goes to stderr, so that `--json` on stdout is nothing but JSON.
console = Console(stderr=True, highlight=False)


@contextmanager
def stages() -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar a stage, as `progress` callables of the pipeline want it."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(compact=True),
    )
    with Progress(*columns, console=console, transient=True) as bars:
        tasks: dict[str, Any] = {}

        def report(what: str, done: int, total: int) -> None:
            stage = what.split(",")[0]
            if stage not in tasks:
                tasks[stage] = bars.add_task(what, total=total)
            bars.update(tasks[stage], description=what, completed=done, total=total)

        yield report


@contextmanager
def live_board(objectives: Sequence[tuple[str, str]]) -> Iterator[Any]:
    """The live view of a search: a `watch` callable for the runner.

    On a terminal it redraws in place; elsewhere (a log) it prints one line a finished trial.

    Args:
        objectives: metric and direction, in the study's order.
    """
    began = time.monotonic()
    if not console.is_terminal:
        yield _Lines(objectives)
        return
    with Live(console=console, refresh_per_second=4, transient=True) as live:

        def watch(board: Board) -> None:
            live.update(draw(board, objectives, time.monotonic() - began))

        yield watch


class _Lines:
    """One line for every trial that ended."""

    def __init__(self, objectives: Sequence[tuple[str, str]]) -> None:
        self._objectives = objectives
        self._seen: set[int] = set()

    def __call__(self, board: Board) -> None:
        ended = [n for n, state in board.states.items() if state in ("COMPLETE", "PRUNED", "FAIL")]
        for number in ended:
            if number not in self._seen:
                self._seen.add(number)
                values = board.values.get(number, ())
                shown = ", ".join(show(m, v) for (m, _), v in zip(self._objectives, values, strict=False))
                console.print(
                    f"trial {number:>4}  {board.states[number]:<8}  "
                    f"{board.done_epochs.get(number, 0)}/{board.epochs} epochs  {shown}"
                    f"  [{len(ended)}/{board.trials}]"
                )


def draw(board: Board, objectives: Sequence[tuple[str, str]], elapsed: float) -> RenderableType:
    """The board: trials by state, time left, and the front so far."""
    counts = board.counts()
    ended = counts["COMPLETE"] + counts["PRUNED"] + counts["FAIL"]
    line = (
        f"{ended}/{board.trials} trials: {counts['COMPLETE']} complete, {counts['PRUNED']} stopped early, "
        f"{counts['FAIL']} failed, {counts['RUNNING']} running; {board.refused} proposals refused"
    )
    clock = f"{duration(elapsed)} gone{_left(board, ended, elapsed)}"
    return Group(Text(line), Text(clock), front_table(board.values, objectives))


def _left(board: Board, ended: int, elapsed: float) -> str:
    """Time left, from the epochs done so far; trials stopped early make the rest shorter in proportion."""
    done = sum(board.done_epochs.get(n, 0) for n in board.states)
    if not ended or not done:
        return ""
    per_trial = sum(board.done_epochs.get(n, 0) for n, s in board.states.items() if s != "RUNNING") / ended
    total = max(per_trial * board.trials, done)
    return f", about {duration(elapsed * (total - done) / done)} left"


def front_table(
    values: Mapping[int, Sequence[float]], objectives: Sequence[tuple[str, str]], title: str = "front"
) -> Table:
    """The non-dominated trials of `values`, cheapest (by the last objective) first."""
    table = Table(title=title, title_justify="left")
    table.add_column("trial", justify="right")
    for metric, _ in objectives:
        table.add_column(metric, justify="right")
    signs = [-1.0 if direction == "maximize" else 1.0 for _, direction in objectives]
    points = {n: tuple(s * v for s, v in zip(signs, row, strict=True)) for n, row in values.items()}
    front = [n for n, p in points.items() if not any(dominates(q, p) for q in points.values())]
    for number in sorted(front, key=lambda n: values[n][-1]):
        table.add_row(
            str(number), *(show(m, v) for (m, _), v in zip(objectives, values[number], strict=True))
        )
    return table


def dominates(a: Sequence[float], b: Sequence[float]) -> bool:
    """Whether `a` is at least as good as `b` everywhere and better somewhere; smaller is better."""
    return all(x <= y for x, y in zip(a, b, strict=True)) and tuple(a) != tuple(b)


def duration(seconds: float) -> str:
    """Seconds as `1 h 02 min`, `3 min 20 s` or `12 s`."""
    if seconds >= 3600:
        return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60):02d} min"
    if seconds >= 60:
        return f"{int(seconds // 60)} min {int(seconds % 60):02d} s"
    return f"{seconds:.0f} s"
