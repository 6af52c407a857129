"""Open a run for reading, local or in an object store."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from analysis.runs.object_store import is_remote
from analysis.runs.run import Run
from search.run_dir.folder import Folder, working_folder


@contextmanager
def opened(run: str) -> Iterator[tuple[Run, Folder]]:
    """Open `run`: yields its current study, and its run directory, to which files may be added.

    Args:
        run: a run directory, the URI of one in an object store, or the URL of a study's database.

    Raises:
        InputError: `run` is not a run, or its database cannot be read.
    """
    if is_remote(run):
        from analysis.report.retrained import RESULTS

        with working_folder(run) as folder:
            folder.fetch("retrained", RESULTS)
            yield Run.open(folder.path, place=folder.place), folder
    else:
        yield Run.open(run), Folder(run, Path(run))
