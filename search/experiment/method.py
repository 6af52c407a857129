"""The key `space.method`: which distillation methods trials use, and the ranges of their settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, PlainSerializer, ValidationError

from search.experiment.ranges import RangesOf, ranges_of
from search.experiment.validation_messages import Fault, fault_lines, raise_faults
from search.experiment.yaml12 import describe_value
from trainables.config import DEFAULT_METHOD, method_config
from trainables.errors import InputError


def _methods(value: Any) -> dict[str, RangesOf | None]:
    """Convert a name, a list of names or a mapping to a mapping; None: the settings are in `space.loss`."""
    if isinstance(value, str):
        value = [value]
    if isinstance(value, (list, tuple)):
        if len(set(map(str, value))) < len(value):
            raise ValueError(f"expected distinct methods, got {describe_value(list(value))}")
        value = dict.fromkeys(value)
    if not isinstance(value, dict) or not value or not all(isinstance(name, str) for name in value):
        raise ValueError(f"expected the name of a method, a list or a mapping, got {describe_value(value)}")
    faults: list[Fault] = []
    found = {name: _ranges(name, settings, faults) for name, settings in value.items()}
    if faults:
        raise_faults(faults)
    return found


def _ranges(name: str, settings: Any, faults: list[Fault]) -> RangesOf | None:
    if isinstance(settings, RangesOf):
        return settings
    if name == DEFAULT_METHOD:
        if settings:
            faults.append(((name,), f"the settings of {name} are in space.loss; leave them out here"))
        return None
    if settings is not None and not isinstance(settings, dict):
        faults.append(((name,), f"expected a mapping of settings, got {describe_value(settings)}"))
        return None
    try:
        section = ranges_of(method_config(name))
        return section.model_validate(settings or {})
    except ValidationError as error:
        for line in fault_lines(error, section):
            place, _, message = line.partition(": ")
            faults.append(((name, *place.split(".")), message))
    except InputError as error:
        faults.append(((name,), str(error)))
    return None


def _written(value: Mapping[str, RangesOf | None]) -> Any:
    """Convert back to the form of the experiment file, with every setting."""
    if list(value) == [DEFAULT_METHOD]:
        return DEFAULT_METHOD
    return {name: ranges and ranges.model_dump(mode="json") for name, ranges in value.items()}


MethodSpace = Annotated[dict[str, Any], BeforeValidator(_methods), PlainSerializer(_written, return_type=Any)]
