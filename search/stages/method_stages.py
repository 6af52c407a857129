"""The stages of the methods: what their trials need made before the first of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

from search.experiment.experiment import Experiment
from search.experiment.ranges import Choices, Range, RangesOf
from search.run_dir.folder import Folder
from search.stages.prepare import Prepared
from search.stages.progress import Progress
from trainables.config import METHODS
from trainables.config_base import MethodConfig
from trainables.errors import InputError
from trainables.methods.base import Method, Setup
from trainables.training.stages import make_stages

STAGES = "stages"  # folder of the run directory for the results

Settings = tuple[str, MethodConfig]  # a method's name and settings


def stage_settings(experiment: Experiment) -> list[Settings]:
    """Return every combination of settings that the stages of a search depend on.

    Raises:
        InputError: a key that a stage depends on is searched over a range.
    """
    found: list[Settings] = []
    for name, ranges in experiment.space.methods.items():
        method: type[Method] = METHODS.get(name)
        keys = dict.fromkeys(key for stage in method.stages for key in stage.keys)
        if method.stages:
            found += [
                (name, method.Config.model_validate(values)) for values in _values(name, ranges, list(keys))
            ]
    return found


def _values(method: str, ranges: RangesOf, keys: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield the combinations of the values that `keys` can take."""
    options: list[tuple[Any, ...]] = []
    for key in keys:
        value = getattr(ranges, key)
        if isinstance(value, Range):
            raise InputError(
                f"space.method.{method}.{key}: expected a fixed value or {{choices: [...]}}, because a stage "
                f"before the trials is run for every value; got the range {value.low:g} to {value.high:g}"
            )
        if isinstance(value, Choices):
            value = value.choices
        options.append(value if isinstance(value, tuple) else (value,))
    for values in product(*options):
        yield dict(zip(keys, values, strict=True))


def with_stages(
    setup: Prepared, folder: Folder, settings: Sequence[Settings], progress: Progress | None = None
) -> Prepared:
    """Return `setup` with the results of the stages for `settings`, made or read from the run directory."""
    if not any(METHODS.get(name).stages for name, _ in settings):
        return setup
    folder.fetch(STAGES)
    shared = Setup.of(setup.teacher.model, setup.blocks, replace(setup.data, test=None), setup.runtime)
    made = make_stages(shared, settings, folder.path / STAGES, setup.experiment.seed, progress)
    folder.push()
    return replace(setup, stages=made)
