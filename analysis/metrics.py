"""The table of metrics, and formatting and parsing of their values.

Every other list of metric names is derived from this table. A user's own metric is also a `Metric` (see
docs/extending.md). A run's study stores it, and `define` registers its label and unit in this process.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from analysis.errors import InputError

Direction = Literal["maximize", "minimize"]
Worst = float | Literal["chance", "uniform guess", "teacher"]

_NAME = re.compile(r"[a-z][a-z0-9_]*")
# Reserved names: columns of a trial's row and of its learning curve.
RESERVED = (
    *("number", "state", "refused", "on_front", "epoch", "epochs", "seconds", "train_loss", "seed", "lr"),
    *("replaced", "retries", "reason", "checkpoint", "started", "ended", "done", "failure", "again"),
)


@dataclass(frozen=True)
class Metric:
    """One metric.

    Args:
        name: key of its values in rows, tables and limits: lower-case letters, digits and `_`.
        label: display name.
        unit: unit shown after values; "%" means that values are shares in 0..1, shown in percent.
        direction: "maximize" or "minimize".
        kind: quality (of the predictions), cost (of the student) or effort (of the trial).
        worst: the worst value in the hypervolume's box: a number; for a quality also "chance" (1 / classes)
            or "uniform guess" (ln(classes)); for a cost "teacher" (its value). None: not an objective.
        best: the best value in the box.
        count: whether values are counts, shown with k, M and G.
        curve: whether it has a value for every epoch.
        alias: another name accepted as input.

    Example:
        kappa = Metric("kappa", "Cohen's kappa", worst=0.0, best=1.0, curve=True)
        print(kappa.name, kappa.direction, kappa.kind, list(METRICS))
    """

    name: str
    label: str
    unit: str = ""
    direction: Direction = "maximize"
    kind: Literal["quality", "cost", "effort"] = "quality"
    worst: Worst | None = None
    best: float = 0.0
    count: bool = False
    curve: bool = False
    alias: str = ""

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name) or (self.name in RESERVED and self.kind != "effort"):
            raise InputError(
                f"metric {self.name!r}: expected a name of lower-case letters, digits and _, none of "
                f"{', '.join(RESERVED)}"
            )
        if self.direction not in ("maximize", "minimize"):
            raise InputError(f"metric {self.name}: expected maximize or minimize, got {self.direction!r}")
        words = ("teacher",) if self.kind == "cost" else ("chance", "uniform guess")
        if isinstance(self.worst, str) and self.worst not in words:
            raise InputError(
                f"metric {self.name}: worst: expected a number or {' or '.join(map(repr, words))}, "
                f"got {self.worst!r}"
            )

    @property
    def share(self) -> bool:
        """True if values are shares in 0..1, shown in percent."""
        return self.unit == "%"

    def worst_value(self, teacher: Mapping[str, Any], classes: int) -> float:
        """Return the box's worst value as a number.

        Raises:
            InputError: the metric does not have one, or the teacher's value is not a positive number.
        """
        if self.worst is None:
            raise InputError(f"objective {self.name!r}: expected one of {', '.join(objective_names())}")
        if self.worst == "chance":
            return 1.0 / classes
        if self.worst == "uniform guess":
            return math.log(classes)
        if self.worst == "teacher":
            value = teacher.get(self.name)
            if not isinstance(value, int | float) or not value > 0:
                raise InputError(f"the teacher's {self.name} must be a positive number, got {value!r}")
            return float(value)
        return float(self.worst)

    def show(self, value: float | None) -> str:
        """Format a value: "91.34 %", "3.21 ms", "40.8 M"; "–" for None and non-finite values."""
        if value is None or not math.isfinite(value):
            return "–"
        if self.share:
            return f"{100 * value:.2f} %"
        if self.count:
            return f"{show_count(value)} {self.unit}".strip()
        if self.unit:
            return f"{value:.{decimals(value)}f} {self.unit}"
        return f"{value:.0f}" if self.kind == "effort" else f"{value:.4f}"

    def show_difference(self, size: float) -> str:
        """Format the size of a difference: for a share as "1.20 points"."""
        return f"{100 * size:.2f} points" if self.share else self.show(size)

    @property
    def axis_label(self) -> str:
        """Return the label of an axis that shows this metric."""
        return f"{self.label} ({self.unit})" if self.unit else self.label


METRICS: dict[str, Metric] = {
    m.name: m
    for m in (
        Metric(
            *("val_accuracy", "validation accuracy", "%"),
            worst="chance",
            best=1.0,
            curve=True,
            alias="accuracy",
        ),
        Metric(
            *("val_loss", "validation loss", "", "minimize"),
            worst="uniform guess",
            curve=True,
            alias="loss",
        ),
        Metric("latency_ms", "latency", "ms", "minimize", "cost", worst="teacher", alias="latency"),
        Metric("flops", "FLOPs", "", "minimize", "cost", worst="teacher", count=True),
        Metric("params", "parameters", "", "minimize", "cost", worst="teacher", count=True),
        Metric("measured_latency_ms", "latency measured end to end", "ms", "minimize", "cost"),
        Metric("epochs", "epochs trained", "", "minimize", "effort"),
    )
}
COST_METRICS = tuple(m.name for m in METRICS.values() if m.kind == "cost" and m.worst is not None)
CURVE_METRICS = tuple(m.name for m in METRICS.values() if m.curve)
_defined: dict[str, Metric] = {}  # users' own metrics registered in this process, for `describe`


def objective_names(known: Mapping[str, Metric] = METRICS) -> tuple[str, ...]:
    """Return the names of the metrics that can be objectives."""
    return tuple(m.name for m in known.values() if m.worst is not None)


def own_metrics(kept: Mapping[str, Mapping[str, Any]]) -> dict[str, Metric]:
    """Restore users' metrics from their stored form (see `specifications`), and register them.

    Raises:
        InputError: the stored form is invalid, or a name is that of a built-in metric.
    """
    try:
        found = [Metric(**values) for values in kept.values()]
    except (TypeError, AttributeError) as error:
        raise InputError(f"metrics: expected specifications of metrics by name ({error})") from None
    return define(found)


def specifications(metrics: Iterable[Metric]) -> dict[str, dict[str, Any]]:
    """Return the stored form of users' metrics, by name."""
    return {metric.name: asdict(metric) for metric in metrics}


def define(metrics: Iterable[Metric]) -> dict[str, Metric]:
    """Register users' metrics for `describe` and `show`, and return them by name; the last of a name counts.

    Raises:
        InputError: a name is that of a built-in metric, or a metric lacks `worst`.
    """
    found: dict[str, Metric] = {}
    for metric in metrics:
        if metric.name in METRICS or metric.name in {m.alias for m in METRICS.values()}:
            raise InputError(f"metric {metric.name!r}: a built-in metric has this name; choose another one")
        if metric.worst is None or metric.kind == "effort":
            raise InputError(
                f"metric {metric.name!r}: expected the kind quality or cost, and `worst`, the worst value in "
                'the hypervolume\'s box: a number, or "teacher"'
            )
        found[metric.name] = metric
    _defined.update(found)
    return found


def describe(name: str) -> Metric:
    """Return the metric `name`: `test_<x>` as `val_<x>`; an unknown name as a metric with this label."""
    if name.startswith("test_") and (found := METRICS.get(f"val_{name.removeprefix('test_')}")):
        return replace(found, name=name, label=found.label.replace("validation", "test"))
    return METRICS.get(name) or _defined.get(name) or Metric(name, name.replace("_", " "))


def metric_name(text: str, known: Mapping[str, Metric] = METRICS) -> str:
    """Resolve a name or alias ("accuracy") to a metric's name. Raises InputError if it is unknown."""
    names = {m.alias: m.name for m in known.values() if m.alias} | {name: name for name in known}
    if found := names.get(text.strip()):
        return found
    close = difflib.get_close_matches(text.strip(), names, n=1)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    raise InputError(f"unknown metric {text!r}{hint}: expected one of {', '.join(known)}")


_SUFFIXES = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "%": 1e-2, "ms": 1.0}
_NUMBER = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*([a-zA-Z%]*)")
_DIFFERENCE = re.compile(r"teacher\s*(?:([+-])\s*(\S.*))?", re.IGNORECASE)


@dataclass(frozen=True)
class Amount:
    """An amount of a limit: a number, or one relative to the teacher's value.

    Attributes:
        value: the number, the factor, or the difference.
        form: number, factor ("0.5x") or difference ("teacher - 0.02").
    """

    value: float
    form: Literal["number", "factor", "difference"] = "number"

    @property
    def of_teacher(self) -> bool:
        """True if the amount is relative to the teacher's value."""
        return self.form != "number"

    def absolute(self, teacher: float) -> float:
        """Return the amount in the metric's unit, for a teacher with this value."""
        if self.form == "factor":
            return self.value * teacher
        return self.value + teacher if self.form == "difference" else self.value


def parse_amount(text: str) -> Amount:
    """Parse an amount as typed: "40M", "100k", "92%", "3.5ms", "0.5x", "teacher - 0.02", "teacher - 2%".

    "0.5x" is 0.5 times the teacher's value, "teacher - 0.02" the teacher's value minus 0.02.

    Raises:
        InputError: the text is not such an amount, or not finite.
    """
    difference = _DIFFERENCE.fullmatch(text.strip())
    match = _NUMBER.fullmatch(difference[2] or "0" if difference else text.strip())
    suffix = match[2].lower() if match else ""
    factor = suffix == "x" and not difference
    value = float(match[1]) if match else math.nan
    value *= 1.0 if factor else _SUFFIXES.get(suffix, math.nan)
    if not math.isfinite(value):
        raise InputError(
            f"{text!r} is not a number: expected e.g. 0.92, 92%, 3.5, 100k, 40M, 1.2G, 0.5x or teacher - 0.02"
        )
    if difference:
        return Amount(-value if difference[1] == "-" else value, "difference")
    return Amount(value, "factor" if factor else "number")


def show(metric: str, value: float | None) -> str:
    """Format a value of the metric with this name; see `Metric.show`."""
    return describe(metric).show(value)


def decimals(value: float, digits: int = 3) -> int:
    """Return the decimals for this many significant digits: 6.25 -> 2, 0.04 -> 4, 1234 -> 0."""
    rounded = abs(float(f"{value:.{digits - 1}e}"))  # 0.9999 is written as 1.00
    return max(0, digits - 1 - math.floor(math.log10(rounded))) if value else 0


def show_count(value: float) -> str:
    """Format a count with three digits and a suffix: 271_117 -> "271 k", 40_812_544 -> "40.8 M"."""
    for scale, suffix in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= 0.9995 * scale:
            return f"{value / scale:.{decimals(value / scale)}f}{suffix}"
    return f"{value:.3g}" if value != int(value) else f"{value:.0f}"


def time_unit(hours: float) -> tuple[str, float]:
    """Choose a readable unit for a time, and return it with its number per hour."""
    return ("hours", 1.0) if hours >= 1 else ("minutes", 60.0)


def show_time(hours: float) -> str:
    """Format a time: "1.56 hours", "48.2 minutes"."""
    unit, scale = time_unit(hours)
    return f"{hours * scale:.{decimals(hours * scale)}f} {unit}"


def duration(seconds: float) -> str:
    """Format seconds as `1 h 02 min`, `3 min 20 s` or `12 s`."""
    if seconds >= 3600:
        return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60):02d} min"
    if seconds >= 60:
        return f"{int(seconds // 60)} min {int(seconds % 60):02d} s"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
