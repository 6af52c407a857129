"""Run a search from the command line and show its progress live."""

from __future__ import annotations

import shlex
import sys

import typer
from rich.markup import escape

from search.cli.console import answers, search_view
from search.cli.tables import count_words, front_table
from search.experiment.experiment import Experiment
from search.tune.board import Board


def run_search(
    experiment: Experiment,
    *,
    address: str | None = None,
    resume: bool = False,
    profile_trial: bool = False,
) -> None:
    """Search with a live view; exit with code 1 if the search as a whole failed."""
    from search.run import search as runner

    objectives: list[tuple[str, str]] = [(o.metric, o.direction) for o in experiment.objectives]
    boards: list[Board] = []
    with search_view(objectives) as (progress, show_board):

        def watch(board: Board) -> None:
            boards[:] = [board]
            show_board(board)

        outcome = runner.search(
            experiment,
            address=address,
            resume=resume,
            command=shlex.join(["ama", *sys.argv[1:]]),
            progress=progress,
            watch=watch,
            profile_trial=profile_trial,
        )
    for board in boards:
        answers.print(front_table(board.front(), objectives))
        counts = board.counts()
        counts["WAITING"] += counts.pop("RUNNING", 0)  # nothing runs any more; --resume continues them
        answers.print(count_words(counts, board.refused))
    ended = "stopped" if outcome.interrupted or outcome.failed else "finished"
    answers.print(f"search {ended}: {escape(outcome.reason)}\nrun: {outcome.run}", soft_wrap=True)
    if profile_trial:
        files = " ".join(outcome.profile)
        answers.print(
            f"profile: {escape(files) or 'none: no trial here reached its second epoch'}", soft_wrap=True
        )
    if outcome.failed:
        raise typer.Exit(1)
