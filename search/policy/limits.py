"""Constraints in absolute values."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limit:
    """A constraint in absolute values: `metric op limit`, with op `<=` or `>=`."""

    metric: str
    op: str
    limit: float
    text: str

    def violation(self, value: float) -> float:
        """Return how far `value` exceeds the limit, relative to the limit; <= 0 if it is satisfied."""
        beyond = value - self.limit if self.op == "<=" else self.limit - value
        return beyond / (abs(self.limit) or 1.0)
