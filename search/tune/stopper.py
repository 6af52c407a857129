"""End a search: out of trials, out of time, or interrupted."""

from __future__ import annotations

import time
from typing import Any

from ray.tune import Stopper

from search.tune.searcher import StudySearcher


class End(Stopper):  # type: ignore[misc]
    """Ends the whole search when its wall time is over, its trials only fail, or the searcher halts it."""

    def __init__(self, searcher: StudySearcher, deadline: float | None) -> None:
        self._searcher = searcher
        self._deadline = deadline

    def __getstate__(self) -> dict[str, Any]:
        return {}  # pickled into the run directory with the Tuner; holds nothing worth restoring

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """No trial is stopped alone."""
        return False

    def stop_all(self) -> bool:
        """Whether all end."""
        over = self._searcher.hopeless or self._searcher.halted is not None
        return over or (self._deadline is not None and time.monotonic() > self._deadline)
