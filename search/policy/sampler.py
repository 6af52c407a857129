"""Optuna samplers by their name in the experiment file."""

from __future__ import annotations

import warnings

import optuna
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler

from trainables.errors import InputError

# Proposals refused in a row before a random one is taken instead: a sampler that has converged on a place it
# knows would propose it for ever. Each costs a row of the record (about 10 ms), and a proposal of GP, which
# learns nothing from refused ones, costs seconds.
PATIENCE = {"tpe": 20, "nsga2": 20, "gp": 3, "random": 20}


def make_sampler(name: str, seed: int, startup_trials: int) -> BaseSampler:
    """An Optuna sampler by its name in the experiment file: tpe, nsga2, gp or random."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if name == "tpe":
            # On a conditional two-objective toy (100 trials, 10 seeds) multivariate with groups reached the
            # largest hypervolume; multivariate alone collapsed on one seed.
            return TPESampler(multivariate=True, group=True, n_startup_trials=startup_trials, seed=seed)
        if name == "nsga2":
            return NSGAIISampler(population_size=max(8, startup_trials), seed=seed)
        if name == "gp":
            return GPSampler(n_startup_trials=startup_trials, seed=seed)
        if name == "random":
            return RandomSampler(seed=seed)
    raise InputError(f"sampler: expected tpe, nsga2, gp or random, got {name!r}")
