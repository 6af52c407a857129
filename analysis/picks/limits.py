"""Limits for picks: `flops=40M`, `latency_ms=0.5x`, `accuracy=92%`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from analysis.errors import InputError
from analysis.metrics import METRICS, Metric, metric_name, parse_value, show

Limits = Mapping[str, float | str] | Sequence[str]


@dataclass(frozen=True)
class Limit:
    """A limit: `metric` must be at most ("<=") or at least (">=") `value`, in the metric's unit."""

    metric: str
    op: Literal["<=", ">="]
    value: float
    text: str

    def __str__(self) -> str:
        shown = show(self.metric, self.value)
        return f"{self.metric} {self.op} {shown}" + (f" ({self.text})" if self.text.endswith("x") else "")

    def excess(self, values: pd.Series) -> np.ndarray:
        """Return how far `values` (n,) exceed the limit, relative to it: <= 0 if satisfied, inf for NaN."""
        sign = 1.0 if self.op == "<=" else -1.0
        beyond = sign * (values.to_numpy(dtype=np.float64) - self.value) / max(abs(self.value), 1e-12)
        return np.where(np.isnan(beyond), np.inf, beyond)


def parse_limits(
    most: Limits | None,
    least: Limits | None,
    teacher: Mapping[str, Any],
    known: Mapping[str, Metric] = METRICS,
) -> tuple[Limit, ...]:
    """Parse limits: upper ones (`most`), then lower ones (`least`).

    Each is a sequence of "metric=value", or a mapping metric -> value. A value may have a suffix (k, M, G,
    %). "0.5x" means 0.5 times the teacher's value. `known` are the metrics by name.

    Raises:
        InputError: the "=" is missing, the metric is unknown, the value is not a number, a limit is given
            twice, or "x" is used for a metric without a teacher's value.
    """
    found: dict[tuple[str, str], Limit] = {}
    ops: tuple[tuple[Limits | None, Literal["<=", ">="], str], ...] = (
        (most, "<=", "max"),
        (least, ">=", "min"),
    )
    for items, op, option in ops:
        for key, text in _pairs(items, option):
            metric = metric_name(key, known)
            value, relative = parse_value(text)
            if relative:
                value *= _of_teacher(teacher, metric, f"{option} {key}={text}")
            if (metric, op) in found:
                raise InputError(f"{option} {key}={text}: there is already the limit {found[metric, op]}")
            found[metric, op] = Limit(metric, op, value, text)
    return tuple(found.values())


def _pairs(items: Limits | None, option: str) -> list[tuple[str, str]]:
    if items is None:
        return []
    if isinstance(items, Mapping):
        return [(key, str(value)) for key, value in items.items()]
    if isinstance(items, str):
        items = [items]
    pairs = []
    for item in items:
        key, equals, text = item.partition("=")
        if not equals or not key.strip() or not text.strip():
            raise InputError(
                f"{option} {item!r}: expected metric=value, such as flops=40M or latency_ms=0.5x"
            )
        pairs.append((key.strip(), text.strip()))
    return pairs


def _of_teacher(teacher: Mapping[str, Any], metric: str, where: str) -> float:
    value = teacher.get("latency_ms" if metric == "measured_latency_ms" else metric)
    if not isinstance(value, int | float):
        raise InputError(f"{where}: the teacher has no {metric}, and x means times its value")
    return float(value)
