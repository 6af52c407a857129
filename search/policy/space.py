"""The search space: define it as Optuna distributions, and convert parameters to trial configs.

A block's level is an integer, so that samplers can use the order: `level/<block>` is 0 for the narrowest
module, K-1 for the widest, K for keep. Settings of a method are named `<method>/<key>`, those of the
optimiser `optim/<key>`. With several methods, `method` selects one, and only its settings are sampled. With
several students, `student` selects one: the teacher with replaced blocks, or a separate student, for which
only parameters that have an effect are sampled. Values that the experiment fixes are not parameters.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import BaseTrial, FrozenTrial

from search.experiment.experiment import Experiment
from search.experiment.ranges import Choices, Range, RangesOf
from search.experiment.sections import SpaceConfig
from trainables.blocks.blocks import Block
from trainables.config import METHODS, REPLACED, DistillConfig, OptimConfig, StudentSpec, method_config
from trainables.config_base import hash_json
from trainables.errors import InputError
from trainables.loss_config import LossConfig
from trainables.registry import IMPORT
from trainables.student.spans import merged_widths

LEVEL, OPTIM, METHOD, STUDENT = "level/", "optim/", "method", "student"


@dataclass(frozen=True)
class SearchSpace:
    """The search space of an experiment for a teacher with these blocks."""

    experiment: Experiment
    blocks: tuple[str, ...]
    merged: Mapping[str, Mapping[float, float]] = field(default_factory=dict)
    flat: bool = False

    @classmethod
    def from_experiment(
        cls, experiment: Experiment, blocks: Sequence[Block], past: Iterable[FrozenTrial] = ()
    ) -> SearchSpace:
        """Create the space over `blocks`: the teacher's replaceable blocks, in execution order.

        A resumed search of version 0.1 keeps its parameter names without prefix (`alpha` for `ama/alpha`),
        because renamed parameters would be new ones to its sampler. `past` are the rows of the record.

        Levels of a block with identical modules (see `merged_widths`) give the same student. Its config has
        the smallest of these widths, so that it has one price and one key, and is not trained twice.
        """
        widths = experiment.space.widths
        merged = {block.name: merged_widths(block, widths) for block in blocks}
        return cls(experiment, tuple(merged), merged, any(map(_is_flat, past)))

    @property
    def keep(self) -> int:
        """The level that keeps the teacher's block: one above the widest module."""
        return len(self.experiment.space.widths)

    @cached_property
    def distributions(self) -> dict[str, BaseDistribution]:
        """Distributions by parameter name: levels in block order, `fuse`, loss and optimiser settings."""
        space = self.experiment.space
        found: dict[str, BaseDistribution] = {
            LEVEL + name: IntDistribution(0, self.keep) for name in self.blocks
        }
        if space.fuse == "search":
            found["fuse"] = CategoricalDistribution((True, False))
        if len(space.student) > 1:
            found[STUDENT] = CategoricalDistribution(space.student)
        if len(space.methods) > 1:
            found[METHOD] = CategoricalDistribution(tuple(space.methods))
        for prefix, ranges in _sections(space):
            for name in type(ranges).model_fields:
                if distribution := _distribution(getattr(ranges, name)):
                    found[name if self.flat else prefix + name] = distribution
        if not space.separate:
            return found
        chosen = [{STUDENT: s, METHOD: m} for s in space.student for m in space.methods]
        used = {name for choice in chosen for name in self._active(choice, found)}
        return {name: distribution for name, distribution in found.items() if name in used}

    def active(self, params: Mapping[str, Any]) -> tuple[str, ...]:
        """Return the names of the parameters that have an effect, given student and method in `params`."""
        return self._active(params, self.distributions)

    def _active(self, params: Mapping[str, Any], names: Iterable[str]) -> tuple[str, ...]:
        methods, student = self.experiment.space.methods, self._student(params)
        method = params.get(METHOD) or next(iter(methods))
        others = [_prefix(name) for name in methods if len(methods) > 1 and name != params.get(METHOD)]
        unused = _without_effect(method) if student != REPLACED else ()
        return tuple(name for name in names if not name.startswith((*others, *unused)))

    def _student(self, params: Mapping[str, Any]) -> str:
        return _student(params, self.experiment)

    def suggest(self, trial: BaseTrial) -> dict[str, Any]:
        """Sample every parameter from `trial` in order; only those that have an effect (see `active`)."""
        dists, params = self.distributions, {}
        for name in (STUDENT, METHOD):
            if name in dists:
                params[name] = _suggest(trial, name, dists[name])
        for name in self.active(params):
            if name not in params:
                params[name] = _suggest(trial, name, dists[name])
        return params

    def to_config(self, params: Mapping[str, Any], seed: int) -> DistillConfig:
        """Convert parameters to a trial config; of identical modules, use the smallest width."""
        config = to_config(params, self.experiment, seed)
        least = {
            name: self.merged.get(name, {}).get(width, width) for name, width in config.student.widths.items()
        }
        if least == config.student.widths:
            return config
        return config.model_copy(update={"student": config.student.model_copy(update={"widths": least})})

    def student_key(self, config: DistillConfig) -> str:
        """Return `student_key(config)`."""
        return student_key(config)

    def params_of(self, config: DistillConfig) -> dict[str, Any]:
        """Return the parameters that `to_config` converts to `config`.

        Raises:
            InputError: `config` is outside this space; the message names the first such setting.
        """
        space = self.experiment.space
        widths, values = space.widths, _settings(config, self.flat)
        if config.student.name not in space.student:
            raise InputError(
                f"student: expected one of {', '.join(space.student)}, got {config.student.name!r}"
            )
        chosen = {STUDENT: config.student.name, METHOD: config.method}
        for name, width in config.student.widths.items():
            if name not in self.blocks or width not in widths:
                raise InputError(
                    f"{name} at width {width:g}: expected one of the blocks {', '.join(self.blocks)} "
                    f"at one of the widths {', '.join(format(w, 'g') for w in widths)}"
                )
        params: dict[str, Any] = {}
        for name in self.active(chosen):
            distribution = self.distributions[name]
            if name.startswith(LEVEL):
                width = config.student.widths.get(name.removeprefix(LEVEL), 0.0)
                params[name] = widths.index(width) if width else self.keep
            else:
                params[name] = values[name]
                if not _within(distribution, values[name]):
                    raise InputError(f"{name}: expected a value of {distribution}, got {values[name]!r}")
        if config.method not in self.experiment.space.methods:
            raise InputError(
                f"method: expected one of {', '.join(self.experiment.space.methods)}, got {config.method!r}"
            )
        fixed = _fixed(self.experiment, config.method, self.flat)
        for name in self._active(chosen, fixed):
            if values[name] != (value := fixed[name]):
                raise InputError(f"{name}: the experiment fixes it at {value!r}, got {values[name]!r}")
        return params

    def size(self) -> str:
        """Describe the size of the space, e.g. `4^9 = 262,144 students × 2 (fuse) × 4 continuous ranges`."""
        widths = self.experiment.space.widths
        levels = [len(set(self.merged.get(name, {}).values()) or widths) + 1 for name in self.blocks]
        powers = [f"{count}^{levels.count(count)}" for count in sorted(set(levels))]
        students = self.experiment.space.student
        what = "students" if REPLACED in students else "sets of modules in the teacher"
        searched = any(name.startswith(LEVEL) for name in self.distributions)
        parts = [f"{'·'.join(powers)} = {_count(math.prod(levels))} {what}"] if searched else []
        if separate := self.experiment.space.separate:
            several = "" if len(separate) == 1 else "s"
            parts = [" + ".join([*parts, f"{len(separate)} separate student{several}"])]
        continuous = 0
        for name, dist in self.distributions.items():
            if name.startswith(LEVEL) or name == STUDENT:
                continue
            if isinstance(dist, CategoricalDistribution):
                parts.append(f"{len(dist.choices)} ({name})")
            elif isinstance(dist, IntDistribution):
                parts.append(f"{dist.high - dist.low + 1} ({name})")
            else:
                continuous += 1
        if continuous:
            parts.append(f"{continuous} continuous range{'s' if continuous > 1 else ''}")
        return " × ".join(parts)


def to_config(params: Mapping[str, Any], experiment: Experiment, seed: int) -> DistillConfig:
    """Convert `params` to the config of a trial; other settings have the experiment's fixed values.

    Args:
        params: levels (`level/<block>`; a kept block may be left out) and the searched settings.
        experiment: widths, fixed settings, epochs and warm start.
        seed: seed of the trial.
    """
    widths = experiment.space.widths
    levels = {name.removeprefix(LEVEL): level for name, level in params.items() if name.startswith(LEVEL)}
    assert all(0 <= level <= len(widths) for level in levels.values()), f"a level outside 0..{len(widths)}"
    space = experiment.space
    method = params.get(METHOD) or next(iter(space.methods))
    values = _fixed(experiment, method) | {
        _spaced(name, method): value for name, value in params.items() if not name.startswith(LEVEL)
    }
    prefix, student = _prefix(method), _student(params, experiment)
    loss = {name.removeprefix(prefix): v for name, v in values.items() if name.startswith(prefix)}
    if student != REPLACED:
        loss |= method_config(method).for_separate
    return DistillConfig(
        student=StudentSpec(
            arch=None if student == REPLACED else student,
            widths={name: widths[level] for name, level in levels.items() if level < len(widths)},
            fuse=values["fuse"] if levels or student == REPLACED else True,
        ),
        method=method,
        loss=loss,  # type: ignore[arg-type]
        optim=OptimConfig(**{name: values[OPTIM + name] for name in OptimConfig.model_fields}),
        epochs=experiment.budget.epochs,
        seed=seed,
        train=experiment.space.train,
        warm_start=experiment.warm_start,
    )


def student_key(config: DistillConfig) -> str:
    """Return a canonical text of a trial's config without the seed; equal keys mean duplicates."""
    widths, arch = config.student.widths, config.student.arch
    # Without two modules of equal width, `fuse` has no effect.
    fuse = config.student.fuse and len(set(widths.values())) < len(widths)
    used = {name: value for name, value in config.loss.content().items() if name not in config.loss.unused()}
    return hash_json(
        {
            "student": {"widths": widths, "fuse": fuse, **({"arch": arch} if arch else {})},
            "method": config.method,
            "loss": used,
            "optim": config.optim.content(),
        }
    )


def _is_flat(row: FrozenTrial) -> bool:
    """Return True if a row's parameters are named as in version 0.1."""
    return not OptimConfig.model_fields.keys().isdisjoint(row.params) or not (
        LossConfig.model_fields.keys().isdisjoint(row.params)
    )


def _student(params: Mapping[str, Any], experiment: Experiment) -> str:
    """Return the student that `params` choose, as in `space.student`."""
    return str(params.get(STUDENT) or experiment.space.student[0])


def _without_effect(method: str) -> list[str]:
    """Return the parameters, or their prefixes, that have no effect with a separate student."""
    unused = [_prefix(method) + key for key in method_config(method).for_separate]
    return unused if METHODS.get(method).modules_in_teacher else [LEVEL, "fuse", *unused]


def _spaced(name: str, method: str) -> str:
    """Add the prefix to a setting's name of version 0.1."""
    if "/" in name or name in ("fuse", METHOD, STUDENT):
        return name
    return (OPTIM if name in OptimConfig.model_fields else _prefix(method)) + name


def _prefix(method: str) -> str:
    """Return the prefix of a method's settings: its name, or the class name of an imported method."""
    return f"{METHODS.get(method).name if method.startswith(IMPORT) else method}/"


def _sections(space: SpaceConfig) -> list[tuple[str, RangesOf]]:
    """Return the sections of settings, each with the prefix of its parameters."""
    return [*((_prefix(name), ranges) for name, ranges in space.methods.items()), (OPTIM, space.optim)]


def _fixed(experiment: Experiment, method: str, flat: bool = False) -> dict[str, Any]:
    """Return the settings that the experiment fixes for trials of a method."""
    space = experiment.space
    fixed: dict[str, Any] = {} if space.fuse == "search" else {"fuse": space.fuse}
    for prefix, ranges in _sections(space):
        for name in type(ranges).model_fields if prefix in (OPTIM, _prefix(method)) else ():
            value = getattr(ranges, name)
            if not isinstance(value, (Range, Choices, tuple)):
                fixed[name if flat else prefix + name] = value
    return fixed


def _settings(config: DistillConfig, flat: bool = False) -> dict[str, Any]:
    """Return all settings of a trial by parameter name."""
    prefix = "" if flat else _prefix(config.method)
    values: dict[str, Any] = {
        "fuse": config.student.fuse,
        METHOD: config.method,
        STUDENT: config.student.name,
    }
    values |= {prefix + name: value for name, value in config.loss.model_dump().items()}
    return values | {("" if flat else OPTIM) + n: v for n, v in config.optim.model_dump().items()}


def _distribution(value: Any) -> BaseDistribution | None:
    """Return the distribution of a searched value; None for a fixed one."""
    if isinstance(value, Choices):
        return CategoricalDistribution(value.choices)
    if isinstance(value, tuple):
        return CategoricalDistribution(value)
    if isinstance(value, Range):
        if isinstance(value.low, int) and isinstance(value.high, int):
            return IntDistribution(value.low, value.high, log=value.log)
        return FloatDistribution(value.low, value.high, log=value.log)
    return None


def _within(dist: BaseDistribution, value: Any) -> bool:
    if isinstance(dist, CategoricalDistribution):
        return value in dist.choices
    assert isinstance(dist, (IntDistribution, FloatDistribution))
    return bool(dist.low <= value <= dist.high)


def _suggest(trial: BaseTrial, name: str, dist: BaseDistribution) -> Any:
    if isinstance(dist, CategoricalDistribution):
        return trial.suggest_categorical(name, dist.choices)
    if isinstance(dist, IntDistribution):
        return trial.suggest_int(name, dist.low, dist.high, log=dist.log)
    assert isinstance(dist, FloatDistribution)
    return trial.suggest_float(name, dist.low, dist.high, log=dist.log)


def _count(number: int) -> str:
    """Format a count: exactly if it is short, else in scientific notation."""
    if number < 10**9:
        return f"{number:,}"
    exponent = int(math.log10(number))
    return f"{number / 10**exponent:.1f}e{exponent}"
