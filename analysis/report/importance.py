"""Compute the importance of parameters for each objective, and the effect of replacing each block.

Importance is Optuna's fANOVA (Hutter, Hoos and Leyton-Brown 2014): the share of an objective's variance over
the searched space that a parameter explains by itself. Costs are known for all proposals, trained or not, and
depend only on the student. So their importance is computed from all proposals, for levels and fusing.

fANOVA needs every parameter in every trial. If several methods were searched, all trials are used for the
common parameters, including the choice of the method, and each method's trials for its own settings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import optuna
import pandas as pd
from optuna.importance import FanovaImportanceEvaluator, get_param_importances
from optuna.trial import FrozenTrial, TrialState, create_trial

from analysis.runs.parameters import METHOD, REPLACED, STUDENT, method_of, student_of
from analysis.runs.run import Run

MIN_TRIALS = 10
MAX_TRIALS = 256
_TREES = 32
_SEED = 0


@dataclass(frozen=True)
class Importance:
    """Importance of every parameter for one metric, largest first, with sum 1; or empty with a reason.

    `method` is the label of the method whose trials were used; "": all trials were used.
    """

    metric: str
    values: dict[str, float]
    note: str
    method: str = ""


def importances(run: Run) -> tuple[Importance, ...]:
    """Compute the importance of every searched parameter for every objective.

    For accuracy and loss, it is computed from the fully trained trials, and for several methods also from
    those of each method. For costs, it is computed from all priced proposals, and only for parameters that
    influence costs. fANOVA's run time grows with the square of the number of trials, so of more than
    MAX_TRIALS an even sample is used. The result is deterministic. With too few trials, or a constant
    objective, `values` is empty and `note` gives the reason; otherwise `note` describes the trials used.
    """
    found = []
    methods = run.methods if METHOD in run.parameters else {}
    for i, metric in enumerate(run.metrics):
        cost = metric in run.costs
        kind = "priced proposals" if cost else "fully trained trials"
        values = [_price(trial, metric) if cost else _result(trial, i) for trial in run.rows]
        known = [(trial, v) for trial, v in zip(run.rows, values, strict=True) if v is not None]
        overall = _of(metric, known, kind, student=cost)
        if methods and not cost and overall.values:
            overall = replace(overall, note=f"{overall.note}; what all methods share")
        found.append(overall)
        for name, label in {} if cost else methods.items():
            own = [(trial, v) for trial, v in known if method_of(trial) == name]
            found.append(_of(metric, own, f"{kind} of {label}", method=label))
    return tuple(found)


def _of(
    metric: str,
    known: Sequence[tuple[FrozenTrial, float]],
    kind: str,
    *,
    student: bool = False,
    method: str = "",
) -> Importance:
    """Compute importances for one metric and the parameters of all these trials, described by `kind`."""
    places = {round(x) for x in np.linspace(0, max(len(known) - 1, 0), MAX_TRIALS)} if known else ()
    chosen = [known[place] for place in sorted(places)]
    shared = set.intersection(*(set(trial.params) for trial, _ in chosen)) if chosen else set()
    if student:
        shared = {name for name in shared if name.startswith("level/") or name in ("fuse", STUDENT)}
    if method:
        shared.discard(METHOD)  # the same in all of them
    bare = [_bare(trial, value, shared) for trial, value in chosen]
    reason = _too_little([v for _, v in known], bare, kind)
    note = reason or f"fANOVA over {len(bare)} of {len(known)} {kind}"
    return Importance(metric, {} if reason else _fanova(bare), note, method)


def _result(trial: FrozenTrial, objective: int) -> float | None:
    """Return an objective of a fully trained trial, else None."""
    if trial.state is not TrialState.COMPLETE or not np.isfinite(trial.values).all():
        return None
    return float(trial.values[objective])


def _price(trial: FrozenTrial, metric: str) -> float | None:
    """Return a cost of a proposal, if known."""
    price = (trial.user_attrs.get("costs") or {}).get(metric)
    return None if price is None or not np.isfinite(price) else float(price)


def _bare(trial: FrozenTrial, value: float, names: set[str]) -> FrozenTrial:
    """Return a trial with this value and only these parameters."""
    params = {name: chosen for name, chosen in trial.params.items() if name in names}
    return create_trial(
        params=params, distributions={name: trial.distributions[name] for name in params}, value=value
    )


def _too_little(values: list[float], chosen: list[FrozenTrial], kind: str) -> str:
    if len(values) < MIN_TRIALS:
        return f"needs {MIN_TRIALS} {kind}, there are {len(values)}"
    if len(set(values)) == 1:
        return "has the same value in every trial"
    if not any(len({t.params.get(name) for t in chosen}) > 1 for name in chosen[0].params):
        return "no parameter varied"
    return ""


def _fanova(trials: list[FrozenTrial]) -> dict[str, float]:
    """Compute importances in a study of only these trials, without attributes (they are slow to copy)."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # else Optuna logs the creation of the study
    try:
        study = optuna.create_study()
    finally:
        optuna.logging.set_verbosity(verbosity)
    study.add_trials(trials)
    evaluator = FanovaImportanceEvaluator(n_trees=_TREES, seed=_SEED)
    return {name: float(v) for name, v in get_param_importances(study, evaluator=evaluator).items()}


def block_effects(run: Run) -> pd.DataFrame:
    """Compute the effect of each block's level on accuracy (fully trained trials) and costs (all proposals).

    Separate students have no blocks of the teacher: their trials are left out.

    Returns:
        One row per block and level, in the order of the blocks, levels ascending: block, level, width (NaN
        for kept), trials (number of fully trained ones). Then, for val_accuracy and each cost, `<metric>`
        (its mean over these trials) and `<metric>_effect`: the change relative to keeping the block, with all
        other blocks equal, by ridge regression on all levels at once (for costs over all priced proposals).
        Means are misleading if the search preferred some combinations; effects are not, if blocks are
        additive. NaN if no trial has the level.
    """
    table = run.trials
    table = table[table["number"].isin([t.number for t in run.rows if student_of(t) == REPLACED])]
    complete = (table["state"] == "COMPLETE").to_numpy()
    searched = [b["name"] for b in run.blocks if f"level/{b['name']}" in table]
    blocks = searched if len(table) or not run.rows else []
    keep = len(run.widths)
    names = [f"level/{block}" for block in blocks]
    # A trial without the parameter kept the block, as a spec without the block does.
    levels = table[names].fillna(keep).to_numpy(dtype=np.int64)  # (trials, blocks)
    cells = [(b, level) for b in range(len(blocks)) for level in range(keep + 1)]
    used = np.zeros((len(table), len(cells)), dtype=bool)
    for i, (b, level) in enumerate(cells):
        used[:, i] = levels[:, b] == level
    rows = pd.DataFrame(
        {
            "block": [blocks[b] for b, _ in cells],
            "level": [level for _, level in cells],
            "width": [run.widths[level] if level < keep else np.nan for _, level in cells],
            "trials": used[complete].sum(axis=0).astype(int),
        }
    )
    kept = np.array([level == keep for _, level in cells], dtype=bool)
    for metric in ("val_accuracy", *run.costs):
        values = table[metric].to_numpy(dtype=np.float64)
        means = [values[use & complete] for use in used.T]
        rows[metric] = [float(np.nanmean(v)) if np.isfinite(v).any() else np.nan for v in means]
        known = np.isfinite(values) & (complete if metric == "val_accuracy" else True)
        rows[f"{metric}_effect"] = _effects(used[known], kept, values[known])
    return rows


def _effects(used: np.ndarray, kept: np.ndarray, values: np.ndarray, ridge: float = 0.1) -> np.ndarray:
    """Ridge coefficients (cells,) of the level indicators `used` (trials, cells); 0 for kept levels."""
    effects = np.where(used.sum(axis=0) > 0, 0.0, np.nan)
    open_cells = np.flatnonzero(~kept & (used.sum(axis=0) > 0))
    if len(values) < 2 or len(open_cells) == 0:
        return effects
    design = np.column_stack([np.ones(len(values)), used[:, open_cells].astype(float)])
    penalty = ridge * np.eye(design.shape[1])
    penalty[0, 0] = 0.0  # the intercept, the student that keeps every block, is not pulled to zero
    effects[open_cells] = np.linalg.solve(design.T @ design + penalty, design.T @ values)[1:]
    return effects
