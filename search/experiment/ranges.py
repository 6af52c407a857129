"""Numbers that are fixed or searched: `0.5`, `[0.1, 0.9]`, `{low: 1, high: 8, log: true}`, `{choices: …}`."""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar, Generic, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    Discriminator,
    Field,
    StrictFloat,
    StrictInt,
    Tag,
    ValidationError,
    field_validator,
    model_validator,
)

from search.experiment.validation_messages import Fault, raise_faults
from search.experiment.yaml12 import describe_value
from trainables.config import Config

Value = TypeVar("Value", StrictFloat, StrictInt)

FORM = "number, range or choices"
# Quantities that act by their order of magnitude.
LOG_BY_DEFAULT = frozenset({"tau", "beta", "lr", "weight_decay"})


class Range(Config, Generic[Value]):
    """Every number from `low` to `high`, both included."""

    low: Value = Field(description="smallest value", allow_inf_nan=False)
    high: Value = Field(description="largest value", allow_inf_nan=False)
    log: bool = Field(False, description="search in orders of magnitude")

    @model_validator(mode="before")
    @classmethod
    def _from_pair(cls, value: Any) -> Any:
        if not isinstance(value, (list, tuple)):
            return value
        if len(value) != 2:
            raise ValueError(
                f"expected [low, high], got {describe_value(value)}; "
                "values to choose from go into {choices: [...]}"
            )
        return {"low": value[0], "high": value[1]}

    @model_validator(mode="after")
    def _possible(self) -> Range[Value]:
        if not self.low < self.high:
            raise ValueError(f"expected low < high, got low {self.low:g} and high {self.high:g}")
        if self.log and self.low <= 0:
            raise ValueError(f"expected low > 0 for a log range, got low {self.low:g}")
        return self


class Choices(Config, Generic[Value]):
    """One of a few numbers."""

    choices: tuple[Value, ...] = Field(min_length=1, description="the values")

    @model_validator(mode="after")
    def _distinct(self) -> Choices[Value]:
        if len(set(self.choices)) < len(self.choices):
            raise ValueError(f"expected distinct choices, got {describe_value(list(self.choices))}")
        return self


def _form(value: Any) -> str:
    if isinstance(value, Choices) or (isinstance(value, dict) and "choices" in value):
        return "<choices>"
    return "<range>" if isinstance(value, (dict, list, tuple, Range)) else "<number>"


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"expected a finite number, got {value}")
    return value


Number = Annotated[
    Annotated[StrictFloat, BeforeValidator(_finite), Tag("<number>")]
    | Annotated[Range[StrictFloat], Tag("<range>")]
    | Annotated[Choices[StrictFloat], Tag("<choices>")],
    Discriminator(_form),
]
Whole = Annotated[
    Annotated[StrictInt, Tag("<number>")]
    | Annotated[Range[StrictInt], Tag("<range>")]
    | Annotated[Choices[StrictInt], Tag("<choices>")],
    Discriminator(_form),
]


class RangesOf(Config):
    """Base of a section whose keys are those of the config `target`, each fixed or searched.

    The rules of `target` hold for every value that can come out.
    """

    target: ClassVar[type[BaseModel]]

    @field_validator("*", mode="after")
    @classmethod
    def _within_target(cls, value: Any, info: Any) -> Any:
        """Every value that can come out must be one that the trial's config takes."""
        faults: list[Fault] = []
        for place, end in _ends(value):
            try:
                cls.target.model_validate({info.field_name: end})
            except ValidationError as error:
                expected = error.errors()[0]["msg"].removeprefix("Input should be ")
                faults.append((place, f"expected {expected}, got {describe_value(end)}"))
        if faults:
            raise_faults(faults)
        if (
            isinstance(value, Range)
            and "log" not in value.model_fields_set
            and info.field_name in LOG_BY_DEFAULT
            and value.low > 0
        ):
            return value.model_copy(update={"log": True})
        return value


def _ends(value: Any) -> list[tuple[tuple[str, ...], Any]]:
    """The values that bound `value`, each with its place below the key."""
    if isinstance(value, Range):
        return [(("low",), value.low), (("high",), value.high)]
    if isinstance(value, Choices):
        return [(("choices", str(index)), choice) for index, choice in enumerate(value.choices)]
    if isinstance(value, tuple):
        return [((str(index),), choice) for index, choice in enumerate(value)]
    return [((), value)]


def described(config: type[BaseModel], name: str) -> dict[str, Any]:
    """Keywords for `Field`: the description that `config` gives its key `name`, and the forms it may take."""
    return {"description": config.model_fields[name].description, "json_schema_extra": {"form": FORM}}
