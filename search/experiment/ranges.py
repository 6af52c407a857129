"""Fixed or searched numbers: `0.5`, `[0.1, 0.9]`, `{low: 1, high: 8, log: true}`, `{choices: …}`."""

from __future__ import annotations

import math
from functools import cache
from typing import Annotated, Any, ClassVar, Generic, Literal, TypeVar, get_args, get_origin

from pydantic import (
    BaseModel,
    BeforeValidator,
    Discriminator,
    Field,
    StrictFloat,
    StrictInt,
    Tag,
    ValidationError,
    create_model,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo

from search.experiment.validation_messages import Fault, raise_faults
from search.experiment.yaml12 import describe_value
from trainables.config_base import Config

Value = TypeVar("Value", StrictFloat, StrictInt)

FORM = "number, range or choices"


class Range(Config, Generic[Value]):
    """A range from `low` to `high`, both included."""

    low: Value = Field(description="smallest value", allow_inf_nan=False)
    high: Value = Field(description="largest value", allow_inf_nan=False)
    log: bool = Field(False, description="sample on a logarithmic scale")

    @model_validator(mode="before")
    @classmethod
    def _from_pair(cls, value: Any) -> Any:
        if not isinstance(value, (list, tuple)):
            return value
        if len(value) != 2:
            raise ValueError(
                f"expected [low, high], got {describe_value(value)}; "
                "write a list of values as {choices: [...]}"
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
    """A choice between a few numbers."""

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
    """Base of a section with the keys of the config `target`, each fixed or searched.

    The validation rules of `target` apply to every value that can be sampled.
    """

    target: ClassVar[type[BaseModel]]

    def __reduce__(self) -> Any:
        # `ranges_of` creates the class, so pickle cannot find it in a module.
        return _restored, (self.target, self.model_dump(mode="json"))

    @field_validator("*", mode="after")
    @classmethod
    def _within_target(cls, value: Any, info: Any) -> Any:
        """Check that the trial's config accepts every value that can be sampled."""
        faults: list[Fault] = []
        for place, end in ends(value):
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
            and search_space(cls.target.model_fields[info.field_name]).get("log")
            and value.low > 0
        ):
            return value.model_copy(update={"log": True})
        return value


def _restored(target: type[BaseModel], values: dict[str, Any]) -> RangesOf:
    return ranges_of(target).model_validate(values)


def ends(value: Any) -> list[tuple[tuple[str, ...], Any]]:
    """Return the smallest and largest values (or all choices), each with its path below the key."""
    if isinstance(value, Range):
        return [(("low",), value.low), (("high",), value.high)]
    if isinstance(value, Choices):
        return [(("choices", str(index)), choice) for index, choice in enumerate(value.choices)]
    if isinstance(value, tuple):
        return [((str(index),), choice) for index, choice in enumerate(value)]
    return [((), value)]


@cache
def ranges_of(config: type[BaseModel]) -> type[RangesOf]:
    """Create the section of the experiment file that fixes or searches the keys of `config`.

    Defaults, ranges, bounds and descriptions come from the fields (`trainables.config_base.searched`).

    Args:
        config: a config whose fields are numbers, texts with a few choices, or booleans.
    """
    fields: dict[str, Any] = {key: _field(info) for key, info in config.model_fields.items()}
    summary = f"The keys of {config.__name__}, each fixed or searched."
    made = create_model(f"{config.__name__}Ranges", __base__=RangesOf, __doc__=summary, **fields)
    made.target = config
    return made


def _field(info: FieldInfo) -> tuple[Any, Any]:
    """Return type and pydantic field of a section's key, for a config's field."""
    space = search_space(info)
    choices = tuple(get_args(info.annotation)) if get_origin(info.annotation) is Literal else ()
    choices = (True, False) if info.annotation is bool else choices
    if choices:
        default = tuple(space.get("choices", ())) or info.default
        form = f"{_listed(choices)} or a list of {'both' if len(choices) == 2 else 'them'}"
        return _kinds(choices, form), Field(
            default, description=f"{info.description}; a list is searched", json_schema_extra={"form": form}
        )
    whole, default = info.annotation is int, info.default
    some: Any = Choices[StrictInt] if whole else Choices[StrictFloat]
    span: Any = Range[StrictInt] if whole else Range[StrictFloat]
    if space.get("choices"):
        default = some(choices=tuple(space["choices"]))
    elif space.get("low") is not None:
        number = int if whole else float
        default = span(low=number(space["low"]), high=number(space["high"]), log=bool(space["log"]))
    return Whole if whole else Number, Field(
        default, description=info.description, json_schema_extra={"form": FORM}
    )


def search_space(info: FieldInfo) -> dict[str, Any]:
    """Return the metadata that `searched` attached to a config's field; empty if none."""
    extra = info.json_schema_extra
    found = extra.get("searched", {}) if isinstance(extra, dict) else {}
    return found if isinstance(found, dict) else {}


def _listed(choices: tuple[Any, ...]) -> str:
    return ", ".join(choice if isinstance(choice, str) else describe_value(choice) for choice in choices)


def _kinds(choices: tuple[Any, ...], form: str) -> Any:
    """Return the type of a key that accepts one of `choices` or a list of them."""

    def several(value: Any) -> Any:
        kinds = value["choices"] if isinstance(value, dict) and set(value) == {"choices"} else value
        as_list = list(kinds) if isinstance(kinds, (list, tuple)) else [kinds]
        if not as_list or not all(type(kind) is type(choices[0]) and kind in choices for kind in as_list):
            raise ValueError(f"expected {form}, got {describe_value(value)}")
        if len(set(as_list)) < len(as_list):
            raise ValueError(f"expected distinct kinds, got {describe_value(value)}")
        return as_list[0] if len(as_list) == 1 else tuple(as_list)

    one: Any = Literal[choices]
    return Annotated[one | tuple[one, ...], BeforeValidator(several)]
