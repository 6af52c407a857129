"""`ama cluster`: check cluster files."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape

from search.cli.console import console

app = typer.Typer(no_args_is_help=True, help="Check cluster files.")


@app.callback()
def cluster() -> None:
    """Check cluster files. docs/cluster.md explains how to start, use and shut down a cluster."""


@app.command(epilog="Example: [bold]ama cluster check cluster.yaml search/clusters/*.yaml[/]")
def check(
    files: Annotated[
        list[str],
        typer.Argument(metavar="FILE...", help="files for `ray up` or `kubectl apply`; starts nothing"),
    ],
) -> None:
    """Check cluster files offline: schema, sizes, regions, images, mounts, open ports, secrets."""
    from search.cluster_files.check import check as check_file
    from search.cluster_files.check import to_fill_in

    wrong = 0
    for file in files:
        faults = check_file(file)
        wrong += len(faults)
        for fault in faults:
            console.print(f"[bold red]error:[/] {escape(fault)}", soft_wrap=True)
        if not faults:
            console.print(f"{file}: ok", markup=False, soft_wrap=True)
            for value in to_fill_in(file):
                console.print(f"  placeholder to replace: {value}", markup=False, soft_wrap=True)
    if wrong:
        raise typer.Exit(2)
