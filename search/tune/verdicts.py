"""What searcher and scheduler tell each other about the trials of a search."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Verdicts:
    """One object that both get; each writes what it knows and reads what the other knows.

    Attributes:
        costs: costs known before training, by trial number; the searcher writes them when a trial starts.
        stopped: numbers of the trials that the scheduler stopped for being behind at a rung.
        diverged: numbers of the trials that it stopped because an objective was not finite.
    """

    costs: dict[int, dict[str, float]] = field(default_factory=dict)
    stopped: set[int] = field(default_factory=set)
    diverged: set[int] = field(default_factory=set)
