"""The built-in samplers from Optuna; the registry is `SAMPLERS` in `search.experiment.samplers`."""

from __future__ import annotations

import warnings
from typing import Any

import optuna
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler

from analysis.runs.optuna_adapter import generation_key
from search.experiment.samplers import SAMPLERS, SamplerKind


def make_sampler(name: str, seed: int, startup_trials: int) -> BaseSampler:
    """Create a sampler from its name in the experiment file.

    Raises:
        InputError: the name is unknown.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return SAMPLERS.get(name).make(seed, startup_trials)


def _tpe(seed: int, startup_trials: int) -> BaseSampler:
    # On a conditional two-objective toy problem (100 trials, 10 seeds) multivariate with groups reached the
    # largest hypervolume; multivariate alone collapsed on one seed.
    return TPESampler(multivariate=True, group=True, n_startup_trials=startup_trials, seed=seed)


def _nsga2(seed: int, startup_trials: int) -> BaseSampler:
    return NSGAIISampler(population_size=max(8, startup_trials), seed=seed)


def _generation(sampler: BaseSampler, completed: int) -> dict[str, Any]:
    """Return the generation of a complete trial; approximate: derived from the order of completion."""
    assert isinstance(sampler, NSGAIISampler)
    return {generation_key(): completed // (sampler.population_size or 1)}


def _gp(seed: int, startup_trials: int) -> BaseSampler:
    return GPSampler(n_startup_trials=startup_trials, seed=seed)


def _random(seed: int, startup_trials: int) -> BaseSampler:
    return RandomSampler(seed=seed)


TPE = SamplerKind(_tpe)
# NSGA-II samples its first generation itself. Its parents are complete trials; a parent with expected values
# would displace a real one (benchmarks/results/pruned_learning_nsga2.json: hypervolume 0.462 against 0.473).
NSGA2 = SamplerKind(_nsga2, startup=False, hears_of_stopped=False, recall=_generation)
# A proposal of GP takes seconds, and it does not learn from refused ones.
GP = SamplerKind(_gp, patience=3)
RANDOM = SamplerKind(_random, startup=False)
