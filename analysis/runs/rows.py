"""Tell the rows of a study that a search wrote from rows that were added by hand or damaged since.

`Run.open` and `StudyRecord` leave the others out, so nothing that reads rows has to check them again.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from optuna.trial import FrozenTrial, TrialState

MAX_NAMED = 5  # rows named in the warning

log = logging.getLogger(__name__)


def sound_rows(
    rows: Iterable[FrozenTrial], metrics: list[str], unread: Mapping[int, str] | None = None
) -> tuple[tuple[FrozenTrial, ...], dict[int, str]]:
    """Separate the rows that can be used from the others.

    Args:
        rows: the rows of a study.
        metrics: names of the objectives.
        unread: faults found when the rows were read from the database, by number.

    Returns:
        The rows that can be used, in their order; and why each other row cannot be, by number.
    """
    unread = unread or {}
    sound, left_out = [], {}
    for row in rows:
        if fault := unread.get(row.number) or fault_of(row, metrics):
            left_out[row.number] = fault
        else:
            sound.append(row)
    return tuple(sound), left_out


def warn_of(left_out: Mapping[int, str], where: str) -> None:
    """Log one warning that names the rows that are left out, if any."""
    if left_out:
        log.warning("%s: %s", where, "; ".join(describe_left_out(left_out)))


def describe_left_out(left_out: Mapping[int, str]) -> list[str]:
    """Name the rows that are left out, with the reasons; after `MAX_NAMED` only count them."""
    named = [f"trial {number} is left out: {why}" for number, why in list(left_out.items())[:MAX_NAMED]]
    more = len(left_out) - len(named)
    return [*named, f"{more} more are left out"] if more > 0 else named


def fault_of(row: FrozenTrial, metrics: list[str]) -> str:
    """Return why a row cannot be used; "" if it can.

    Args:
        row: a row in any state.
        metrics: names of the objectives.
    """
    attrs = row.user_attrs
    if "config" not in attrs:
        return "it was not written by `ama search` (no config)"
    for name, (form, fits) in _FORMS.items():
        if attrs.get(name) is not None and not fits(attrs[name]):
            return f"its {name}: expected {form}, got {_shortened(attrs[name])}"
    for name, level in row.params.items():
        if level is None:
            return f"its parameter {name} has no value"
        if name.startswith("level/") and not _is_whole(level):
            return f"its parameter {name}: expected a whole number, got {_shortened(level)}"
    return _value_fault(row, metrics) if row.state is TrialState.COMPLETE else ""


def _value_fault(row: FrozenTrial, metrics: list[str]) -> str:
    values = row.values or []
    if len(values) != len(metrics):
        return f"it is complete with {len(values)} of {len(metrics)} objective values"
    wrong = [f"{name} {value}" for name, value in zip(metrics, values, strict=True) if not _is_finite(value)]
    return f"its objective values are not finite: {', '.join(wrong)}" if wrong else ""


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_finite(value: Any) -> bool:
    return _is_number(value) and math.isfinite(value)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_config(value: Any) -> bool:
    student = value.get("student", {}) if isinstance(value, dict) else None
    widths = student.get("widths", {}) if isinstance(student, dict) else None
    return isinstance(widths, dict) and all(map(_is_finite, widths.values()))


def _are_costs(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_finite, value.values()))


def _are_metrics(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    return all(item is None or _is_number(item) or _are_numbers(item) for item in value.values())


def _are_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(item is None or _is_number(item) for item in value)


def _is_curve(value: Any) -> bool:
    if not isinstance(value, dict) or not all(map(_are_numbers, value.values())):
        return False
    return all(map(_is_whole, value.get("epoch", [])))


def _are_spans(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(span, dict)
        and _is_finite(span.get("width"))
        and isinstance(span.get("span"), list)
        and all(map(_is_text, span["span"]))
        for span in value
    )


# Forms of the attributes that are read; a missing attribute, or null, is one that the row does not have yet.
_FORMS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "config": ("a trial's config", _is_config),
    "costs": ("finite numbers by metric", _are_costs),
    "metrics": ("numbers by metric", _are_metrics),
    "curve": ("lists of numbers by metric", _is_curve),
    "replaced": ("a list of spans with their widths", _are_spans),
    **dict.fromkeys(("seconds", "epochs_lost"), ("a finite number", _is_finite)),
    **dict.fromkeys(("epochs", "seed", "retries"), ("a whole number", _is_whole)),
    **dict.fromkeys(("refused", "reason", "ray_id", "checkpoint"), ("text", _is_text)),
}


def _shortened(value: Any, limit: int = 60) -> str:
    text = repr(value)
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
