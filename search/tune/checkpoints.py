"""Find the checkpoints of earlier sessions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from optuna.trial import FrozenTrial

from analysis.runs.object_store import Store, is_remote, join
from search.run_dir.folder import TRIALS, Folder
from trainables.trial import CHECKPOINT_FILE

_CHECKPOINT = re.compile(r"(\d+)-(\d+)/checkpoint_(\d+)")


def storage_of(folder: Folder) -> str:
    """Return Ray's storage path for trials: the run directory itself, never its working copy."""
    return folder.place if folder.remote else str(folder.path.absolute())


def checkpoints(folder: Folder, rows: Sequence[FrozenTrial]) -> dict[int, list[str]]:
    """Find the checkpoint folders of interrupted rows, by row number, newest (latest session) first.

    The order is that of the numbers in their names, because file times may change when a run is moved.
    """
    storage = storage_of(folder)
    if not rows:
        return {}
    if is_remote(storage):
        files = list(Store.open(storage).sizes(TRIALS))
    else:
        root = Path(storage)
        files = [
            file.relative_to(root).as_posix()
            for row in rows
            for file in (root / TRIALS).glob(f"{row.number:05d}-*/checkpoint_*/{CHECKPOINT_FILE}")
        ]
    found: dict[int, list[tuple[int, int, str]]] = {row.number: [] for row in rows}
    for file in files:
        path = PurePosixPath(file)
        match = _CHECKPOINT.fullmatch("/".join(path.parts[1:3]))
        if match and path.name == CHECKPOINT_FILE and int(match[1]) in found:
            found[int(match[1])].append((int(match[2]), int(match[3]), join(storage, str(path.parent))))
    return {number: [place for *_, place in sorted(ages, reverse=True)] for number, ages in found.items()}
