"""What the search is for: objectives with their directions, and limits that a student must keep."""

from __future__ import annotations

import difflib
import re
from typing import Any, Literal

from pydantic import Field, model_validator

from search.experiment.validation_messages import Fault, raise_faults
from search.experiment.yaml12 import describe_value
from trainables.config import Config

Metric = Literal["val_accuracy", "val_loss", "latency_ms", "flops", "params"]
Direction = Literal["maximize", "minimize"]

NATURE: dict[str, Direction] = {
    "val_accuracy": "maximize",
    "val_loss": "minimize",
    "latency_ms": "minimize",
    "flops": "minimize",
    "params": "minimize",
}
COSTS = ("latency_ms", "flops", "params")  # known before a trial trains
_ALIASES = {"accuracy": "val_accuracy"}
_DIRECTIONS = {"max": "maximize", "min": "minimize"}
_SUFFIXES = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "x": 1.0}
_AMOUNT = r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?\s*([kKMGx]?)"
_LIMIT = re.compile(rf"(<=|>=)\s*({_AMOUNT})")
_FORM = "expected a limit such as '<= 0.6x', '<= 100k' or '>= 0.9'"


class Objective(Config):
    """One goal of the search."""

    metric: Metric = Field(description="what is compared")
    direction: Direction = Field(description="maximize or minimize (max, min); left out: the metric's own")

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = {"metric": value}
        if not isinstance(value, dict):
            return value
        value = dict(value)
        metric, direction = value.get("metric"), value.get("direction")
        if isinstance(metric, str):
            value["metric"] = metric = _ALIASES.get(metric, metric)
        if isinstance(direction, str):
            value["direction"] = _DIRECTIONS.get(direction, direction)
        elif direction is None:
            # With an unknown metric any direction will do: the metric is the fault to report.
            value["direction"] = NATURE.get(str(metric), "minimize")
        return value

    @model_validator(mode="after")
    def _natural(self) -> Objective:
        if self.direction != NATURE[self.metric]:
            expected = f"expected {NATURE[self.metric]} for {self.metric}, got {self.direction}"
            raise_faults([(("direction",), expected)])
        return self


class Constraint(Config):
    """A limit on one metric, absolute or relative to the teacher's."""

    metric: Metric
    op: Literal["<=", ">="]
    amount: str  # as written: 2.5, 100k, 0.6x

    @property
    def text(self) -> str:
        """The whole limit as written in the experiment file, e.g. `flops <= 0.5x`."""
        return f"{self.metric} {self.op} {self.amount}"

    @property
    def relative(self) -> bool:
        """Whether the amount counts in the teacher's value."""
        return self.amount.endswith("x")

    @property
    def value(self) -> float:
        """The number that the amount stands for; a factor of the teacher's value where it is relative."""
        match = re.fullmatch(_AMOUNT, self.amount)
        assert match, f"{self.amount!r} was never parsed"
        number, exponent, suffix = match.groups()
        return float(number + (exponent or "")) * _SUFFIXES[suffix]

    def limit(self, teacher_value: float) -> float:
        """The limit in the metric's own unit, for a teacher with `teacher_value`."""
        return self.value * teacher_value if self.relative else self.value


def parse_constraints(value: Any) -> tuple[Constraint, ...]:
    """Limits from a mapping `metric: "<= 0.6x"` or a list of texts `latency_ms <= 0.6x`.

    Raises:
        PydanticCustomError: all that is wrong with them, for the validator that calls this.
    """
    if isinstance(value, (list, tuple)) and all(isinstance(item, Constraint) for item in value):
        return tuple(value)
    if isinstance(value, dict):
        pairs = [(str(metric), str(metric), text) for metric, text in value.items()]
    elif isinstance(value, list):
        pairs = [(str(index), *_split(str(text))) for index, text in enumerate(value)]
    else:
        raise_faults([((), f"expected a mapping such as {{flops: '<= 0.6x'}}, got {describe_value(value)}")])
    faults: list[Fault] = []
    parsed = [_parse(place, metric, text, faults) for place, metric, text in pairs]
    if faults:
        raise_faults(faults)
    return tuple(constraint for constraint in parsed if constraint)


def _split(text: str) -> tuple[str, str]:
    """`flops <= 0.6x` as the metric and its limit."""
    metric = re.split(r"[<>=\s]", text.strip(), maxsplit=1)[0]
    return metric, text.strip().removeprefix(metric)


def _parse(place: str, metric: str, text: Any, faults: list[Fault]) -> Constraint | None:
    metric = _ALIASES.get(metric, metric)
    match = _LIMIT.fullmatch(text.strip()) if isinstance(text, str) else None
    constraint = None
    if metric not in NATURE:
        close = difflib.get_close_matches(metric, NATURE, 1)
        nearest = f"; the nearest is {close[0]}" if close else ""
        faults.append(((place,), f"expected one of {', '.join(NATURE)}, got {metric!r}{nearest}"))
    elif not match:
        faults.append(((place,), f"{_FORM}, got {describe_value(text)}"))
    else:
        constraint = Constraint.model_validate(
            {"metric": metric, "op": match[1], "amount": match[2].replace(" ", "")}
        )
        if constraint.value <= 0:
            faults.append(((place,), f"expected a limit above 0, got {text!r}"))
        elif metric == "val_accuracy" and not constraint.relative and constraint.value > 1:
            faults.append(((place,), f"expected an accuracy between 0 and 1, got {text!r}"))
    return constraint
