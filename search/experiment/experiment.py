"""The experiment: one YAML file that describes a search; validated completely before anything starts.

`search.experiment.load` reads it from a file or a preset. This module imports neither torch nor Ray.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, Literal

from pydantic import Field, ModelWrapValidatorHandler, field_serializer, field_validator, model_validator

from analysis.metrics import COST_METRICS, Metric
from search.experiment.objectives import (
    Constraint,
    Objective,
    extra_cost,
    own_score,
    parse_constraints,
    with_extra_costs,
)
from search.experiment.sections import (
    BudgetConfig,
    CostsConfig,
    Resources,
    RunConfig,
    SamplerConfig,
    SpaceConfig,
    StorageConfig,
)
from search.experiment.validation_messages import raise_faults
from search.experiment.yaml12 import describe_value
from trainables.config import (
    DEFAULT_METHOD,
    REPLACED,
    DataConfig,
    LibraryConfig,
    RuntimeConfig,
    TeacherConfig,
)
from trainables.config_base import Config
from trainables.data.sets.data_set import DATA_SETS
from trainables.errors import InputError


class Experiment(Config):
    """All settings of a run.

    Example:
        experiment = load_experiment("digits", ["budget.trials=12"])
        print(experiment.budget, experiment.space.widths, [o.metric for o in experiment.objectives])
    """

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
        description="two or more of `val_accuracy` (`accuracy`), `val_loss`, `latency_ms`, `flops`, `params` "
        "or your own: a cost in `costs.extra`, or a metric of predictions (docs/extending.md)",
        json_schema_extra={"form": "list of metrics or {metric, direction}"},
    )
    constraints: tuple[Constraint, ...] = Field(
        (),
        description="limits such as `flops: '<= 0.6x'` (x: times the teacher), `params: '<= 100k'` "
        "(k, M, G), `val_accuracy: '>= 0.9'`",
        json_schema_extra={
            "form": "mapping of metrics to limits, or list of texts `flops <= 0.6x`",
            "default": "`{}`",
        },
    )
    sampler: SamplerConfig = Field(SamplerConfig(), description="sampler that proposes the trials")
    warm_start: Literal["library", "teacher", "none"] = Field(
        "teacher",
        description="initial weights of a trial. teacher: kept parts from the teacher; library: also "
        "pre-distilled modules; none: random weights",
    )
    run: RunConfig = Field(description="the run directory")
    data: DataConfig = Field(DataConfig(), description="the images")
    teacher: TeacherConfig = Field(TeacherConfig(), description="the network to distil")
    space: SpaceConfig = Field(SpaceConfig(), description="search space")
    budget: BudgetConfig = Field(BudgetConfig(), description="budget of the search")
    resources: Resources = Field(Resources(), description="resources of one trial")
    runtime: RuntimeConfig = Field(RuntimeConfig(), description="device, precision, threads and the like")
    costs: CostsConfig = Field(CostsConfig(), description="measurement of the cost table")
    library: LibraryConfig = Field(LibraryConfig(), description="distillation of the module library")
    storage: StorageConfig = Field(StorageConfig(), description="database of the study")

    @property
    def uses_library(self) -> bool:
        """Whether trials start from the module library; separate students cannot."""
        return self.warm_start == "library" and REPLACED in self.space.student

    @property
    def scores(self) -> tuple[str, ...]:
        """Return the texts that load the user's own metrics of predictions."""
        sources = [*(o.source for o in self.objectives), *(limit.source for limit in self.constraints)]
        return tuple(dict.fromkeys(source for source in sources if source))

    @cached_property
    def own_metrics(self) -> tuple[Metric, ...]:
        """Return the user's own metrics of predictions and the extra costs."""
        return (*map(own_score, self.scores), *map(extra_cost, self.costs.extra))

    @property
    def cost_metrics(self) -> tuple[str, ...]:
        """Return the metrics that are known before a trial trains."""
        return (*COST_METRICS, *(metric.name for metric in self.own_metrics if metric.kind == "cost"))

    @model_validator(mode="wrap")
    @classmethod
    def _with_extra_costs(cls, value: Any, validate: ModelWrapValidatorHandler[Experiment]) -> Experiment:
        """Validate objectives and constraints with the extra costs of the section `costs` known."""
        costs = value.get("costs") if isinstance(value, dict) else None
        texts = costs.get("extra") if isinstance(costs, dict) else None
        found = {}
        for text in texts if isinstance(texts, (list, tuple)) else ():
            try:
                found[text] = extra_cost(text)
            except InputError:
                continue  # the section's own validator reports it
        with with_extra_costs(found):
            return validate(value)

    @field_validator("data", mode="after")
    @classmethod
    def _known_data_set(cls, value: DataConfig) -> DataConfig:
        try:
            DATA_SETS.check(value.name)
        except InputError as error:
            raise_faults([(("name",), str(error))])
        return value

    @model_validator(mode="after")
    def _distinct_own_metrics(self) -> Experiment:
        names = [metric.name for metric in self.own_metrics]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"expected metrics of different names, got {', '.join(twice)} twice")
        return self

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

    @model_validator(mode="after")
    def _kept_parts_are_trained(self) -> Experiment:
        if self.warm_start == "none" and self.space.train == "modules":
            expected = (
                "expected teacher or library, got none: with space.train: modules the kept parts stay "
                "frozen, and none makes them random; or set space.train to all"
            )
            raise_faults([(("warm_start",), expected)])
        return self

    @model_validator(mode="after")
    def _a_library_is_there(self) -> Experiment:
        wirings = getattr(self.space.loss, "wiring")  # noqa: B009 - the keys of a section are made at run time
        wirings = {wirings} if isinstance(wirings, str) else set(wirings)
        replaced = DEFAULT_METHOD in self.space.method and REPLACED in self.space.student
        if "reachable" in wirings and replaced and self.warm_start != "library":
            expected = (
                f"expected library, got {self.warm_start}: with space.loss.wiring: reachable the targets are "
                "mixed with the maps of a library's modules; or leave reachable out"
            )
            raise_faults([(("warm_start",), expected)])
        return self

    @field_serializer("constraints")
    def _write_constraints(self, value: tuple[Constraint, ...]) -> dict[str, str] | list[str]:
        pairs = [(limit.source or limit.metric, f"{limit.op} {limit.amount}") for limit in value]
        texts = dict(pairs)
        # A metric with two limits needs the list form.
        return texts if len(texts) == len(value) else [f"{metric} {limit}" for metric, limit in pairs]
