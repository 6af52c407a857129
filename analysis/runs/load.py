"""Open a run, and get its trials or its front: `load("runs/digits").trials`, `front("runs/digits")`."""

from __future__ import annotations

from pathlib import Path

import optuna
import pandas as pd

from analysis.errors import InputError
from analysis.runs.rows import describe_left_out
from analysis.runs.run import Run


def load(run: str | Path | optuna.Study | Run, study: str | None = None) -> Run:
    """Open a run that has trials.

    Args:
        run: run directory (a path, or a URI in an object store), storage URL ("URL#study", or URL with
            `study`), Optuna study, or an open Run.
        study: name of the study if the database holds several.

    Returns:
        The run; `trials` is a DataFrame with one row per trial (columns: see `Run.trials`).

    Raises:
        InputError: there is no such run, its database cannot be read, or its study has no trials.

    Example:
        run = load("runs/digits")
        done = run.trials[run.trials["state"] == "COMPLETE"]
        print(done[["number", "val_accuracy", "flops"]])
    """
    opened = Run.open(run, study)
    if not opened.rows:
        others = "".join(f"; {line}" for line in describe_left_out(opened.left_out))
        raise InputError(f"{opened.label}: study {opened.name!r} has no trials yet{others}")
    return opened


def front(run: str | Path | optuna.Study | Run) -> pd.DataFrame:
    """Return the non-dominated of the fully trained trials.

    Args:
        run: as for `load`.

    Returns:
        Rows of `Run.trials`, best first objective first.

    Raises:
        InputError: as for `load`, or no trial has finished yet.

    Example:
        best = front("runs/digits")
        print(best[["number", "val_accuracy", "flops", "replaced"]])
    """
    return load(run).front()
