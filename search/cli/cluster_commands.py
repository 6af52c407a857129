"""`ama cluster`: what concerns the cluster itself."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape

from search.cli.console import console

app = typer.Typer(no_args_is_help=True, help="Check cluster files.")


@app.callback()
def cluster() -> None:
    """Check cluster files. docs/cluster.md says how a cluster is started, used and torn down."""


@app.command(epilog="Example: [bold]ama cluster check cluster.yaml search/clusters/*.yaml[/]")
def check(
    files: Annotated[
        list[str],
        typer.Argument(metavar="FILE...", help="for `ray up` or `kubectl apply`; nothing is started"),
    ],
) -> None:
    """Check cluster files offline: schema, sizes, places, images, mounts, open ports, secrets."""
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
                console.print(f"  yours to fill in: {value}", markup=False, soft_wrap=True)
    if wrong:
        raise typer.Exit(2)
