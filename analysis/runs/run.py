"""Read a run: the attributes of its study, and its trials as a table."""

from __future__ import annotations

import math
from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
from numpy.typing import NDArray
from optuna.trial import FrozenTrial

from analysis.errors import InputError
from analysis.metrics import CURVE_METRICS, METRICS, Metric, objective_names, own_metrics
from analysis.pareto import Box, Floats, Objective, box, front_mask, minimised
from analysis.runs import study_source as source
from analysis.runs.limits import Limit, excesses, nearest_miss
from analysis.runs.parameters import method_labels, parameter_labels
from analysis.runs.rows import sound_rows, warn_of
from analysis.runs.trial_table import (
    TIMES,
    Columns,
    curve_table,
    describe_unfinished,
    fixed_columns,
    trial_table,
)

FORMAT = 1
STATES = ("COMPLETE", "PRUNED", "FAIL", "RUNNING", "WAITING")
CURVES = (*CURVE_METRICS, "train_loss", "seconds")


@dataclass(frozen=True)
class Run:
    """A snapshot of a study, taken when it was opened: attributes, and trials in order of number.

    Attributes:
        name: name of the study.
        label: description of the run for messages.
        path: the run directory if it is a readable folder; None if the study was opened by its database.
        place: the run directory as given, a path or a URI; None likewise.
        attrs: the study's attributes, which the properties read.
        rows: the trials as Optuna objects; `trials` is the table.
        left_out: why rows that a search did not write, or that were damaged, are left out; by number.

    Example:
        run = Run.open("runs/digits")
        print(run.teacher["val_accuracy"], run.metrics, len(run.trials))
        print(run.curves().groupby("number")["val_accuracy"].max())
    """

    name: str
    label: str
    path: Path | None
    place: str | None
    attrs: Mapping[str, Any] = field(repr=False)
    rows: tuple[FrozenTrial, ...] = field(repr=False)
    left_out: Mapping[int, str] = field(default_factory=dict, repr=False)

    @classmethod
    def open(
        cls, run: str | Path | optuna.Study | Run, study: str | None = None, place: str | None = None
    ) -> Run:
        """Open a run directory, a storage URL ("URL#study", or URL and `study`), or an Optuna study.

        Args:
            run: the run to open.
            study: name of the study.
            place: the original place if the folder `run` is a working copy; else None.

        Raises:
            InputError: there is no such run, its database cannot be read, or `ama search` did not create it.
        """
        if isinstance(run, Run):
            return run
        if isinstance(run, optuna.Study):
            record, found = source.read_open_study(run), source.Source(f"study {run.study_name}", None)
        else:
            found = source.locate(run, study, place)
            record = source.read(found)
        _check(record.attrs, f"{found.label}: study {record.name!r}")
        metrics = [objective["metric"] for objective in record.attrs["objectives"]]
        rows, left_out = sound_rows(record.trials, metrics, record.unread)
        warn_of(left_out, found.label)
        return cls(record.name, found.label, found.path, found.place, record.attrs, rows, left_out)

    @cached_property
    def objectives(self) -> tuple[Objective, ...]:
        """The objectives, in the order of the trials' values."""
        return tuple(Objective(o["metric"], o["direction"]) for o in self.attrs["objectives"])

    @property
    def metrics(self) -> list[str]:
        """Metrics of the objectives."""
        return [o.metric for o in self.objectives]

    @cached_property
    def own_metrics(self) -> dict[str, Metric]:
        """The user's own metrics of this run, by name."""
        return own_metrics(self.attrs.get("metrics") or {})

    @cached_property
    def known(self) -> dict[str, Metric]:
        """Every metric of this run by name: built-in ones, then the user's own."""
        return {**METRICS, **self.own_metrics}

    @property
    def costs(self) -> tuple[str, ...]:
        """Metrics that are known for every student before it trains."""
        return tuple(m.name for m in self.known.values() if m.kind == "cost" and m.worst is not None)

    @property
    def qualities(self) -> tuple[str, ...]:
        """Metrics that are known only after training."""
        return tuple(m.name for m in self.known.values() if m.kind == "quality")

    @property
    def curve_columns(self) -> tuple[str, ...]:
        """Columns of every trial's learning curve, besides the epoch."""
        return (*CURVES, *(m.name for m in self.own_metrics.values() if m.kind == "quality"))

    @cached_property
    def parameters(self) -> tuple[str, ...]:
        """Names of the searched parameters: levels in the order of the blocks, then the others by name."""
        return tuple(sorted({name for t in self.rows for name in t.params}, key=self._param_order))

    @cached_property
    def labels(self) -> dict[str, str]:
        """Display names by parameter (see `parameter_labels`)."""
        return parameter_labels(self.parameters)

    @cached_property
    def methods(self) -> dict[str, str]:
        """Display names by method as named in the experiment (see `method_labels`)."""
        return method_labels(self.experiment, self.rows)

    @cached_property
    def recorded(self) -> tuple[str, ...]:
        """Values that methods recorded at every epoch: parts of the loss (`loss/<part>`), weights, …"""
        fixed = fixed_columns(self.metrics, self.own_metrics)
        known = {"epoch", *self.curve_columns, *fixed, *TIMES, *self.parameters}
        curves = (trial.user_attrs.get("curve") or {} for trial in self.rows)
        return tuple(name for name in dict.fromkeys(name for c in curves for name in c) if name not in known)

    @property
    def teacher(self) -> dict[str, Any]:
        """Architecture, hash, accuracies and costs of the teacher."""
        return dict(self.attrs.get("teacher") or {})

    @property
    def data(self) -> dict[str, Any]:
        """Name, classes, sizes and hash of the data."""
        return dict(self.attrs.get("data") or {})

    @property
    def blocks(self) -> list[dict[str, Any]]:
        """The teacher's blocks in execution order, with shapes and costs."""
        return list(self.attrs.get("blocks") or [])

    @property
    def widths(self) -> list[float]:
        """Widths of the levels 0 … K-1; level K keeps the block."""
        return list(self.attrs.get("widths") or [])

    @property
    def constraints(self) -> list[dict[str, Any]]:
        """All limits of the experiment."""
        return list(self.attrs.get("constraints") or [])

    @cached_property
    def limits(self) -> tuple[Limit, ...]:
        """The experiment's limits on trained metrics, which a trial must satisfy to be on the front.

        A search refuses proposals that break a limit on a cost, so all trials satisfy those.
        """
        return tuple(
            Limit(c["metric"], c["op"], float(c["limit"]), str(c["text"]).rpartition(c["op"])[2].strip())
            for c in self.constraints
            if c["metric"] in self.qualities and math.isfinite(c["limit"])
        )

    def within_limits(self, rows: pd.DataFrame) -> NDArray[np.bool_]:
        """Return a mask of these rows of `trials`: whether each satisfies all of `limits`."""
        within: NDArray[np.bool_] = np.all(excesses(rows, self.limits) <= 0, axis=1)
        return within

    def why_no_front(self) -> str:
        """Explain an empty front: no trial is fully trained, or none of those is within the limits."""
        table = self.trials
        complete = table[table["state"] == "COMPLETE"]
        return describe_unfinished(table) if complete.empty else nearest_miss(complete, self.limits)

    @property
    def experiment(self) -> dict[str, Any]:
        """The resolved experiment."""
        return dict(self.attrs.get("experiment") or {})

    @cached_property
    def box(self) -> Box:
        """The region in which the hypervolume of this run is measured."""
        return box(self.objectives, self.teacher, int(self.data.get("classes", 0)), self.known)

    @property
    def trials(self) -> pd.DataFrame:
        """The trials, one row each, in order of number. A new frame at each access; empty without trials.

        Columns (NaN, NA or "" where a trial does not have the value yet):
        - number, state (COMPLETE, PRUNED, FAIL, RUNNING or WAITING), refused (why a proposal never ran:
          "infeasible", "duplicate", or "unfit" if the method cannot train the student; else ""), on_front
          (fully trained, within the limits on trained metrics, and non-dominated)
        - val_accuracy (0..1), val_loss: of the last epoch trained, which for COMPLETE is the result
        - params, flops (per image, multiply-accumulate = 2), latency_ms (predicted from the cost table),
          measured_latency_ms (whole model, end to end; front trials after the search)
        - the user's own metrics and costs, by name
        - seconds (of training), replaced (number of blocks replaced), epochs (trained), seed, retries
        - ray_id, reason (of stopping early or failing), checkpoint (relative to the run)
        - level/<block> for every block (0 narrowest … K-1 widest, K kept), then every other searched
          parameter by its own name: ama/alpha, optim/lr, fuse, … (alpha, lr, … in runs of version 0.1); where
          several methods were searched `method`, and the parameters of the other methods are missing
        - what the method recorded in the last epoch: loss/<part>, the weighted parts of the training loss; of
          `ama` also entropy, weight/<blocks of a span> and mix/<blocks of a span>/<teacher's map>
        - started, ended (local time)
        """
        return self._frame.copy()

    @cached_property
    def _frame(self) -> pd.DataFrame:
        columns = Columns(
            self.metrics, self.qualities, self.costs, tuple(self.own_metrics), self.parameters, self.recorded
        )
        # Stored in the study, not in the rows, because Optuna does not allow changes of rows that have ended.
        table = trial_table(self.rows, columns, self.attrs.get("measured", {}))
        able = (table["state"] == "COMPLETE").to_numpy() & self.within_limits(table)
        on_front = np.zeros(len(table), dtype=bool)
        on_front[able] = front_mask(self.points(table[able]))
        table["on_front"] = on_front
        return table

    def _param_order(self, name: str) -> tuple[int, str]:
        """Sort key: levels in the order of the blocks, then the other parameters by name."""
        names = [f"level/{block['name']}" for block in self.blocks]
        return (names.index(name) if name in names else len(names), name)

    def points(self, rows: pd.DataFrame) -> Floats:
        """Return the objective values (n, d) of these rows of `trials`, every column minimised."""
        return minimised(rows[self.metrics].to_numpy(dtype=np.float64), self.objectives)

    def front(self) -> pd.DataFrame:
        """Return the rows of the fully trained non-dominated trials, best first objective first.

        Raises:
            InputError: no trial has finished yet, or none is within the limits (the message names the
                nearest).
        """
        table = self.trials
        rows = table[table["on_front"]]
        if rows.empty:
            raise InputError(f"{self.label}: {self.why_no_front()}")
        order = np.lexsort((rows["number"].to_numpy(), self.points(rows)[:, 0]))
        return rows.iloc[order].reset_index(drop=True)

    def curves(self, numbers: Container[int] | None = None) -> pd.DataFrame:
        """Return the learning curves, one row per trial and epoch.

        Args:
            numbers: numbers of the trials; None: all trials.

        Returns:
            number, state, epoch, then `curve_columns` and `recorded`; NaN if a trial lacks a value.
        """
        rows = self.rows if numbers is None else [t for t in self.rows if t.number in numbers]
        return curve_table(rows, (*self.curve_columns, *self.recorded))

    def trial(self, number: int) -> FrozenTrial:
        """Return the trial with this number. Raises InputError if it does not exist."""
        found = self._by_number.get(number)
        if found is None:
            why = self.left_out.get(number)
            what = f"trial {number} is left out: {why}" if why else f"no trial {number}"
            raise InputError(f"{self.label}: {what}; there are {len(self.rows)}")
        return found

    @cached_property
    def _by_number(self) -> dict[int, FrozenTrial]:
        return {trial.number: trial for trial in self.rows}


def _check(attrs: Mapping[str, Any], where: str) -> None:
    if "objectives" not in attrs or "teacher" not in attrs:
        raise InputError(f"{where} was not created by `ama search`: its objectives and teacher are missing")
    if attrs.get("format") != FORMAT:
        raise InputError(f"{where} has format {attrs.get('format')!r}: this version reads format {FORMAT}")
    names = objective_names({**METRICS, **own_metrics(attrs.get("metrics") or {})})
    named = [o.get("metric") for o in attrs["objectives"]]
    if len(named) < 2 or not all(metric in names for metric in named):
        got = ", ".join(map(str, named)) or "none"
        raise InputError(f"{where}: expected two or more of {', '.join(names)}, got {got}")
