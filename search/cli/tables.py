"""Tables for the terminal: state of a search, front, cost table. Imports neither torch nor Ray."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from analysis.metrics import duration, show
from search.tune.board import Board, Front

Objectives = Sequence[tuple[str, str]]  # metric and direction, in the study's order

# Display names of the trial states.
ENDED = {"COMPLETE": "complete", "PRUNED": "stopped early", "FAIL": "failed"}
WORDS = {**ENDED, "RUNNING": "running", "WAITING": "waiting"}


def draw(board: Board, objectives: Objectives, elapsed: float, before: int = 0) -> RenderableType:
    """Draw the board: trials by state, elapsed and remaining time, current front.

    Args:
        board: the live state.
        objectives: metric and direction, in the study's order.
        elapsed: seconds since this session started.
        before: epochs that earlier sessions trained.
    """
    counts = board.counts()
    ended = sum(counts[state] for state in ENDED)
    line = f"{ended}/{board.trials} trials: {count_words(counts, board.refused)}"
    left = seconds_left(board, elapsed, before)
    clock = f"elapsed {duration(elapsed)}" + (f", about {duration(left)} left" if left else "")
    return Group(Text(line), Text(clock), _front_table(board.front(), objectives))


def count_words(counts: Mapping[str, int], refused: int) -> str:
    """Format counts of trials, e.g. `5 complete, 1 stopped early, 0 failed; 2 proposals refused`.

    Running and waiting trials are listed only if there are any.
    """
    parts = [
        f"{counts.get(state, 0)} {word}"
        for state, word in WORDS.items()
        if state in ENDED or counts.get(state)
    ]
    tail = f"; {refused} proposal{'s' if refused > 1 else ''} refused before training" if refused else ""
    return ", ".join(parts) + tail


def seconds_left(board: Board, elapsed: float, before: int = 0) -> float | None:
    """Estimate the remaining seconds from the average length of ended trials; None: too early."""
    done = board.epochs_in_all
    if not board.ended or done <= before:
        return None
    average = board.epochs_of_ended / len(board.ended)
    return elapsed * max(average * board.trials - done, 0.0) / (done - before)


def front_table(values: Mapping[int, Sequence[float]], objectives: Objectives) -> Table:
    """Draw the non-dominated trials of `values`, cheapest (by the last objective) first."""
    front = Front([direction for _, direction in objectives])
    for number, row in values.items():
        front.add(number, row)
    return _front_table(front.values, objectives)


def _front_table(front: Mapping[int, Sequence[float]], objectives: Objectives) -> Table:
    table = Table(title="front", title_justify="left")
    table.add_column("trial", justify="right")
    for metric, _ in objectives:
        table.add_column(metric, justify="right")
    for number, values in sorted(front.items(), key=lambda row: row[1][-1]):
        table.add_row(str(number), *(show(m, v) for (m, _), v in zip(objectives, values, strict=True)))
    return table


def profile_tables(costs: Mapping[str, Any]) -> tuple[Table, Table]:
    """Draw a cost table from its JSON form: one table of the teacher's blocks, one of the modules."""

    def figures(row: Mapping[str, Any]) -> list[str]:
        return [show(metric, row[metric]) for metric in ("params", "flops", "latency_ms")]

    blocks = Table("name", "in", "out", title="blocks", title_justify="left")
    modules = Table("span", title="AMA modules", title_justify="left")
    modules.add_column("width", justify="right")
    for table in (blocks, modules):
        for name in ("params", "FLOPs", "latency"):
            table.add_column(name, justify="right")
    for row in costs["blocks"]:
        shapes = ("×".join(map(str, row[key])) for key in ("in_shape", "out_shape"))
        blocks.add_row(row["name"], *shapes, *figures(row))
    blocks.add_section()
    blocks.add_row("the whole teacher", "", "", *figures(costs["teacher"]))
    for row in costs["modules"]:
        modules.add_row(" + ".join(row["span"]), f"{row['width']:g}", *figures(row))
    return blocks, modules


def text_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """Draw a table of texts: first column left-aligned, others right-aligned."""
    table = Table()
    for index, header in enumerate(headers):
        table.add_column(Text(header), justify="right" if index else "left")
    for row in rows:
        table.add_row(*map(Text, row))
    return table
