"""Limits for picks: `flops=40M`, `latency_ms=0.5x`, `accuracy=92%`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from analysis.errors import InputError
from analysis.metrics import METRICS, Metric, metric_name, parse_amount
from analysis.runs.limits import Limit

Limits = Mapping[str, float | str] | Sequence[str]


def parse_limits(
    most: Limits | None,
    least: Limits | None,
    teacher: Mapping[str, Any],
    known: Mapping[str, Metric] = METRICS,
) -> tuple[Limit, ...]:
    """Parse limits: upper ones (`most`), then lower ones (`least`).

    Each is a sequence of "metric=value", or a mapping metric -> value. A value may have a suffix (k, M, G,
    %). "0.5x" means 0.5 times the teacher's value, "teacher - 0.02" that value minus 0.02. `known` are the
    metrics by name.

    Raises:
        InputError: the "=" is missing, the metric is unknown, the value is not a number, a limit is given
            twice, or relative to the teacher for a metric without a teacher's value.
    """
    found: dict[tuple[str, str], Limit] = {}
    ops: tuple[tuple[Limits | None, Literal["<=", ">="], str], ...] = (
        (most, "<=", "max"),
        (least, ">=", "min"),
    )
    for items, op, option in ops:
        for key, text in _pairs(items, option):
            metric = metric_name(key, known)
            amount = parse_amount(text)
            where = f"{option} {key}={text}"
            value = amount.absolute(_of_teacher(teacher, metric, where) if amount.of_teacher else 0.0)
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
        raise InputError(f"{where}: the teacher has no {metric}, and the limit is relative to it")
    return float(value)
