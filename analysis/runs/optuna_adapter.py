"""Optuna's private names: used here and nowhere else.

Tried with Optuna 5.0; pyproject.toml bounds the next major version. When one of these names changes, this
file and its tests are all there is to look at.
"""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import optuna
import sqlalchemy as sa
from optuna.storages import BaseStorage, RDBStorage
from optuna.storages._rdb import models
from optuna.trial import FrozenTrial
from sqlalchemy.orm import Session

_TOKEN = "ama:token"  # system attribute of a row: what its insertion is recognised by

# The tables of a study's database.
TrialModel = models.TrialModel
TrialParamModel = models.TrialParamModel
TrialValueModel = models.TrialValueModel
TrialUserAttributeModel = models.TrialUserAttributeModel


class Storage(RDBStorage):
    """Optuna's storage, with an insertion that makes one row however often it is tried."""

    _tried: str | None = None

    def _get_prepared_new_trial(
        self, study_id: int, template_trial: FrozenTrial | None, session: Session
    ) -> models.TrialModel:
        # Runs inside the transaction that holds the study's lock, and is run again by Optuna itself after an
        # error: a commit whose answer got lost would make a second row.
        token = None if template_trial is None else template_trial.system_attrs.get(_TOKEN)
        if token is not None:
            again, self._tried = token == self._tried, token
            if again and (row := self._row_of(token, session)) is not None:
                return row
        return super()._get_prepared_new_trial(study_id, template_trial, session)

    @staticmethod
    def _row_of(token: str, session: Session) -> models.TrialModel | None:
        attributes = models.TrialSystemAttributeModel
        query = session.query(models.TrialModel).join(attributes)
        return query.filter(attributes.key == _TOKEN, attributes.value_json == f'"{token}"').one_or_none()


def new_token() -> dict[str, str]:
    """The system attribute by which `Storage` knows a row again."""
    return {_TOKEN: uuid4().hex}


def storage_of(study: optuna.Study) -> BaseStorage:
    """The storage behind a study, maybe with a cache in front of the database's own."""
    return study._storage


def close(storage: BaseStorage) -> None:
    """End all connections of a database; a SQLite file is then whole by itself and may be moved."""
    backend: Any = getattr(storage, "_backend", storage)
    backend.remove_session()
    engine: sa.Engine = backend.engine
    if engine.dialect.name == "sqlite":
        with engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
    engine.dispose()


def study_id(study: optuna.Study) -> int:
    """A study's key in its storage."""
    return study._study_id


def trial_id(trial: FrozenTrial) -> int:
    """A trial's key in its storage; its number counts within the study."""
    return trial._trial_id


def trial_of(study: optuna.Study, trial: FrozenTrial) -> optuna.Trial:
    """A stored trial that is still running, to be told its result."""
    return optuna.Trial(study, trial_id(trial))


def generation_key() -> str:
    """The system attribute in which NSGA-II keeps a trial's generation."""
    return optuna.samplers.NSGAIISampler._get_generation_key()
