"""The `ama` command. Each subcommand reads files, writes files and prints where they are.

`ama --help` lists the subcommands, `ama COMMAND --help` gives an example of each.
"""

from __future__ import annotations

import sys
from typing import NoReturn

from rich.markup import escape

from analysis.errors import InputError as AnalysisInputError
from search.cli import cluster_commands as cluster_cli
from search.cli import experiment_commands as experiment_cli  # noqa: F401 - registers its commands with `app`
from search.cli import run_commands as run_cli  # noqa: F401 - registers its commands with `app`
from search.cli.console import console
from search.cli.options import app, example
from search.errors import FailedError
from trainables.errors import InputError

app.add_typer(cluster_cli.app, name="cluster")


def main() -> None:
    """Run the command; print errors that the user can fix as one message, without a traceback.

    Exit with code 2 for user errors and with 1 for work that failed.
    """
    try:
        app()
    except (InputError, AnalysisInputError) as fault:
        _end(str(fault), 2)
    except FailedError as fault:
        _end(str(fault), 1)
    except (PermissionError, FileExistsError, NotADirectoryError, IsADirectoryError) as fault:
        _end(f"{fault.filename}: {fault.strerror}", 2)  # from --out and run.dir; others are checked before


def _end(message: str, code: int) -> NoReturn:
    console.print(f"[bold red]error:[/] {escape(message)}", soft_wrap=True)
    sys.exit(code)


@app.command(epilog=example("ama schema > experiment-keys.md"))
def schema() -> None:
    """Print every key of the experiment file with its type, default and meaning."""
    from search.experiment.reference import schema_markdown

    print(schema_markdown())


if __name__ == "__main__":
    main()
