"""Load an experiment: a preset or a YAML file, with overrides.

`EXPERIMENT` on the command line is always a file or the name of a preset.
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

# Sections that may be written as a single value -> the key which that value sets.
SHORT_FORMS = {"sampler": "name", "resources": "concurrent"}
# Numbers that may not exceed another number of the section: section, number, its upper bound.
_AT_MOST = (("budget", "grace_epochs", "epochs"),)


def load_experiment(
    name_or_path: str | os.PathLike[str],
    overrides: Sequence[str] = (),
    out: str | os.PathLike[str] | None = None,
) -> Experiment:
    """Load an experiment from a YAML file or preset, apply overrides, and validate it completely.

    Relative paths (`data.root`, `teacher.checkpoint`, `run.dir`) are relative to the current working
    directory, not to the file. Whether a path exists is checked when it is read.

    Args:
        name_or_path: the name of a preset (takes precedence over a file of that name), or a path.
        overrides: `dotted.key=value`, values in YAML; the last override of a key wins.
        out: the run directory; takes precedence over `run.dir`.

    Returns:
        The experiment; its run directory is `out`, `run.dir` or `runs/<name>`.

    Raises:
        InputError: the file does not exist or is not valid YAML, or keys or values are wrong (one line per
            fault).

    Example:
        experiment = load_experiment("digits", ["budget.trials=12", "sampler=nsga2"], out="runs/small")
        print(experiment.run.dir, experiment.budget.trials, experiment.sampler.name)
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
    """Lower a number of a file or preset to an upper bound that an override lowered.

    `-o budget.epochs=1` alone also lowers the `grace_epochs: 2` of a preset. Together with
    `-o budget.grace_epochs=2` it is an error, as in a file that contradicts itself.
    """
    typed = {".".join(name.strip() for name in text.partition("=")[0].split(".")) for text in overrides}
    for section, key, limit in _AT_MOST:
        values = data.get(section)
        if f"{section}.{limit}" not in typed or {section, f"{section}.{key}"} & typed:
            continue
        if isinstance(values, dict) and all(type(values.get(name)) is int for name in (key, limit)):
            values[key] = min(values[key], max(1, values[limit]))


def _drop_empty_sections(data: dict[str, Any], model: type[BaseModel]) -> None:
    """Drop sections that are null, so that a section with all keys commented out means the defaults."""
    for name, field in model.model_fields.items():
        section = field.annotation
        is_section = isinstance(section, type) and issubclass(section, BaseModel)
        if name in data and data[name] is None and (is_section or name == "constraints"):
            del data[name]
        elif isinstance(section, type) and is_section and isinstance(data.get(name), dict):
            _drop_empty_sections(data[name], section)
