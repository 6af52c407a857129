"""Stop a whole search."""

from __future__ import annotations

import time
from typing import Any

from ray.tune import Stopper

from search.tune.searcher import StudySearcher


class End(Stopper):  # type: ignore[misc]
    """Stop the search at its time limit, after too many failed trials, or if the searcher halts it."""

    def __init__(self, searcher: StudySearcher, deadline: float | None) -> None:
        self._searcher = searcher
        self._deadline = deadline

    def __getstate__(self) -> dict[str, Any]:
        return {}  # pickled into the run directory with the Tuner; nothing needs to be restored

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Return False: no single trial is stopped here."""
        return False

    def stop_all(self) -> bool:
        """Return True if all trials must stop."""
        over = self._searcher.hopeless or self._searcher.halted is not None
        return over or (self._deadline is not None and time.monotonic() > self._deadline)
