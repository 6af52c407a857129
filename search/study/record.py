"""The record of a search: one Optuna study with one row per trial, in any storage of Optuna.

`search.policy.proposer` makes the proposals. This module writes the rows, in as few transactions as the
storage allows, and reads them when a search is resumed. Every read and write waits while the database is
unreachable (`search.study.database.Waiting`), and is idempotent.

Parameters of a row: `level/<block>`, `fuse`, `method`, `<method>/<key>`, `optim/<key>`, as far as they are
searched; where several methods are, a row has those of its own method alone. Version 0.1 had no name spaces.

Attributes of a row, each from the moment it is known:
- config: the `DistillConfig` of the trial, as JSON; seed: of the trial
- costs: of the student, by metric; replaced: its spans, each with `span`, the blocks, and `width`
- refused: why the proposal was not trained; such a row has `epochs` 0 and nothing below
- epochs: trained so far; seconds: of training; ray_id: of the Ray trial; checkpoint: below the run directory
- metrics: what the last epoch recorded, flat: the fields of `EpochMetrics`; `loss/<part>` for every part of
  the loss that the method names, weighted, which add up to `train_loss`; what the method records besides
  (`ama`: `entropy` and, where supervision is adaptive, `weight/<span>` and `mix/<span>/<teacher's map>`, a
  span being its blocks joined by `+`); the user's own metrics
- curve: by column a list with one value an epoch: `CURVE`, then all that the method and the user's metrics
  record; None before a column's first value
- reason: of stopping early or failing; retries, retry_reason, epochs_lost: what failures cost the trial
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from analysis.metrics import CURVE_METRICS, Direction
from analysis.pareto import front_mask
from analysis.runs.optuna_adapter import close, new_token, storage_of, study_id, trial_id
from analysis.runs.rows import sound_rows, warn_of
from analysis.runs.study_url import redact
from search.study.database import Waiting, open_storage
from trainables.errors import InputError

CURVE = ("epoch", *CURVE_METRICS, "train_loss", "seconds")
_CONSTRAINT = "constraints:"  # Optuna's prefix of the attribute with a constraint's value


class MissingStudyError(InputError):
    """Raised when the database does not contain the study."""


class StudyRecord:
    """Read and write the rows of one study, by trial number.

    Every method raises `DatabaseAwayError` if the database is unreachable for longer than `waiting` waits.

    Args:
        study: the study in the database.
        waiting: retries operations that the database did not answer.
    """

    def __init__(self, study: optuna.Study, waiting: Waiting) -> None:
        self.waiting = waiting
        self._study = study
        self._storage = storage_of(study)
        self._ids = {trial.number: trial_id(trial) for trial in study.get_trials(deepcopy=False)}
        self._curves: dict[int, dict[str, list[Any]]] = {}

    @staticmethod
    def check_free(url: str, name: str) -> None:
        """Check that a study with this name can be created, without creating it.

        Raises:
            InputError: the database cannot be opened, or holds a study of this name.
        """
        if name in optuna.get_all_study_names(open_storage(url)):
            raise _taken(url, name)

    @classmethod
    def create(cls, url: str, name: str, directions: Sequence[Direction]) -> StudyRecord:
        """Create a study.

        Raises:
            InputError: the database cannot be opened, or holds a study of this name.
        """
        try:
            return cls(
                optuna.create_study(storage=open_storage(url), study_name=name, directions=list(directions)),
                Waiting(url),
            )
        except optuna.exceptions.DuplicatedStudyError:
            raise _taken(url, name) from None

    @classmethod
    def load(cls, url: str, name: str) -> StudyRecord:
        """Load an existing study.

        Raises:
            InputError: the database cannot be opened.
            MissingStudyError: it does not contain the study.
        """
        try:
            study = optuna.load_study(storage=open_storage(url), study_name=name)
            record = cls(study, Waiting(url))
        except KeyError:
            raise MissingStudyError(f"storage.study: {redact(url)} holds no study {name!r}") from None
        record.warn(f"storage.study: {redact(url)}")
        return record

    def warn(self, where: str) -> None:
        """Warn of the rows that are left out, once; `where` names the study."""
        warn_of(sound_rows(self._study.get_trials(deepcopy=False), self._metrics)[1], where)

    @property
    def attrs(self) -> dict[str, Any]:
        """The study's user attributes."""
        return self.waiting(lambda: self._study.user_attrs)

    def set_attrs(self, attrs: Mapping[str, Any]) -> None:
        """Write user attributes of the study."""
        for key, value in attrs.items():
            self.waiting(partial(self._study.set_user_attr, key, value))

    def name_objectives(self, metrics: Sequence[str]) -> None:
        """Set the metric names that optuna-dashboard and Optuna's plots show."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            self.waiting(partial(self._study.set_metric_names, list(metrics)))

    def trials(self) -> list[FrozenTrial]:
        """Return the rows of searches in order of their numbers, without others (see `sound_rows`)."""
        rows = self.waiting(lambda: self._study.get_trials(deepcopy=False))
        return list(sound_rows(rows, self._metrics)[0])

    def trial(self, number: int) -> FrozenTrial:
        """Return the row with this number."""
        return self.waiting(lambda: self._storage.get_trial(self._ids[number]))

    def front(self) -> list[FrozenTrial]:
        """Return the non-dominated fully trained rows that satisfy all limits."""
        able = [row for row in self.trials() if row.state is TrialState.COMPLETE and is_within(row)]
        signs = [-1.0 if d == StudyDirection.MAXIMIZE else 1.0 for d in self._study.directions]
        points = np.array([row.values for row in able], dtype=np.float64).reshape(-1, len(signs))
        return [able[i] for i in np.flatnonzero(front_mask(points * signs))]

    @property
    def _metrics(self) -> list[str]:
        return [f"objective {i}" for i in range(len(self._study.directions))]

    def add(
        self,
        params: Mapping[str, Any],
        distributions: Mapping[str, BaseDistribution],
        attrs: Mapping[str, Any],
        *,
        refused: str | None = None,
        constraints: Mapping[str, float] | None = None,
    ) -> int:
        """Write a new row in one transaction and return its number.

        Args:
            params: the proposal, by parameter name.
            distributions: the distribution of every parameter.
            attrs: user attributes of the row.
            refused: the reason if the proposal is not trained; None creates a RUNNING row.
            constraints: violations by the limit's text, > 0 if violated.
        """
        state = TrialState.RUNNING if refused is None else TrialState.PRUNED
        if refused is not None:
            attrs = {**attrs, "refused": refused, "epochs": 0}
        row = create_trial(
            state=state,
            params=dict(params),
            distributions=dict(distributions),
            user_attrs=dict(attrs),
            system_attrs=new_token(),
            constraints=dict(constraints or {}),
        )
        now = datetime.now()
        row.datetime_start = now
        row.datetime_complete = now if refused is not None else None
        key = self.waiting(lambda: self._storage.create_new_trial(study_id(self._study), row))
        number = self.waiting(lambda: self._storage.get_trial_number_from_id(key))
        self._ids[number] = key
        return number

    def annotate(self, number: int, **attrs: Any) -> None:
        """Write user attributes of a row."""
        for key, value in attrs.items():
            self.waiting(partial(self._storage.set_trial_user_attr, self._ids[number], key, value))

    def epoch(self, number: int, metrics: Mapping[str, Any], further: Sequence[str] = ()) -> None:
        """Append an epoch's metrics to a running row; an epoch reported again replaces its entry.

        Args:
            number: number of the row.
            metrics: metrics of the epoch, by name; the row keeps all metrics of the last epoch.
            further: names of metrics, besides those in `CURVE`, whose curves are kept.
        """
        if number not in self._curves:
            self._curves[number] = self._stored_curve(number)
        curve = self._curves[number]
        keep = [i for i, epoch in enumerate(curve["epoch"]) if epoch < metrics["epoch"]]
        missing = [None] * len(curve["epoch"])  # for a column that starts later
        for column in dict.fromkeys([*curve, *CURVE, *further]):
            value, before = metrics.get(column), curve.get(column) or missing
            kept = [before[i] for i in keep]
            curve[column] = [*kept, round(value, 5) if isinstance(value, float) else value]
        self.annotate(
            number,
            curve=curve,
            metrics=dict(metrics),
            epochs=metrics["epoch"],
            seconds=round(sum(curve["seconds"]), 3),
        )

    def _stored_curve(self, number: int) -> dict[str, list[Any]]:
        row = self.waiting(lambda: self._storage.get_trial(self._ids[number]))
        stored = row.user_attrs.get("curve", {})
        return {column: list(stored.get(column, [])) for column in dict.fromkeys([*CURVE, *stored])}

    def complete(
        self, number: int, values: Sequence[float], constraints: Mapping[str, float] | None = None
    ) -> None:
        """Set a row to COMPLETE: it was trained to its last epoch.

        Args:
            number: number of the row.
            values: objective values, in the objectives' order.
            constraints: violations of the limits that need training, by the limit's text.
        """
        self._constrain(number, constraints)
        self._end(number, TrialState.COMPLETE, values)

    def prune(self, number: int, reason: str, constraints: Mapping[str, float] | None = None) -> None:
        """Set a row to PRUNED (stopped early); `constraints` as for `complete`, for its last metrics."""
        self._constrain(number, constraints)
        self.annotate(number, reason=reason)
        self._end(number, TrialState.PRUNED)

    def _constrain(self, number: int, constraints: Mapping[str, float] | None) -> None:
        for text, violation in (constraints or {}).items():
            key = _CONSTRAINT + text
            self.waiting(partial(self._storage.set_trial_system_attr, self._ids[number], key, violation))

    def fail(self, number: int, reason: str) -> None:
        """Set a row to FAIL."""
        self.annotate(number, reason=redact(reason))
        self._end(number, TrialState.FAIL)

    def _end(self, number: int, state: TrialState, values: Sequence[float] | None = None) -> None:
        self._curves.pop(number, None)

        def write() -> None:
            try:
                self._storage.set_trial_state_values(self._ids[number], state, values)
            except UpdateFinishedTrialError:
                # An earlier attempt succeeded and only its answer was lost.
                if self._storage.get_trial(self._ids[number]).state != state:
                    raise

        self.waiting(write)

    def close(self) -> None:
        """Close all connections; a SQLite file is then complete without its WAL files, and can be moved."""
        close(self._storage)

    def interrupt(self) -> list[int]:
        """Set every RUNNING row to WAITING, for `resume`, and return their numbers."""
        running = [t.number for t in self.trials() if t.state == TrialState.RUNNING]
        for number in running:
            self._set_state(number, TrialState.WAITING)
        return running

    def resume(self, number: int) -> None:
        """Set an interrupted row to RUNNING again."""
        self._set_state(number, TrialState.RUNNING)

    def _set_state(self, number: int, state: TrialState) -> None:
        self.waiting(partial(self._storage.set_trial_state_values, self._ids[number], state))


def _taken(url: str, name: str) -> InputError:
    return InputError(
        f"storage.study: {redact(url)} already holds a study {name!r}; "
        "resume it with --resume or give the experiment another name"
    )


def now() -> str:
    """Return the current time in UTC as ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def is_within(trial: FrozenTrial) -> bool:
    """Return True if a fully trained row satisfies all limits."""
    return all(violation <= 0 for violation in trial.constraints.values())


def ran(trial: FrozenTrial) -> bool:
    """Return True if a row is a trial that ran (not a proposal refused before training)."""
    return "refused" not in trial.user_attrs
