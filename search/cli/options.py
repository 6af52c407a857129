"""Shared by the subcommands of `ama`: the Typer app, common options, answers as JSON."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Search how to distil a teacher network into faster students.",
    context_settings={"help_option_names": ["-h", "--help"]},
)

ExperimentArg = Annotated[
    str, typer.Argument(metavar="EXPERIMENT", help="a YAML file, or a preset's name such as digits")
]
RunArg = Annotated[str, typer.Argument(metavar="RUN", help="a run directory, also s3://… or gs://…")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("-o", "--override", metavar="KEY=VALUE", help="override a key, e.g. -o budget.trials=50"),
]
Out = Annotated[
    str | None,
    typer.Option("--out", metavar="DIR", help="the run directory (run.dir), also s3://… or gs://…"),
]
Json = Annotated[bool, typer.Option("--json", help="print the answer as JSON on standard output")]
Address = Annotated[
    str | None,
    typer.Option("--address", metavar="A", help="address of a Ray cluster, or auto; default: start Ray here"),
]


def emit(value: Any) -> None:
    """Print an answer as JSON."""
    print(json.dumps(value, indent=2))


@contextmanager
def uncollected() -> Iterator[None]:
    """Exclude existing objects from garbage collection until the block ends.

    For commands that hold a large study in memory: with 10,000 trials the collector would take a third of
    the CPU time of `ama pick`.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def example(text: str) -> str:
    """Format the example line below a command's help."""
    return f"Example: [bold]{text}[/]"
