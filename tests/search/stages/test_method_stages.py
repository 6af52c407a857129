"""Which settings the stages of a search are run for."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from search.experiment.load import load_experiment
from search.stages.method_stages import stage_settings
from trainables.config import METHODS
from trainables.errors import InputError

FILE = """
from trainables.config import LossConfig
from trainables.config_base import MethodConfig, searched
from trainables.methods.ama import Ama
from trainables.methods.base import Stage

class Settings(MethodConfig):
    rows: int = searched(3, choices=(3, 5))
    soft: bool = searched(True, choices=(True, False))
    alpha: float = searched(0.5, 0.1, 0.9)

class Banked(Ama):
    name, Config = "banked", Settings
    stages = (Stage("bank", ("rows", "soft"), lambda *_: {}), Stage("plain", (), lambda *_: {}))
"""


@pytest.fixture
def banked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    module = f"banked_{tmp_path.name}"  # a module of one name is imported once in a process
    (tmp_path / f"{module}.py").write_text(FILE)
    monkeypatch.chdir(tmp_path)
    return f"import:{module}.py:Banked"


def test_every_combination_that_trials_can_have_is_made(banked: str) -> None:
    assert stage_settings(load_experiment("digits")) == []
    experiment = load_experiment("digits", [f"space.method=[ama, '{banked}']"])
    found = stage_settings(experiment)
    assert {name for name, _ in found} == {banked}
    method = METHODS.get(banked)
    assert len({stage.key(settings) for _, settings in found for stage in method.stages}) == 4 + 1
    fixed = load_experiment("digits", [f"space.method={{'{banked}': {{rows: 5, soft: true}}}}"])
    assert len({stage.key(settings) for _, settings in stage_settings(fixed) for stage in method.stages}) == 2


def test_a_range_that_a_stage_depends_on_is_refused(banked: str) -> None:
    experiment = load_experiment("digits", [f"space.method={{'{banked}': {{rows: [3, 9]}}}}"])
    with pytest.raises(InputError, match=re.escape("rows: expected a fixed value or {choices: [...]}")):
        stage_settings(experiment)
