"""Which parameters matter for which objective, and what replacing each block does.

Importance is Optuna's fANOVA (Hutter, Hoos and Leyton-Brown 2014): the share of an objective's variance over
the searched space that a parameter explains by itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import optuna
import pandas as pd
from optuna.importance import FanovaImportanceEvaluator, get_param_importances
from optuna.trial import FrozenTrial, TrialState, create_trial

from analysis.metrics import COST_METRICS
from analysis.trials import Run

MIN_TRIALS = 10
MAX_TRIALS = 256
_TREES = 32
_SEED = 0


@dataclass(frozen=True)
class Importance:
    """Importance of every parameter for one metric, largest first, summing to 1; empty with a reason."""

    metric: str
    values: dict[str, float]
    note: str


def importances(run: Run) -> tuple[Importance, ...]:
    """Importance of every searched parameter for every objective, from the fully trained trials.

    fANOVA's cost grows with the square of the trials: of more than MAX_TRIALS an even sample is used.
    Deterministic. With too few trials, or an objective that is the same in all, `values` is empty and `note`
    says why; otherwise `note` says what it was computed from.
    """
    trials = [t for t in run.trials if t.state is TrialState.COMPLETE and np.isfinite(t.values).all()]
    last = max(len(trials) - 1, 0)
    chosen = [trials[i] for i in sorted({round(x) for x in np.linspace(0, last, MAX_TRIALS)}) if trials]
    found = []
    for i, metric in enumerate(run.metrics):
        reason = _too_little(trials, i)
        if reason:
            found.append(Importance(metric, {}, reason))
            continue
        note = f"fANOVA over {len(chosen)} of {len(trials)} fully trained trials"
        found.append(Importance(metric, _fanova(chosen, i), note))
    return tuple(found)


def _too_little(trials: list[FrozenTrial], objective: int) -> str:
    if len(trials) < MIN_TRIALS:
        return f"needs {MIN_TRIALS} fully trained trials, there are {len(trials)}"
    if len({t.values[objective] for t in trials}) == 1:
        return "has the same value in every trial"
    if not any(len({t.params.get(name) for t in trials}) > 1 for name in trials[0].params):
        return "no parameter varied"
    return ""


def _fanova(trials: list[FrozenTrial], objective: int) -> dict[str, float]:
    """Importances over a study of its own, without the attributes that make the real one slow to copy."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # else it logs that it made a study
    try:
        study = optuna.create_study()
    finally:
        optuna.logging.set_verbosity(verbosity)
    study.add_trials(
        [
            create_trial(params=t.params, distributions=t.distributions, value=t.values[objective])
            for t in trials
        ]
    )
    evaluator = FanovaImportanceEvaluator(n_trees=_TREES, seed=_SEED)
    return {name: float(v) for name, v in get_param_importances(study, evaluator=evaluator).items()}


def block_effects(run: Run) -> pd.DataFrame:
    """What each block's level goes with, over the fully trained trials.

    Returns:
        One row a block and level, in the order of the blocks, levels ascending: block, level, width (NaN for
        kept), trials, then for each of val_accuracy and the costs `<metric>` (mean over the trials with this
        level) and `<metric>_effect`: the change against keeping the block with all other blocks as they are,
        by ridge regression on all levels at once. Means mislead where the search preferred some combinations;
        effects do not, as far as blocks add up. NaN where no trial has the level.
    """
    table = run.frame()
    table = table[table["state"] == "COMPLETE"]
    blocks = [b["name"] for b in run.blocks if f"level/{b['name']}" in table]
    keep = len(run.widths)
    names = [f"level/{block}" for block in blocks]
    # A parameter a trial lacks means the block was kept: that is what a spec without the block says.
    levels = table[names].fillna(keep).to_numpy(dtype=np.int64)  # (trials, blocks)
    cells = [(b, level) for b in range(len(blocks)) for level in range(keep + 1)]
    used = (
        np.stack([levels[:, b] == level for b, level in cells], axis=1) if cells else np.zeros((0, 0), bool)
    )
    rows = pd.DataFrame(
        {
            "block": [blocks[b] for b, _ in cells],
            "level": [level for _, level in cells],
            "width": [run.widths[level] if level < keep else np.nan for _, level in cells],
            "trials": used.sum(axis=0).astype(int),
        }
    )
    kept = np.array([level == keep for _, level in cells], dtype=bool)
    for metric in ("val_accuracy", *COST_METRICS):
        values = table[metric].to_numpy(dtype=np.float64)
        rows[metric] = [float(np.nanmean(values[use])) if _any(values[use]) else np.nan for use in used.T]
        rows[f"{metric}_effect"] = _effects(used, kept, values)
    return rows


def _any(values: np.ndarray) -> bool:
    return bool(np.isfinite(values).any())


def _effects(used: np.ndarray, kept: np.ndarray, values: np.ndarray, ridge: float = 0.1) -> np.ndarray:
    """Ridge coefficients (cells,) of the level indicators `used` (trials, cells); 0 for kept levels."""
    known = np.isfinite(values)
    effects = np.where(used.sum(axis=0) > 0, 0.0, np.nan)
    open_cells = np.flatnonzero(~kept & (used.sum(axis=0) > 0))
    if known.sum() < 2 or len(open_cells) == 0:
        return effects
    design = np.column_stack([np.ones(int(known.sum())), used[known][:, open_cells].astype(float)])
    penalty = ridge * np.eye(design.shape[1])
    penalty[0, 0] = 0.0  # the intercept, the student that keeps every block, is not pulled to zero
    target = values[known]
    effects[open_cells] = np.linalg.solve(design.T @ design + penalty, design.T @ target)[1:]
    return effects
