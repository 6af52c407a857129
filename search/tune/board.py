"""What searcher and scheduler share about the trials in flight."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Board:
    """The live state of a search, for whoever watches it."""

    trials: int  # budget
    epochs: int  # of a full trial
    states: dict[int, str] = field(default_factory=dict)
    done_epochs: dict[int, int] = field(default_factory=dict)
    values: dict[int, tuple[float, ...]] = field(default_factory=dict)  # of complete trials
    refused: int = 0

    def counts(self) -> Counter[str]:
        """Trials by state."""
        return Counter(self.states.values())
