"""The experiment: one YAML file that says what is searched, validated whole before anything starts.

    experiment = load_experiment("digits", overrides=["budget.trials=12"], out="runs/small")

`EXPERIMENT` anywhere on the command line is a file or the name of a preset. Imports no torch, no Ray.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError, field_serializer, field_validator, model_validator

from analysis.runs.study_url import redact, study_url
from search.experiment.objectives import Constraint, Objective, parse_constraints
from search.experiment.sections import (
    BudgetConfig,
    CostsConfig,
    Resources,
    RunConfig,
    SamplerConfig,
    SpaceConfig,
    StorageConfig,
)
from search.experiment.validation_messages import fault_lines, nearest
from search.experiment.yaml12 import apply_overrides, describe_value, read_yaml, to_yaml
from search.presets import preset_text, presets
from trainables.config import Config, DataConfig, LibraryConfig, RuntimeConfig, TeacherConfig
from trainables.errors import InputError

__all__ = [
    "Experiment",
    "Resources",
    "difference",
    "dump_yaml",
    "load_experiment",
    "preset_text",
    "presets",
    "redact",
    "resolved",
    "resolved_yaml",
    "schema_markdown",
    "study_url",
]

# What may differ when a run is resumed. Not the epochs: trials of unequal length cannot share a front.
RESUMABLE = ("budget.trials", "budget.hours", "resources", "runtime", "run", "storage")


class Experiment(Config):
    """All that a run is determined by."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        max_length=80,
        description="name of the experiment and of its Optuna study (letters, digits, `.`, `_`, `-`)",
        json_schema_extra={"default": "the file's name"},
    )
    seed: int = Field(0, ge=0, description="seed of the sampler and of every trial")
    objectives: tuple[Objective, ...] = Field(
        (
            Objective(metric="val_accuracy", direction="maximize"),
            Objective(metric="latency_ms", direction="minimize"),
        ),
        description="two or more of `val_accuracy` (`accuracy`), `val_loss`, `latency_ms`, `flops`, `params`",
        json_schema_extra={"form": "list of metrics or {metric, direction}"},
    )
    constraints: tuple[Constraint, ...] = Field(
        (),
        description="limits such as `flops: '<= 0.6x'` (x: times the teacher's value), `params: '<= 100k'` "
        "(k, M, G), `val_accuracy: '>= 0.9'`",
        json_schema_extra={
            "form": "mapping of metrics to limits, or list of texts `flops <= 0.6x`",
            "default": "`{}`",
        },
    )
    sampler: SamplerConfig = Field(SamplerConfig(), description="what proposes the trials")
    warm_start: Literal["library", "teacher", "none"] = Field(
        "teacher",
        description="what trials start from. teacher: its weights in the kept parts; library: pre-distilled "
        "modules too; none: random weights",
    )
    run: RunConfig = Field(description="the run directory")
    data: DataConfig = Field(DataConfig(), description="the images")
    teacher: TeacherConfig = Field(TeacherConfig(), description="the network to distil")
    space: SpaceConfig = Field(SpaceConfig(), description="what may differ between trials")
    budget: BudgetConfig = Field(BudgetConfig(), description="how much is spent")
    resources: Resources = Field(Resources(), description="what one trial is given")
    runtime: RuntimeConfig = Field(RuntimeConfig(), description="how the machine computes")
    costs: CostsConfig = Field(CostsConfig(), description="how the cost table is measured")
    library: LibraryConfig = Field(LibraryConfig(), description="how the module library is distilled")
    storage: StorageConfig = Field(StorageConfig(), description="where the study is")

    @model_validator(mode="before")
    @classmethod
    def _default_run_dir(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        run = value.get("run")
        if run is None or (isinstance(run, dict) and run.get("dir") is None):
            return {**value, "run": {**(run or {}), "dir": f"runs/{value.get('name')}"}}
        return value

    @field_validator("objectives", mode="before")
    @classmethod
    def _list_of_objectives(cls, value: Any) -> Any:
        if not isinstance(value, (list, tuple)):
            raise ValueError(f"expected a list of at least two metrics, got {describe_value(value)}")
        return value

    @field_validator("objectives", mode="after")
    @classmethod
    def _distinct_objectives(cls, value: tuple[Objective, ...]) -> tuple[Objective, ...]:
        metrics = [objective.metric for objective in value]
        if len(set(metrics)) < len(metrics) or len(metrics) < 2:
            raise ValueError(f"expected at least two different metrics, got {describe_value(metrics)}")
        return value

    @field_validator("constraints", mode="before")
    @classmethod
    def _parse_constraints(cls, value: Any) -> tuple[Constraint, ...]:
        return parse_constraints(value)

    @field_serializer("constraints")
    def _write_constraints(self, value: tuple[Constraint, ...]) -> dict[str, str] | list[str]:
        texts: dict[str, str] = {limit.metric: f"{limit.op} {limit.amount}" for limit in value}
        # A metric with two limits does not fit into a mapping.
        return texts if len(texts) == len(value) else [limit.text for limit in value]


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
    faults += apply_overrides(data, overrides)
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


def _drop_empty_sections(data: dict[str, Any], model: type[BaseModel]) -> None:
    """A section whose keys are all commented out is null in YAML: it means the defaults."""
    for name, field in model.model_fields.items():
        section = field.annotation
        is_section = isinstance(section, type) and issubclass(section, BaseModel)
        if name in data and data[name] is None and (is_section or name == "constraints"):
            del data[name]
        elif isinstance(section, type) and is_section and isinstance(data.get(name), dict):
            _drop_empty_sections(data[name], section)


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
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.{os.getpid()}")
    part.write_text(resolved_yaml(experiment), encoding="utf-8")
    part.replace(target)


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


def schema_markdown() -> str:
    """Every key of the experiment file with type, default and meaning, one Markdown table per section."""
    from search.experiment.reference import tables

    return tables(Experiment)
