"""Shared by the checks of cluster files: safe access, schema messages, secrets, image tags."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from jsonschema import Draft7Validator  # type: ignore[import-untyped]
from jsonschema.exceptions import ValidationError  # type: ignore[import-untyped]

from analysis.runs.study_url import HIDDEN
from search.experiment.yaml12 import describe_value

_TYPES = {
    "object": "a mapping",
    "array": "a list",
    "string": "text",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "null": "nothing (null)",
}

_NAME = r"\w*(?:PASSWORD|PASSWD|SECRET|TOKEN|ACCESS_?KEY|API_?KEY|CREDENTIALS)(?:_?ID)?"
# A value that begins with $ is expanded on the node, so the secret is not in the file.
_SECRETS = (
    ("a password in a URL", re.compile(r"(?<=://)([^\s:/@]*:)(?!\$)([^\s@]+)(?=@)")),
    ("an AWS access key", re.compile(r"()\b((?:AKIA|ASIA)[0-9A-Z]{16})\b")),
    ("a private key", re.compile(r"()(-----BEGIN [A-Z ]*PRIVATE KEY-----)")),
    ("a value", re.compile(rf"\b({_NAME}=[\"']?)(?![\"'$\s])(\S+)", re.IGNORECASE)),
)
_SECRET_KEY = re.compile(rf"{_NAME}$", re.IGNORECASE)

_PLACEHOLDER = re.compile(
    r"\b(?:ami|sg|subnet|fs)-0{8,}\b|\byour-[\w-]+|\b192\.0\.2\.\d+\b|\b[\w.-]*\bexample\.(?:com|org)\b"
)


def section(data: Any, *keys: str) -> dict[str, Any]:
    """Return the mapping at `keys`; an empty one if there is none."""
    for key in keys:
        data = data.get(key) if isinstance(data, Mapping) else None
    return data if isinstance(data, dict) else {}


def items(data: Any) -> list[Any]:
    """Return `data` if it is a list, else an empty list."""
    return data if isinstance(data, list) else []


def count(value: Any) -> int | None:
    """Return `value` if it is an integer, else None; true and false do not count as integers."""
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def leaves(data: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Yield the dotted key and the value of every text in `data`."""
    if isinstance(data, str):
        yield path, data
    elif isinstance(data, (dict, list)):
        for key, value in data.items() if isinstance(data, dict) else enumerate(data):
            yield from leaves(value, f"{path}.{key}" if path else str(key))


def unknown_key(path: str, key: str, known: Iterable[str], of: str) -> str:
    """Format the message for an unknown key of `of`, with the nearest known key."""
    close = difflib.get_close_matches(key, list(known), 1)
    return (
        f"{path}.{key}".lstrip(".")
        + f": expected a key of {of}, got an unknown one"
        + (f"; the nearest is {close[0]}" if close else "")
    )


def schema_faults(data: Any, schema: Mapping[str, Any], of: str) -> list[str]:
    """Validate `data` against a JSON schema (draft 7); return one line per fault.

    Args:
        data: as read from YAML.
        schema: the JSON schema.
        of: owner of the schema, for messages about unknown keys.
    """
    errors = sorted(
        Draft7Validator(schema).iter_errors(data), key=lambda e: [str(p) for p in e.absolute_path]
    )
    return [line for error in errors for line in _lines(error, of)]


def _lines(error: ValidationError, of: str) -> Iterator[str]:
    path = ".".join(str(part) for part in error.absolute_path)
    wanted: Any = error.validator_value
    if error.validator == "additionalProperties" and wanted is False:
        known = list(section(error.schema, "properties"))
        yield from (unknown_key(path, str(key), known, of) for key in error.instance if key not in known)
    elif error.validator == "required":
        missing = error.message.split("'")[1]
        yield f"{path}.{missing}".lstrip(".") + ": expected a value, but the key is missing"
    else:
        names = [wanted] if isinstance(wanted, str) else wanted
        expected = {
            "type": lambda: " or ".join(_TYPES[name] for name in names),
            "enum": lambda: "one of " + ", ".join(map(str, wanted)),
            "const": lambda: str(wanted),
            "minimum": lambda: f"at least {wanted}",
            "minItems": lambda: f"a list of at least {wanted}",
            "pattern": lambda: f"text like {wanted}",
        }.get(str(error.validator), lambda: f"what {of} allows ({error.message})")()
        yield f"{path or 'the file'}: expected {expected}, got {describe_value(error.instance)}"


def secret_faults(data: Any, path: str = "") -> list[str]:
    """Return one line for every secret in `data`, without showing it."""
    faults = []
    for key, text in leaves(data, path):
        found = [what for what, pattern in _SECRETS if pattern.search(text)]
        if not found and _SECRET_KEY.match(key.rpartition(".")[2]) and text and text[0] not in "$/~":
            found = ["a value"]
        faults += [_secret(key, what) for what in found[:1]]
    return faults + list(_secret_variables(data, path))


def _secret_variables(data: Any, path: str) -> Iterator[str]:
    """Find secrets in Kubernetes' form of an environment variable: `{name: X_TOKEN, value: ...}`."""
    if isinstance(data, dict):
        name, value = data.get("name"), data.get("value")
        if isinstance(name, str) and isinstance(value, str) and value and _SECRET_KEY.match(name):
            yield _secret(f"{path}.value", f"a value of {name}")
    if isinstance(data, (dict, list)):
        for key, inner in data.items() if isinstance(data, dict) else enumerate(data):
            yield from _secret_variables(inner, f"{path}.{key}" if path else str(key))


def _secret(key: str, what: str) -> str:
    return (
        f"{key}: expected no secret in a cluster file, got {what} (not shown); put it into the "
        "environment of the nodes, see docs/cluster.md"
    )


def hide(text: str) -> str:
    """Replace every secret that `secret_faults` finds in `text` by ***."""
    for _, pattern in _SECRETS:
        text = pattern.sub(lambda match: match[1] + HIDDEN, text)
    return text


def image_fault(key: str, image: str) -> str | None:
    """Return the message for a container image without a pinned version; None if it is pinned."""
    name, _, digest = image.partition("@")
    if digest:
        return None
    repository, _, tag = name.rpartition(":") if ":" in name.rpartition("/")[2] else (name, "", "")
    if repository.endswith("rayproject/ray-ml"):
        return f"{key}: expected rayproject/ray, got {image!r}: the ray-ml images ended with Ray 2.50"
    if repository.endswith("rayproject/ray"):
        pinned, form = (
            re.match(r"\d+\.\d+\.\d+", tag),
            "a tag that begins with Ray's version, as in 2.60.0-py311-gpu",
        )
    else:
        pinned, form = re.search(r"\d", tag), "a tag with a version in it"
    return None if pinned else f"{key}: expected {form}, so that every node gets the same, got {image!r}"


def placeholders(data: Any) -> Iterator[tuple[str, str]]:
    """Yield key and value of every placeholder such as sg-000...; one behind a YAML alias only once."""
    seen: set[int] = set()
    for key, text in leaves(data):
        if id(text) not in seen:
            seen.add(id(text))
            yield from ((key, match[0]) for match in _PLACEHOLDER.finditer(text))
