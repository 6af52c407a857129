"""Write the resolved experiment as YAML, and compare two of them."""

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

# Keys that may change when a run is resumed. Epochs may not: trials of unequal length cannot share a front.
RESUMABLE = ("budget.trials", "budget.hours", "resources", "runtime", "run", "storage")


def resolved(experiment: Experiment) -> dict[str, Any]:
    """Return every key with its value, as plain lists, mappings and scalars, without passwords.

    Loading it again gives an equal experiment, except that a password becomes ***. `${VAR}` is kept.
    """
    data = experiment.model_dump(mode="json")
    if experiment.storage.study is not None:
        data["storage"]["study"] = redact(experiment.storage.study)
    return data


def resolved_yaml(experiment: Experiment) -> str:
    """Return `resolved` as a YAML document that can be loaded again."""
    return to_yaml(resolved(experiment))


def dump_yaml(experiment: Experiment, path: str | os.PathLike[str]) -> None:
    """Write the resolved experiment, without passwords, to `path` atomically."""
    write_text(Path(path), resolved_yaml(experiment))


def difference(old: dict[str, Any], new: Experiment) -> list[str]:
    """List the changes in `new` that a resumed run may not make, as lines such as `seed: 0 → 1`.

    Args:
        old: the resolved experiment of the run so far.
        new: the experiment to resume the run with.
    """
    with suppress(ValidationError):  # a run of an older version lacks new keys: it used their defaults
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
        # A range counts as one value, so that a change of its form is shown as a whole.
        if isinstance(value, dict) and not {"low", "choices"} & set(value):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
