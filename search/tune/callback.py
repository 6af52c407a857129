"""What Ray Tune tells callbacks alone, and no searcher: causes of failures, retries, checkpoints."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

from ray.tune import Callback, Checkpoint
from ray.tune.experiment import Trial

from search.cluster.ray_adapter import WORKER_LOGGER
from search.tune.searcher import StudySearcher

# A node that is cut off shows as an actor that cannot be reached, before Ray knows why.
NODE_LOST = re.compile(
    r"node has died|node was terminated|node is dead|actor is temporarily unavailable", re.IGNORECASE
)


class StudyCallback(Callback):  # type: ignore[misc]
    """Tells the searcher.

    Args:
        searcher: keeps the rows.
        root: the run directory; checkpoint paths in the rows are relative to it.
    """

    def __init__(self, searcher: StudySearcher, root: str) -> None:
        self._searcher = searcher
        self._root = root

    def __getstate__(self) -> dict[str, Any]:
        return {}  # pickled into the run directory with the Tuner; holds nothing worth restoring

    def setup(self, *args: Any, **info: Any) -> None:
        """Keep Ray's tracebacks off the terminal: a trial's own is in the file `error.txt` of its folder.

        What people should know of a broken trial the searcher says in a line.
        """
        for name in ("ray.tune", "ray.train", WORKER_LOGGER):
            logging.getLogger(name).setLevel(logging.CRITICAL)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """The trial failed for good."""
        self._searcher.fail(trial.trial_id, cause(trial))

    def on_trial_recover(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """The trial failed and is tried again."""
        why = cause(trial)
        if not self._searcher.retried(trial.trial_id, why, bool(NODE_LOST.search(_error_text(trial)))):
            trial.run_metadata.num_failures -= 1

    def on_checkpoint(
        self, iteration: int, trials: list[Trial], trial: Trial, checkpoint: Checkpoint, **info: Any
    ) -> None:
        """A checkpoint reached the storage."""
        path = str(checkpoint.path).removeprefix(self._root).lstrip("/")
        self._searcher.checkpointed(trial.trial_id, path)


def cause(trial: Trial) -> str:
    """Last line of a failed trial's newest error: the exception itself, without the traceback."""
    lines = [line.strip() for line in _error_text(trial).splitlines() if line.strip()]
    return lines[-1][:500] if lines else "the trial's process ended without saying why"


def _error_text(trial: Trial) -> str:
    """A failed trial's newest error, whole."""
    # Ray's own `get_error` reads the copy in the storage, which is written only at the next snapshot.
    file = trial.error_file
    text = Path(file).read_text(errors="replace") if file and Path(file).exists() else ""
    return text.rpartition("Failure # ")[2]
