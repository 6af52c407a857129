"""Sections of the experiment file for the search: space, budget, sampler, resources, costs, storage."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from pydantic import (
    Field,
    PositiveFloat,
    PositiveInt,
    StrictFloat,
    field_validator,
    model_validator,
)

from analysis.runs.study_url import check_url
from search.experiment.method import MethodSpace
from search.experiment.objectives import extra_cost
from search.experiment.ranges import RangesOf, ranges_of
from search.experiment.samplers import SAMPLERS
from search.experiment.student import StudentSpace, student_fault
from search.experiment.validation_messages import Fault, nearest, raise_faults
from search.experiment.yaml12 import describe_value
from trainables.config import DEFAULT_METHOD, REPLACED, OptimConfig
from trainables.config_base import Config
from trainables.loss_config import LossConfig

MAX_WIDTH = 4.0
_LISTS = ("include", "exclude")


class RunConfig(Config):
    """Location of the run directory."""

    dir: str = Field(
        min_length=1, description="the run directory", json_schema_extra={"default": "`runs/<name>`"}
    )


if TYPE_CHECKING:
    LossSpace: TypeAlias = RangesOf
    OptimSpace: TypeAlias = RangesOf
else:
    LossSpace, OptimSpace = ranges_of(LossConfig), ranges_of(OptimConfig)


class SpaceConfig(Config):
    """The search space: what may differ between trials."""

    blocks: tuple[str, ...] = Field(
        (),
        description="teacher blocks that may be replaced, as shell patterns of names (`ama profile` lists "
        "them); a leading ! excludes; without an including pattern: all",
        json_schema_extra={"form": "list of patterns, or {include: [...], exclude: [...]}"},
    )
    widths: tuple[StrictFloat, ...] = Field(
        (0.25, 0.5, 1.0),
        description="widths of AMA modules, relative to the output channels, above 0 and at most "
        f"{MAX_WIDTH:g}; with `keep` they are the levels of every block",
        json_schema_extra={"form": "list of numbers"},
    )
    fuse: bool | Literal["search"] = Field(
        True, description="replace adjacent blocks of equal width by one module; search: try both"
    )
    train: Literal["all", "modules"] = Field(
        "all", description="all: train the kept parts of the teacher too; modules: keep them frozen"
    )
    student: StudentSpace = Field(
        (REPLACED,),
        description="the student's architecture: `teacher` (the teacher with replaced blocks), any other one "
        "that `teacher.arch` accepts (a separate student, with random weights), or a list (searched). For a "
        "separate student, levels of blocks are searched with the method `separate` alone, and `ama` has no "
        "feature term",
        json_schema_extra={"form": "teacher, architecture or list of them", "default": f"`{REPLACED}`"},
    )
    method: MethodSpace = Field(
        {DEFAULT_METHOD: None},
        description="distillation method: a name, a list of names (searched), or a mapping of names to "
        "settings and ranges; those of `ama` are in `space.loss`; your own: import:<module>:<class>",
        json_schema_extra={"form": "name, list of names, or mapping", "default": f"`{DEFAULT_METHOD}`"},
    )
    loss: LossSpace = Field(LossSpace(), description="weights of the loss parts of the method `ama`")
    optim: OptimSpace = Field(OptimSpace(), description="optimiser of a trial")

    @property
    def methods(self) -> dict[str, RangesOf]:
        """Return every method that trials may use, with its keys fixed or searched."""
        return {name: self.loss if ranges is None else ranges for name, ranges in self.method.items()}

    @property
    def separate(self) -> tuple[str, ...]:
        """Return the architectures of separate students."""
        return tuple(name for name in self.student if name != REPLACED)

    @model_validator(mode="after")
    def _fitting_students(self) -> SpaceConfig:
        if self.separate and self.train == "modules":
            expected = (
                "expected all: space.train: modules would freeze all of a separate student, got modules"
            )
            raise_faults([(("train",), expected)])
        if fault := student_fault(self.student, self.method):
            raise_faults([fault])
        return self

    @field_validator("blocks", mode="before")
    @classmethod
    def _patterns(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = [value]
        if isinstance(value, dict):
            faults: list[Fault] = [
                ((str(key),), f"unknown key; the nearest valid key is {nearest((str(key),), _LISTS)}")
                for key in value
                if key not in _LISTS
            ]
            faults += [
                ((key,), f"expected a list of patterns, got {describe_value(value[key])}")
                for key in _LISTS
                if not isinstance(value.get(key) or [], list)
            ]
            if faults:
                raise_faults(faults)
            exclude = [f"!{str(item).removeprefix('!')}" for item in value.get("exclude") or []]
            value = [*(value.get("include") or []), *exclude]
        if isinstance(value, (list, tuple)):
            empty = [
                ((str(i),), f"expected a pattern, got {describe_value(item)}")
                for i, item in enumerate(value)
                if not isinstance(item, str) or not item.strip("! ")
            ]
            if empty:
                raise_faults(empty)
        return value

    @field_validator("widths", mode="after")
    @classmethod
    def _ordered(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        faults: list[Fault] = [
            ((str(i),), f"expected a width above 0 and at most {MAX_WIDTH:g}, got {width:g}")
            for i, width in enumerate(value)
            if not 0 < width <= MAX_WIDTH
        ]
        if not value:
            faults.append(((), "expected at least one width, got an empty list"))
        if len(set(value)) < len(value):
            faults.append(((), f"expected distinct widths, got {describe_value(list(value))}"))
        if faults:
            raise_faults(faults)
        return tuple(sorted(value))

    @field_validator("fuse", mode="before")
    @classmethod
    def _fuse(cls, value: Any) -> Any:
        if not isinstance(value, bool) and value != "search":
            raise ValueError(f"expected true, false or search, got {describe_value(value)}")
        return value


class BudgetConfig(Config):
    """The budget of the search."""

    trials: PositiveInt = Field(48, description="number of trials; refused proposals do not count")
    epochs: PositiveInt = Field(10, description="epochs of a trial that is not stopped early")
    grace_epochs: PositiveInt = Field(
        1, description="first rung: no trial is stopped earlier; equal to epochs: no early stopping"
    )
    reduction_factor: float = Field(
        3.0,
        ge=2.0,
        le=100.0,
        description="eta of successive halving: about one in eta trials passes a rung, and each rung is eta "
        "times the one before",
    )
    first_share: float = Field(
        0.25,
        ge=0.0,
        le=1.0,
        description="with `warm_start: library`: share of trials proposed first: the best students by "
        "proxy, evenly spaced along the cost axis; the sampler proposes the rest",
    )
    hours: float | None = Field(
        None,
        gt=0.0,
        allow_inf_nan=False,
        description="stop the search after this many hours; null: no limit",
    )

    @model_validator(mode="after")
    def _grace(self) -> BudgetConfig:
        if self.grace_epochs > self.epochs:
            expected = f"expected at most budget.epochs, which is {self.epochs}, got {self.grace_epochs}"
            raise_faults([(("grace_epochs",), expected)])
        return self


class SamplerConfig(Config):
    """The sampler that proposes the trials."""

    name: str = Field(
        "tpe",
        description="Optuna's tpe, nsga2, gp or random, or your own (docs/extending.md)",
        json_schema_extra={"form": "tpe, nsga2, gp, random or your own"},
    )
    startup_trials: PositiveInt = Field(
        10, description="random proposals before tpe or gp models the space; nsga2: population size"
    )

    @field_validator("name", mode="after")
    @classmethod
    def _known(cls, value: str) -> str:
        SAMPLERS.check(value)
        return value

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value


class Resources(Config):
    """Resources of one trial, and how many trials run at once.

    `resources: auto` in an experiment is a short form of `concurrent: auto`.
    """

    cpu: PositiveFloat = Field(1.0, description="CPU cores of a trial")
    gpu: float = Field(0.0, ge=0.0, description="GPUs of a trial; 0.25 puts four trials on one GPU")
    concurrent: PositiveInt | Literal["auto"] | None = Field(
        None,
        description="trials at a time; null: as many as fit on the machine or cluster; auto (or "
        "`resources: auto`): measure before the first trial and choose `cpu` and `gpu` for the highest "
        "total throughput (images per second)",
    )

    @model_validator(mode="before")
    @classmethod
    def _auto(cls, value: Any) -> Any:
        return {"concurrent": "auto"} if value == "auto" else value

    @field_validator("cpu", "gpu", mode="after")
    @classmethod
    def _whole_above_one(cls, value: float) -> float:
        if value > 1 and value != int(value):  # Ray's rule; Ray would only complain at the first trial
            raise ValueError(f"expected a fraction of one or a whole number, got {value:g}")
        return value


class CostsConfig(Config):
    """Measurement of the cost table."""

    batch_size: PositiveInt = Field(32, description="images per batch when latency is measured")
    seconds: PositiveFloat = Field(
        20.0,
        description="seconds of latency measurement (less if that suffices, more for slow models)",
    )
    extra: tuple[str, ...] = Field(
        (),
        description="your own costs besides params, FLOPs and latency (docs/extending.md); objectives and "
        "constraints may name them",
        json_schema_extra={"form": "list of names"},
    )

    @field_validator("extra", mode="after")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        names = [extra_cost(text).name for text in value]
        if len(set(names)) < len(names):
            raise ValueError(f"expected different costs, got {describe_value(names)}")
        return value


class StorageConfig(Config):
    """Location of the study's database."""

    study: str | None = Field(
        None,
        repr=False,
        description="database URL; `${VAR}` is replaced from the environment; the variable AMA_STUDY_URL "
        "takes precedence; null: study.db (SQLite) in the run directory",
    )

    @field_validator("study", mode="after")
    @classmethod
    def _url(cls, value: str | None) -> str | None:
        return check_url(value) if value is not None else None
