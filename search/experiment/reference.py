"""Generate the reference of the experiment file from the models that validate it.

python -m search.experiment.reference > docs/experiment.md
"""

from __future__ import annotations

import types
import typing
from typing import Any, Literal

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from search.experiment.experiment import Experiment
from search.experiment.yaml12 import describe_value

_NAMES = {str: "text", int: "whole number", float: "number", bool: "true or false"}

INTRODUCTION = """\
# The experiment file

One YAML file describes a run. It is validated completely before anything starts, and all faults are reported
at once. `EXPERIMENT` in a command is such a file or the name of a preset. Every key has a default.
`-o dotted.key=value` overrides a key, as often as needed, with values in YAML:
`-o budget.trials=12 -o space.loss.tau=[2,6]`. `--out DIR` takes precedence over `run.dir`.

Relative paths (`data.root`, `teacher.checkpoint`, `run.dir`) are relative to the current working directory,
not to the file. A value that begins with `!`, `*`, `>` or `&` needs quotes in a file, as in
`blocks: ["!layer1.0"]` and `val_accuracy: ">= 0.9"`. A duplicate key is a fault.

**Ranges.** Keys of `space.loss` and `space.optim` take a number (fixed), `[low, high]` or
`{low: 1, high: 8, log: true}` (searched), or `{choices: [64, 128]}` (searched). `log` is the default for
`tau`, `beta`, `lr` and `weight_decay` where `low` is above 0.

`ama schema` prints the tables below.
"""


def tables(model: type[BaseModel]) -> str:
    """Write one Markdown table for the top-level keys of `model`, then one per section, nested included."""
    top = [_row("", name, field) for name, field in model.model_fields.items() if not _section(field)]
    parts = ["## Top level\n", _table(top)]
    for name, field in model.model_fields.items():
        if section := _section(field):
            parts += _section_tables(name, section, str(field.description))
    return "\n".join(parts)


def _section_tables(path: str, model: type[BaseModel], description: str) -> list[str]:
    rows = [
        _row(f"{path}.", name, field) for name, field in model.model_fields.items() if not _section(field)
    ]
    parts = [f"## `{path}`: {description}\n", _table(rows)]
    for name, field in model.model_fields.items():
        if section := _section(field):
            parts += _section_tables(f"{path}.{name}", section, str(field.description))
    return parts


def _table(rows: list[tuple[str, str, str, str]]) -> str:
    lines = ["| key | type | default | meaning |", "|---|---|---|---|"]
    lines += [f"| {' | '.join(_escape(cell) for cell in row)} |" for row in rows]
    return "\n".join(lines) + "\n"


def _escape(cell: str) -> str:
    """Escape `cell` for a Markdown table: `<` outside of code, and `|`."""
    pieces = cell.replace("|", "\\|").split("`")
    return "`".join(piece if i % 2 else piece.replace("<", "\\<") for i, piece in enumerate(pieces))


def _row(prefix: str, name: str, field: FieldInfo) -> tuple[str, str, str, str]:
    extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
    form = str(extra.get("form") or type_text(field.annotation))
    default = f"`{_plain(field.default)}`" if field.default is not PydanticUndefined else "required"
    default = str(extra.get("default", default))
    return f"`{prefix}{name}`", form, default, str(field.description)


def _plain(value: Any) -> str:
    if isinstance(value, tuple):
        value = [item.model_dump(mode="json") if isinstance(item, BaseModel) else item for item in value]
        if value and isinstance(value[0], dict) and "metric" in value[0]:
            value = [item["metric"] for item in value]
    elif isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    return "null" if value is None else str(value) if isinstance(value, str) else describe_value(value)


def _section(field: FieldInfo) -> type[BaseModel] | None:
    annotation = field.annotation
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return None


def type_text(annotation: Any) -> str:
    """Describe a type in the words of someone who writes YAML."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is type(None):
        return "null"
    if origin is typing.Annotated:
        return type_text(arguments[0])
    if origin is Literal:
        return ", ".join(str(argument) for argument in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(type_text(argument) for argument in arguments)
    if origin is tuple:
        return f"list of {len(arguments)} numbers" if Ellipsis not in arguments else "list"
    return _NAMES[annotation]


def schema_markdown() -> str:
    """Return every key of the experiment file with type, default and meaning, as Markdown tables."""
    return tables(Experiment)


def page() -> str:
    """Return the text of docs/experiment.md: introduction, tables, and a preset as the example."""
    from search.presets import preset_text, presets

    example = "cifar10-resnet20"
    names = ", ".join(f"`{name}`" for name in presets())
    return (
        f"{INTRODUCTION}\n{schema_markdown()}\n## An example: the preset `{example}`\n\n"
        f"The presets are {names}; each is a file in `search/presets/` to copy from.\n\n"
        f"```yaml\n{preset_text(example)}```\n"
    )


if __name__ == "__main__":
    print(page(), end="")
