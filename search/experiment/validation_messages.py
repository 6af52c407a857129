"""Turn pydantic's errors into messages: dotted key, expected and actual value, nearest valid key."""

from __future__ import annotations

import difflib
import typing
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticCustomError

from search.experiment.yaml12 import describe_value

Fault = tuple[tuple[str, ...], str]  # path below the validated field, message

_WORDS = {
    "a valid number": "a number",
    "a valid integer": "a whole number",
    "a valid string": "text",
    "a valid boolean": "true or false",
    "a valid list": "a list",
    "a valid tuple": "a list",
}


def raise_faults(faults: Sequence[Fault]) -> NoReturn:
    """Raise several faults from a pydantic validator, each with its path below the validated field."""
    text = "; ".join(".".join((*place, message)) for place, message in faults)
    raise PydanticCustomError("faults", "{text}", {"faults": list(faults), "text": text})


def fault_lines(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """Return one line per fault of `error`, which was raised when validating `model`."""
    names = list(valid_names(model))
    lines = []
    for item in error.errors(include_url=False):
        # Names in angle brackets are tags of unions, not keys of the file.
        place = tuple(str(part) for part in item["loc"] if not str(part).startswith("<"))
        context: dict[str, Any] = item.get("ctx", {})
        if item["type"] == "faults":
            lines += [f"{'.'.join(place + below)}: {message}" for below, message in context["faults"]]
        elif item["type"] == "extra_forbidden":
            lines.append(f"{'.'.join(place)}: unknown key; the nearest valid key is {nearest(place, names)}")
        else:
            form = "<number>" in item["loc"]
            lines.append(f"{'.'.join(place)}: {_message(item['type'], item['msg'], item['input'], form)}")
    return lines


def _message(kind: str, message: str, value: Any, number: bool) -> str:
    if kind == "missing":
        return "expected a value, but the key is missing"
    if kind == "value_error":  # from our own validators; their messages are complete
        return message.removeprefix("Value error, ")
    if kind in ("model_type", "model_attributes_type"):
        return f"expected a mapping of keys to values, got {describe_value(value)}"
    expected = message.removeprefix("Input should be ").removesuffix(", got an empty string")
    if number:
        whole = "whole " if kind.startswith("int_") else ""
        expected = f"a {whole}number, [low, high], {{low, high, log}} or {{choices: [...]}}"
    elif " " in expected:
        expected = next((words for start, words in _WORDS.items() if expected.startswith(start)), expected)
    text = f"expected {expected}, got {describe_value(value)}"
    if kind == "literal_error" and isinstance(value, str):
        choices = [part.strip("' ") for part in expected.replace(" or ", ", ").split(",")]
        close = difflib.get_close_matches(value, choices, 1)
        text += f"; the nearest is {close[0]}" if close else ""
    return text


def valid_names(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Yield the dotted names of every key of `model`, including sections."""
    for name, field in model.model_fields.items():
        if field.exclude:  # not a key of the file
            continue
        yield prefix + name
        for inner in _models(field.annotation):
            yield from valid_names(inner, f"{prefix}{name}.")


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in typing.get_args(annotation):
        yield from _models(argument)


def nearest(place: Sequence[str], names: Sequence[str]) -> str:
    """Find the valid dotted name nearest to `place`: a sibling, else that key elsewhere, else any.

    If several other sections have the key, return all of them, joined by "or".
    """
    path = [part for part in place if not part.isdigit()]
    parent, last = ".".join(path[:-1]), path[-1]
    siblings = {name.rpartition(".")[2]: name for name in names if name.rpartition(".")[0] == parent}
    if close := difflib.get_close_matches(last, siblings, 1):
        return siblings[close[0]]
    if namesakes := [name for name in names if name.rpartition(".")[2] == last]:
        return " or ".join(namesakes)
    return max(names, key=lambda name: difflib.SequenceMatcher(None, ".".join(path), name).ratio())
