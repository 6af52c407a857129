"""Data about trials that searcher and scheduler share."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Verdicts:
    """Shared by searcher and scheduler: costs of trials, and trials that were stopped.

    Attributes:
        costs: costs known before training, by trial number; written by the searcher when a trial starts.
        stopped: numbers of the trials that the RungScheduler stopped at a rung.
        diverged: numbers of the trials that it stopped because an objective was not finite.
    """

    costs: dict[int, dict[str, float]] = field(default_factory=dict)
    stopped: set[int] = field(default_factory=set)
    diverged: set[int] = field(default_factory=set)
