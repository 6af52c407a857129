"""Ray Tune callback: pass failures, retries and checkpoints to the searcher, which Ray does not do."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

from ray.tune import Callback, Checkpoint
from ray.tune.experiment import Trial

from search.cluster.ray_adapter import WORKER_LOGGER
from search.tune.searcher import StudySearcher

# A disconnected node first appears as an unreachable actor, before Ray detects the cause.
NODE_LOST = re.compile(
    r"node has died|node was terminated|node is dead|actor is temporarily unavailable", re.IGNORECASE
)


class StudyCallback(Callback):  # type: ignore[misc]
    """Pass events of Ray Tune to the searcher.

    Args:
        searcher: the searcher, which writes the rows.
        root: the run directory; checkpoint paths in the rows are relative to it.
    """

    def __init__(self, searcher: StudySearcher, root: str) -> None:
        self._searcher = searcher
        self._root = root

    def __getstate__(self) -> dict[str, Any]:
        return {}  # pickled into the run directory with the Tuner; nothing needs to be restored

    def setup(self, *args: Any, **info: Any) -> None:
        """Hide Ray's tracebacks on the terminal.

        A trial's traceback is in `error.txt` of its folder; the searcher logs its cause in one line.
        """
        for name in ("ray.tune", "ray.train", WORKER_LOGGER):
            logging.getLogger(name).setLevel(logging.CRITICAL)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Note that the trial failed and will not be retried."""
        self._searcher.fail(trial.trial_id, cause(trial))

    def on_trial_recover(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Note that the trial failed and will be retried."""
        why = cause(trial)
        if not self._searcher.retried(trial.trial_id, why, bool(NODE_LOST.search(_error_text(trial)))):
            trial.run_metadata.num_failures -= 1

    def on_checkpoint(
        self, iteration: int, trials: list[Trial], trial: Trial, checkpoint: Checkpoint, **info: Any
    ) -> None:
        """Note that a checkpoint was written to the storage."""
        path = str(checkpoint.path).removeprefix(self._root).lstrip("/")
        self._searcher.checkpointed(trial.trial_id, path)


def cause(trial: Trial) -> str:
    """Return the last line of a failed trial's newest error: the exception without the traceback."""
    lines = [line.strip() for line in _error_text(trial).splitlines() if line.strip()]
    return lines[-1][:500] if lines else "the trial's process ended without saying why"


def _error_text(trial: Trial) -> str:
    """Return the complete text of a failed trial's newest error."""
    # Ray's `get_error` reads the copy in the storage, which is written only at the next snapshot.
    file = trial.error_file
    text = Path(file).read_text(errors="replace") if file and Path(file).exists() else ""
    return text.rpartition("Failure # ")[2]
