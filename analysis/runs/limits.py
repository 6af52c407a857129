"""Limits on the metrics of trials, in absolute values, and how far a trial is from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from analysis.metrics import describe, parse_amount, show
from analysis.pareto import Floats


@dataclass(frozen=True)
class Limit:
    """A limit: `metric` must be at most ("<=") or at least (">=") `value`, in the metric's unit.

    `text` is the amount as it was written, such as "0.5x" or "teacher - 0.02".
    """

    metric: str
    op: Literal["<=", ">="]
    value: float
    text: str

    def __str__(self) -> str:
        shown = show(self.metric, self.value)
        return f"{self.metric} {self.op} {shown}" + (
            f" ({self.text})" if parse_amount(self.text).of_teacher else ""
        )

    def excess(self, values: pd.Series) -> np.ndarray:
        """Return how far `values` (n,) exceed the limit, relative to it: <= 0 if satisfied, inf for NaN."""
        sign = 1.0 if self.op == "<=" else -1.0
        beyond = sign * (values.to_numpy(dtype=np.float64) - self.value) / self._scale
        return np.where(np.isnan(beyond), np.inf, beyond)

    def show_excess(self, beyond: float) -> str:
        """Format what `excess` returned: a share in points, other metrics relative to the limit."""
        metric = describe(self.metric)
        return metric.show_difference(beyond * self._scale) if metric.share else f"{100 * beyond:.1f} %"

    @property
    def _scale(self) -> float:
        return abs(self.value) or 1.0  # a limit of zero is exceeded by absolute amounts


def excesses(rows: pd.DataFrame, limits: Sequence[Limit]) -> Floats:
    """Return how far each row exceeds each limit, (rows, limits)."""
    columns = [limit.excess(rows[limit.metric]) for limit in limits]
    return np.stack(columns, axis=1) if columns else np.zeros((len(rows), 0))


def nearest_miss(complete: pd.DataFrame, limits: Sequence[Limit]) -> str:
    """Describe the trial nearest to the limits, the limits it violates, and by how much.

    Args:
        complete: the fully trained trials; none satisfies all limits.
        limits: at least one.
    """
    excess = excesses(complete, limits)
    nearest = int(excess.max(axis=1).argmin())
    row = complete.iloc[nearest]
    if not np.isfinite(excess[nearest].max()):
        missing = limits[int(excess[nearest].argmax())].metric
        return f"none of {len(complete)} fully trained trials has {missing}"
    return (
        f"none of {len(complete)} fully trained trials is within {' and '.join(map(str, limits))}. "
        f"The nearest is trial {row['number']}: {breaks(row, excess[nearest], limits)}"
    )


def breaks(row: pd.Series, excess: Floats, limits: Sequence[Limit]) -> str:
    """Format every violated limit of `row`: "flops 44.1 M breaks flops <= 40 M by 10.2 %"."""
    parts = []
    for limit, beyond in zip(limits, excess, strict=True):
        if beyond > 0:
            value = show(limit.metric, row[limit.metric])
            parts.append(f"{limit.metric} {value} breaks {limit} by {limit.show_excess(beyond)}")
    return ", ".join(parts)
