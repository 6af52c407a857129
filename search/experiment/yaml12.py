"""Read and write YAML for the experiment file: YAML 1.2 scalars, no duplicate keys, dotted overrides.

PyYAML reads `1e-3` as text, `1:30` as 90 and `no` as false (YAML 1.1). Here scalars follow the core schema of
YAML 1.2, in files, in overrides and in output.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from trainables.errors import InputError

_SCALARS = (
    ("tag:yaml.org,2002:bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("tag:yaml.org,2002:int", r"[-+]?(?:0|[1-9][0-9]*)|0x[0-9a-fA-F]+", "-+0123456789"),
    (
        "tag:yaml.org,2002:float",
        r"[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+",
        "-+0123456789.",
    ),
    ("tag:yaml.org,2002:null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("tag:yaml.org,2002:merge", r"<<", "<"),
)
# A value that begins with one of these is syntax in YAML; on the command line it is meant as text.
_INDICATORS = "!*&>|%@`"


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 (PyYAML's name)


class _Dumper(yaml.SafeDumper):
    """Quote every text that a YAML 1.1 or a YAML 1.2 reader would not read as text."""


for _tag, _pattern, _first in _SCALARS:
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(_tag, re.compile(f"(?:{_pattern})$"), list(_first))


def read_yaml(text: str, source: str) -> tuple[dict[str, Any], list[str]]:
    """Parse a YAML mapping, and find its duplicate keys.

    Args:
        text: a YAML document; an empty one gives an empty mapping.
        source: the file's name, for messages.

    Returns:
        The mapping, and one line per duplicate key (dotted name, both line numbers).

    Raises:
        InputError: a syntax error (with file and line), or the top level is not a mapping.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        faults = list(_duplicates(node, "", set())) if node is not None else []
        data = loader.construct_document(node) if node is not None else {}
    except yaml.MarkedYAMLError as error:
        raise InputError(_syntax_message(error, text, source)) from None
    except yaml.YAMLError as error:
        raise InputError(f"{source}: not valid YAML: {error}") from None
    if not isinstance(data, dict):
        raise InputError(f"{source}: expected a mapping of keys to values, got {describe_value(data)}")
    return data, faults


def _duplicates(node: yaml.Node, path: str, seen: set[int]) -> Iterator[str]:
    """Yield one line per key that occurs twice in a mapping at or below `node`."""
    if id(node) in seen:  # an alias, perhaps to one of its ancestors
        return
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield from _duplicates(item, f"{path}{index}.", seen)
    elif isinstance(node, yaml.MappingNode):
        lines: dict[str, int] = {}
        for key, value in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            if name in lines and key.tag != "tag:yaml.org,2002:merge":
                yield f"{path}{name}: duplicate key, on lines {lines[name]} and {line}; expected it once"
            lines.setdefault(name, line)
            yield from _duplicates(value, f"{path}{name}.", seen)


def _syntax_message(error: yaml.MarkedYAMLError, text: str, source: str) -> str:
    mark = error.problem_mark or error.context_mark
    line = mark.line if mark else 0
    message = f"{source}, line {line + 1}: not valid YAML: {error.problem or error.context}"
    lines = text.splitlines()
    bare = re.search(rf"(?:^|[:\[,-])\s*([{_INDICATORS}])", lines[line]) if line < len(lines) else None
    return f"{message}; text that begins with {bare[1]} needs quotes" if bare else message


def parse_scalar(text: str) -> Any:
    """Parse the value of an override as YAML; text if it begins with a character of YAML's syntax.

    Raises:
        InputError: it is not valid YAML.
    """
    text = text.strip()
    if text and text[0] in _INDICATORS:
        return text
    try:
        return _Loader(text).get_single_data()
    except yaml.YAMLError as error:
        problem = getattr(error, "problem", None) or error
        raise InputError(f"not valid YAML: {text!r}: {problem}") from None


def apply_overrides(
    data: dict[str, Any], overrides: Sequence[str], short_forms: Mapping[str, str] | None = None
) -> list[str]:
    """Set each `dotted.key=value` in `data`, in place; the last override of a key wins.

    Args:
        data: the mapping read from a file.
        overrides: the overrides as typed.
        short_forms: sections that may be written as a single value -> the key which that value sets.

    Returns:
        One line per override that cannot be applied.
    """
    faults = []
    for override in overrides:
        key, equals, text = override.partition("=")
        names = [name.strip() for name in key.split(".")]
        if not equals or not all(names):
            faults.append(f"override {override!r}: expected dotted.key=value")
            continue
        try:
            value = parse_scalar(text)
        except InputError as error:
            faults.append(f"{'.'.join(names)}: {error}")
            continue
        short = (short_forms or {}).get(names[0])
        if short and len(names) > 1 and isinstance(data.get(names[0]), str):
            data[names[0]] = {short: data[names[0]]}
        if fault := _set(data, names, value):
            faults.append(fault)
    return faults


def _set(data: dict[str, Any], names: list[str], value: Any) -> str | None:
    """Set `value` at the path `names`; return a message if that is not possible, else None."""
    for depth, name in enumerate(names[:-1], start=1):
        if data.get(name) is None:
            data[name] = {}
        if not isinstance(data[name], dict):
            inner = ".".join(names[:depth])
            return (
                f"{'.'.join(names)}: {inner} is {describe_value(data[name])} here and does not have keys; "
                f"override all of it: {inner}=..."
            )
        data = data[name]
    data[names[-1]] = value
    return None


def describe_value(value: Any) -> str:
    """Format `value` for a message: short, in YAML's words."""
    if value is None:
        return "nothing (null)"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return repr(value) if len(value) <= 80 else repr(value[:77] + "...")
    text = yaml.dump(value, Dumper=_Dumper, default_flow_style=True, width=10_000, sort_keys=False)
    text = text.removesuffix("\n").removesuffix("\n...")
    return text if len(text) <= 80 else text[:77] + "..."


def to_yaml(data: dict[str, Any]) -> str:
    """Write `data` as a YAML document, keys in their order; `read_yaml` reads it back."""
    return str(yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100))
