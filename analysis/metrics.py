"""What a trial is judged by: names, units, natural directions, how a value is written and read."""

from __future__ import annotations

import difflib
import math
import re
from dataclasses import dataclass
from typing import Literal

from analysis.errors import InputError

Direction = Literal["maximize", "minimize"]


@dataclass(frozen=True)
class Metric:
    """One metric: `kind` is quality (of the predictions), cost (of the student) or effort (of the trial)."""

    name: str
    label: str
    unit: str
    direction: Direction
    kind: Literal["quality", "cost", "effort"]


METRICS: dict[str, Metric] = {
    m.name: m
    for m in (
        Metric("val_accuracy", "validation accuracy", "%", "maximize", "quality"),
        Metric("val_loss", "validation loss", "", "minimize", "quality"),
        Metric("latency_ms", "latency", "ms", "minimize", "cost"),
        Metric("flops", "FLOPs", "", "minimize", "cost"),
        Metric("params", "parameters", "", "minimize", "cost"),
        Metric("measured_latency_ms", "latency measured end to end", "ms", "minimize", "cost"),
        Metric("epochs", "epochs trained", "", "minimize", "effort"),
    )
}
OBJECTIVE_METRICS = ("val_accuracy", "val_loss", "latency_ms", "flops", "params")
COST_METRICS = ("latency_ms", "flops", "params")
ALIASES = {"accuracy": "val_accuracy", "loss": "val_loss", "latency": "latency_ms"}
_SUFFIXES = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "%": 1e-2, "ms": 1.0}
_NUMBER = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*([a-zA-Z%]*)")


def metric_name(text: str) -> str:
    """The metric that `text` names, by its name or an alias ("accuracy"). Raises InputError for no metric."""
    name = ALIASES.get(text.strip(), text.strip())
    if name in METRICS:
        return name
    close = difflib.get_close_matches(name, [*METRICS, *ALIASES], n=1)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    raise InputError(f"unknown metric {text!r}{hint}: expected one of {', '.join(METRICS)}")


def parse_value(text: str) -> tuple[float, bool]:
    """A number as people type it: "40M", "100k", "1.2G", "92%", "3.5ms", "0.5x".

    Returns:
        (value, relative): relative is true for "0.5x", which means times the teacher's value.

    Raises:
        InputError: not such a number.
    """
    match = _NUMBER.fullmatch(text.strip())
    suffix = match.group(2).lower() if match else ""
    if match is None or (suffix not in _SUFFIXES and suffix != "x"):
        raise InputError(f"{text!r} is no number: expected one like 0.92, 92%, 3.5, 100k, 40M, 1.2G or 0.5x")
    value = float(match.group(1))
    return (value, True) if suffix == "x" else (value * _SUFFIXES[suffix], False)


def show(metric: str, value: float | None) -> str:
    """`value` of `metric` for people: "91.34 %", "3.21 ms", "40.8 M"; "–" where there is none."""
    if value is None or not math.isfinite(value):
        return "–"
    if metric in ("val_accuracy", "test_accuracy"):
        return f"{100 * value:.2f} %"
    if metric in ("flops", "params"):
        return show_count(value)
    if metric in ("latency_ms", "measured_latency_ms"):
        return f"{value:.{decimals(value)}f} ms"
    return f"{value:.0f}" if metric == "epochs" else f"{value:.4f}"


def decimals(value: float, digits: int = 3) -> int:
    """Decimals that write `value` with so many significant digits: 6.25 -> 2, 0.04 -> 4, 1234 -> 0."""
    rounded = abs(float(f"{value:.{digits - 1}e}"))  # 0.9999 is written as 1.00
    return max(0, digits - 1 - math.floor(math.log10(rounded))) if value else 0


def show_count(value: float) -> str:
    """Three digits and a suffix: 271_117 -> "271 k", 40_812_544 -> "40.8 M"."""
    for scale, suffix in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= 0.9995 * scale:
            return f"{value / scale:.{decimals(value / scale)}f}{suffix}"
    return f"{value:.3g}" if value != int(value) else f"{value:.0f}"


def time_unit(hours: float) -> tuple[str, float]:
    """The unit in which a time of so many hours reads best, and how many of it make an hour."""
    return ("hours", 1.0) if hours >= 1 else ("minutes", 60.0)


def show_time(hours: float) -> str:
    """A time for people: "1.56 hours", "48.2 minutes"."""
    unit, scale = time_unit(hours)
    return f"{hours * scale:.{decimals(hours * scale)}f} {unit}"


def axis_label(metric: str) -> str:
    """Label of an axis that shows `metric`."""
    known = METRICS[metric]
    return f"{known.label} ({known.unit})" if known.unit else known.label


def duration(seconds: float) -> str:
    """Seconds as `1 h 02 min`, `3 min 20 s` or `12 s`."""
    if seconds >= 3600:
        return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60):02d} min"
    if seconds >= 60:
        return f"{int(seconds // 60)} min {int(seconds % 60):02d} s"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
