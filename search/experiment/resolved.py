"""The resolved experiment as YAML, and how two of them differ."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from analysis.runs.study_url import redact
from search.experiment.experiment import Experiment
from search.experiment.yaml12 import describe_value, to_yaml
from trainables.files import write_text

# What may differ when a run is resumed. Not the epochs: trials of unequal length cannot share a front.
RESUMABLE = ("budget.trials", "budget.hours", "resources", "runtime", "run", "storage")


def resolved(experiment: Experiment) -> dict[str, Any]:
    """Every key with its value, as plain lists, mappings and scalars that hold no password.

    Loading it again gives an equal experiment, but for a password, which becomes ***; `${VAR}` stays.
    """
    data = experiment.model_dump(mode="json")
    if experiment.storage.study is not None:
        data["storage"]["study"] = redact(experiment.storage.study)
    return data


def resolved_yaml(experiment: Experiment) -> str:
    """`resolved` as a YAML document that can be loaded again."""
    return to_yaml(resolved(experiment))


def dump_yaml(experiment: Experiment, path: str | os.PathLike[str]) -> None:
    """Write the resolved experiment, without passwords, to `path` in one step."""
    write_text(Path(path), resolved_yaml(experiment))


def difference(old: dict[str, Any], new: Experiment) -> list[str]:
    """What a resumed run may not change, and `new` does: lines such as `seed: 0 → 1`.

    Args:
        old: the resolved experiment that the run was started with.
        new: the experiment that it is to go on with.
    """
    with suppress(ValidationError):  # a run of an older version lacks keys: it ran with their defaults
        old = resolved(Experiment.model_validate(old))
    before, after = _flat(old), _flat(resolved(new))
    lines = []
    for key in [*before, *(key for key in after if key not in before)]:
        fixed = not any(key == free or key.startswith(f"{free}.") for free in RESUMABLE)
        was, now = before.get(key), after.get(key)
        if fixed and was != now:
            lines.append(f"{key}: {describe_value(was)} → {describe_value(now)}")
    return lines


def _flat(data: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in data.items():
        # A range is one value: where its form changed it should read as a whole.
        if isinstance(value, dict) and not {"low", "choices"} & set(value):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
