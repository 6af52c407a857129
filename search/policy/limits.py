"""Constraints in absolute figures."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limit:
    """A constraint in absolute figures: `metric op limit`, with op `<=` or `>=`."""

    metric: str
    op: str
    limit: float
    text: str

    def violation(self, value: float) -> float:
        """How far `value` is beyond the limit, relative to the limit; <= 0 within it."""
        beyond = value - self.limit if self.op == "<=" else self.limit - value
        return beyond / (abs(self.limit) or 1.0)
