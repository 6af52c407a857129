"""Load an experiment: a preset or a YAML file, with overrides.

    experiment = load_experiment("digits", overrides=["budget.trials=12"], out="runs/small")

`EXPERIMENT` anywhere on the command line is a file or the name of a preset.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from analysis.runs.study_url import redact
from search.experiment.experiment import Experiment
from search.experiment.validation_messages import fault_lines, nearest
from search.experiment.yaml12 import apply_overrides, read_yaml
from search.presets import preset_text, presets
from trainables.errors import InputError

# Sections that may be written as one value, and the key that it is short for.
SHORT_FORMS = {"sampler": "name", "resources": "concurrent"}
# Numbers of a section that may not exceed another: section, number, its limit.
_AT_MOST = (("budget", "grace_epochs", "epochs"),)


def load_experiment(
    name_or_path: str | os.PathLike[str],
    overrides: Sequence[str] = (),
    out: str | os.PathLike[str] | None = None,
) -> Experiment:
    """The experiment of a YAML file or preset, with overrides applied, validated whole.

    Relative paths in it (`data.root`, `teacher.checkpoint`, `run.dir`) count from the current working
    directory, not from the file's. Whether they exist is checked by what reads them.

    Args:
        name_or_path: the name of a preset (which goes before a file of that name), or a path.
        overrides: `dotted.key=value`, values in YAML; the last one of a key wins.
        out: the run directory; goes before `run.dir`.

    Raises:
        InputError: no such file, a YAML syntax error, or everything that is wrong with the keys and values,
            one line each.
    """
    source = os.fspath(name_or_path)
    text = preset_text(source) if source in presets() else _read(source)
    data, faults = read_yaml(text, source)
    faults += apply_overrides(data, overrides, SHORT_FORMS)
    _let_follow(data, overrides)
    if out is not None:
        data["run"] = {"dir": os.fspath(out)}
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(source).stem).strip("-._")
    data.setdefault("name", stem)
    _drop_empty_sections(data, Experiment)
    experiment = None
    try:
        experiment = Experiment.model_validate(data)
    except ValidationError as error:
        faults += fault_lines(error, Experiment)
    if faults or experiment is None:
        count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
        raise InputError(redact("\n  ".join([f"{source}: {count}", *faults])))
    return experiment


def _read(source: str) -> str:
    path = Path(source)
    if not path.exists():
        names = presets()
        raise InputError(
            f"{source}: no such file, and no preset of this name; the nearest preset is "
            f"{nearest((path.stem,), names)}, of {', '.join(names)}"
        )
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise InputError(f"{source}: expected an experiment file in YAML (UTF-8), got binary data") from None
    except OSError as error:
        raise InputError(f"{source}: expected an experiment file in YAML: {error.strerror}") from None


def _let_follow(data: dict[str, Any], overrides: Sequence[str]) -> None:
    """Lower what a file or preset says to a limit that was lowered on the command line.

    `-o budget.epochs=1` alone is no contradiction to the `grace_epochs: 2` of a preset; with
    `-o budget.grace_epochs=2` it is one, as is a file that contradicts itself.
    """
    typed = {".".join(name.strip() for name in text.partition("=")[0].split(".")) for text in overrides}
    for section, key, limit in _AT_MOST:
        values = data.get(section)
        if f"{section}.{limit}" not in typed or {section, f"{section}.{key}"} & typed:
            continue
        if isinstance(values, dict) and all(type(values.get(name)) is int for name in (key, limit)):
            values[key] = min(values[key], max(1, values[limit]))


def _drop_empty_sections(data: dict[str, Any], model: type[BaseModel]) -> None:
    """A section whose keys are all commented out is null in YAML: it means the defaults."""
    for name, field in model.model_fields.items():
        section = field.annotation
        is_section = isinstance(section, type) and issubclass(section, BaseModel)
        if name in data and data[name] is None and (is_section or name == "constraints"):
            del data[name]
        elif isinstance(section, type) and is_section and isinstance(data.get(name), dict):
            _drop_empty_sections(data[name], section)
