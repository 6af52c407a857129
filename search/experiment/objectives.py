"""Objectives with their directions, and constraints that a student must satisfy.

Metrics, their directions and number formats come from `analysis.metrics`. A user's own metric is loaded here,
once, during the validation of an experiment that names it.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal

from pydantic import Field, field_serializer, model_validator

from analysis.errors import InputError as AnalysisInputError
from analysis.metrics import COST_METRICS, METRICS, Amount, Metric, define, objective_names, parse_amount
from search.experiment.validation_messages import Fault, raise_faults
from search.experiment.yaml12 import describe_value
from trainables.config_base import Config
from trainables.costs.extra import COSTS as EXTRA_COSTS
from trainables.errors import InputError
from trainables.network.scores import SCORES
from trainables.registry import FORM, IMPORT

COSTS = COST_METRICS  # known before a trial trains, in every experiment
_DIRECTIONS = {"max": "maximize", "min": "minimize"}
_LIMIT = re.compile(r"(<=|>=)\s*(\S.*)")
_FORM = "expected a limit such as '<= 0.6x', '<= 100k', '>= 0.9' or '>= teacher - 0.02'"
# Extra costs of the experiment being validated, by metric name and by their text in the file.
_extra: ContextVar[Mapping[str, Metric]] = ContextVar("extra costs", default={})  # noqa: B039 - never changed


def extra_cost(text: str) -> Metric:
    """Load the metric of a cost named in `costs.extra`.

    Raises:
        InputError: no such cost, or its metric is not a cost metric.
    """
    return _own(text, EXTRA_COSTS.get(text), "cost")


def own_score(text: str) -> Metric:
    """Load a metric of predictions from the name of an entry point or an `import:` text.

    Raises:
        InputError: no such metric, or it is not a metric of predictions.
    """
    return _own(text, SCORES.get(text), "quality")


def _own(text: str, found: Any, kind: str) -> Metric:
    metric = found.metric
    if not isinstance(metric, Metric) or metric.kind != kind:
        raise InputError(f"{text}: expected `metric` to be an analysis.metrics.Metric of the kind {kind}")
    if kind == "cost" and metric.direction != "minimize":
        raise InputError(f"{text}: expected a cost to be minimized, got {metric.direction}")
    try:
        define([metric])
    except AnalysisInputError as error:
        raise InputError(f"{text}: {error}") from None
    return metric


@contextmanager
def with_extra_costs(costs: Mapping[str, Metric]) -> Iterator[None]:
    """Within the block, let validated objectives and constraints name these costs.

    Args:
        costs: metrics by their text in `costs.extra`.
    """
    token = _extra.set({**costs, **{metric.name: metric for metric in costs.values()}})
    try:
        yield
    finally:
        _extra.reset(token)


def find_metric(text: str) -> tuple[Metric, str]:
    """Find the metric that `text` names; also return the text that loads an own metric again, else "".

    Raises:
        InputError: no such metric.
    """
    built_in = {m.alias: m for m in METRICS.values() if m.alias} | METRICS | dict(_extra.get())
    if text in built_in and built_in[text].worst is not None:
        return built_in[text], ""
    if text.startswith(IMPORT) or text in SCORES.names():
        return own_score(text), text
    names = [*objective_names(), *sorted({m.name for m in _extra.get().values()}), *SCORES.names()]
    close = difflib.get_close_matches(text, names, 1)
    near = f"; the nearest is {close[0]}" if close else ""
    raise InputError(f"expected one of {', '.join(names)}, or your own ({FORM}), got {text!r}{near}")


class Objective(Config):
    """One objective of the search. For a user's own metric, `source` is the text that loads it."""

    metric: str = Field(description="name of the metric")
    direction: Literal["maximize", "minimize"] = Field(
        description="maximize or minimize (max, min); default: the metric's own direction"
    )
    source: str = Field("", exclude=True)

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = {"metric": value}
        if not isinstance(value, dict) or not isinstance(value.get("metric"), str):
            return value
        if "source" in value:
            raise_faults([(("source",), "unknown key; the nearest valid key is metric")])
        direction = value.get("direction")
        try:
            metric, source = find_metric(value["metric"])
        except InputError as error:
            raise_faults([(("metric",), str(error))])
        asked = _DIRECTIONS.get(direction, direction) if isinstance(direction, str) else direction
        if asked in _DIRECTIONS.values() and asked != metric.direction:
            expected = f"expected {metric.direction} for {metric.name}, got {asked}"
            raise_faults([(("direction",), expected)])
        direction = metric.direction if asked is None else asked
        return {**value, "metric": metric.name, "direction": direction, "source": source}

    @field_serializer("metric")
    def _write_metric(self, value: str) -> str:
        return self.source or value


class Constraint(Config):
    """A limit on one metric, absolute or relative to the teacher's; `source` as for `Objective`."""

    metric: str
    op: Literal["<=", ">="]
    amount: str  # as written: 2.5, 100k, 0.6x, teacher - 0.02
    source: str = Field("", exclude=True)

    @property
    def text(self) -> str:
        """The limit in the experiment file's form, e.g. `flops <= 0.5x`."""
        return f"{self.metric} {self.op} {self.amount}"

    @property
    def parsed(self) -> Amount:
        """The amount as a number, or relative to the teacher's value."""
        return parse_amount(self.amount)

    def limit(self, teacher_value: float) -> float:
        """Return the limit in the metric's unit, for a teacher with `teacher_value`."""
        return self.parsed.absolute(teacher_value)


def parse_constraints(value: Any) -> tuple[Constraint, ...]:
    """Parse limits from a mapping `metric: "<= 0.6x"` or a list of texts `latency_ms <= 0.6x`.

    `0.6x` means 0.6 times the teacher's value, `teacher - 0.02` that value minus 0.02.

    Raises:
        PydanticCustomError: some limits are wrong; it holds all faults, for the calling validator.
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
    """Split `flops <= 0.6x` into the metric and its limit."""
    metric = re.split(r"[<>=\s]", text.strip(), maxsplit=1)[0]
    return metric, text.strip().removeprefix(metric)


def _parse(place: str, name: str, text: Any, faults: list[Fault]) -> Constraint | None:
    try:
        metric, source = find_metric(name)
    except InputError as error:
        faults.append(((place,), str(error)))
        return None
    match = _LIMIT.fullmatch(text.strip()) if isinstance(text, str) else None
    try:
        amount = parse_amount(match[2] if match else "")
    except AnalysisInputError:
        faults.append(((place,), f"{_FORM}, got {describe_value(text)}"))
        return None
    assert match is not None, "the number was parsed before"
    at_zero = metric.kind == "quality" and match[1] == "<=" and amount.value == 0  # no churn at all
    if amount.form == "factor" and amount.value <= 0:
        faults.append(((place,), f"expected a factor above 0, got {text!r}"))
    elif amount.form == "number" and amount.value <= 0 and not source and not at_zero:
        faults.append(((place,), f"expected a limit above 0, got {text!r}"))
    elif metric.share and not source and amount.form == "number" and amount.value > 1:
        faults.append(((place,), f"expected a share between 0 and 1, got {text!r}"))
    elif metric.share and amount.form == "difference" and abs(amount.value) > 1:
        faults.append(((place,), f"expected a difference between -1 and 1, got {text!r}"))
    written = " ".join(match[2].split()) if amount.form == "difference" else match[2].replace(" ", "")
    return Constraint.model_validate(
        {"metric": metric.name, "op": match[1], "amount": written, "source": source}
    )
