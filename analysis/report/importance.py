"""Which parameters matter for which objective, and what replacing each block does.

Importance is Optuna's fANOVA (Hutter, Hoos and Leyton-Brown 2014): the share of an objective's variance over
the searched space that a parameter explains by itself. A cost is known of every proposal, trained or not, and
depends on the student alone: it is explained from all of them, by levels and fusing.

fANOVA needs every parameter in every trial. Where several methods were searched, all trials together explain
what they share, the choice of the method included, and each method's trials explain its own settings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import optuna
import pandas as pd
from optuna.importance import FanovaImportanceEvaluator, get_param_importances
from optuna.trial import FrozenTrial, TrialState, create_trial

from analysis.runs.parameters import METHOD, method_of
from analysis.runs.run import Run

MIN_TRIALS = 10
MAX_TRIALS = 256
_TREES = 32
_SEED = 0


@dataclass(frozen=True)
class Importance:
    """Importance of every parameter for one metric, largest first, summing to 1; empty with a reason.

    `method` is the label of the method whose trials alone count; "": all trials count.
    """

    metric: str
    values: dict[str, float]
    note: str
    method: str = ""


def importances(run: Run) -> tuple[Importance, ...]:
    """Importance of every searched parameter for every objective.

    Of accuracy and loss from the fully trained trials, then from those of each method where several were
    searched; of costs from all priced proposals, and only for what they can depend on. fANOVA's cost grows
    with the square of the trials: of more than MAX_TRIALS an even sample is used. Deterministic. With too few
    trials, or an objective that is the same in all, `values` is empty and `note` says why; otherwise `note`
    says what it was computed from.
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
    """Importance for one metric of the parameters that all these trials have; `kind` describes the trials."""
    places = {round(x) for x in np.linspace(0, max(len(known) - 1, 0), MAX_TRIALS)} if known else ()
    chosen = [known[place] for place in sorted(places)]
    shared = set.intersection(*(set(trial.params) for trial, _ in chosen)) if chosen else set()
    if student:
        shared = {name for name in shared if name.startswith("level/") or name == "fuse"}
    if method:
        shared.discard(METHOD)  # the same in all of them
    bare = [_bare(trial, value, shared) for trial, value in chosen]
    reason = _too_little([v for _, v in known], bare, kind)
    note = reason or f"fANOVA over {len(bare)} of {len(known)} {kind}"
    return Importance(metric, {} if reason else _fanova(bare), note, method)


def _result(trial: FrozenTrial, objective: int) -> float | None:
    """An objective of a fully trained trial."""
    if trial.state is not TrialState.COMPLETE or not np.isfinite(trial.values).all():
        return None
    return float(trial.values[objective])


def _price(trial: FrozenTrial, metric: str) -> float | None:
    """A cost of a proposal."""
    price = (trial.user_attrs.get("costs") or {}).get(metric)
    return None if price is None or not np.isfinite(price) else float(price)


def _bare(trial: FrozenTrial, value: float, names: set[str]) -> FrozenTrial:
    """A trial with this value and these of its parameters alone."""
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
    """Importances over a study of these trials alone: without attributes, which are slow to copy."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # else it logs that it made a study
    try:
        study = optuna.create_study()
    finally:
        optuna.logging.set_verbosity(verbosity)
    study.add_trials(trials)
    evaluator = FanovaImportanceEvaluator(n_trees=_TREES, seed=_SEED)
    return {name: float(v) for name, v in get_param_importances(study, evaluator=evaluator).items()}


def block_effects(run: Run) -> pd.DataFrame:
    """What each block's level goes with: accuracy in the fully trained trials, costs in all proposals.

    Returns:
        One row a block and level, in the order of the blocks, levels ascending: block, level, width (NaN for
        kept), trials (fully trained ones), then for each of val_accuracy and the costs `<metric>` (its mean
        over those) and `<metric>_effect`: the change against keeping the block with all other blocks as they
        are, by ridge regression on all levels at once; of costs over all proposals, whose prices are known.
        Means mislead where the search preferred some combinations; effects do not, as far as blocks add up.
        NaN where nothing has the level.
    """
    table = run.trials
    complete = (table["state"] == "COMPLETE").to_numpy()
    blocks = [b["name"] for b in run.blocks if f"level/{b['name']}" in table]
    keep = len(run.widths)
    names = [f"level/{block}" for block in blocks]
    # A parameter a trial lacks means the block was kept: that is what a spec without the block says.
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
