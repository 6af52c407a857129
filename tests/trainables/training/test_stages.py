"""Stages run once for all settings they depend on, survive interruptions, and depend on their inputs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from trainables.blocks.blocks import find_blocks
from trainables.config import METHODS, DataConfig, RuntimeConfig
from trainables.config_base import MethodConfig, searched
from trainables.data.load import load_data
from trainables.methods.base import Method, Setup, Stage
from trainables.network.architectures import build_model
from trainables.runtime.runtime import resolve
from trainables.training.stages import make_stages

CALLS: list[tuple[int, int]] = []


class BankConfig(MethodConfig):
    """Settings of a method with a stage that depends on one of them."""

    rows: int = searched(3, choices=(3, 5))
    alpha: float = searched(0.5, 0.1, 0.9)


def make_bank(setup: Setup, settings: Any, seed: int, folder: Path, progress: Any) -> dict[str, Any]:
    CALLS.append((settings.rows, seed))
    if not (folder / "half").exists():
        (folder / "half").write_text("done")
        if settings.rows == 5:
            raise KeyboardInterrupt
    progress("bank", settings.rows, settings.rows)
    return {"bank": torch.full((settings.rows,), float(seed)), "classes": setup.data.num_classes}


class Banked(Method):
    """A method with a stage."""

    name, Config = "banked", BankConfig
    stages = (Stage("bank", ("rows",), make_bank),)


@pytest.fixture
def setup(monkeypatch: pytest.MonkeyPatch) -> Iterator[Setup]:
    monkeypatch.setitem(METHODS._builtins, "banked", f"{__name__}:Banked")
    CALLS.clear()
    data = load_data(DataConfig(name="digits", train_limit=100))
    teacher = build_model("cifar_resnet8", 10, data.image_shape)
    blocks = find_blocks(teacher, torch.zeros(1, *data.image_shape))
    yield Setup.of(teacher, blocks, data, resolve(RuntimeConfig(device="cpu")))


def test_a_stage_runs_once_for_the_settings_it_depends_on(setup: Setup, tmp_path: Path) -> None:
    settings = [("banked", BankConfig(alpha=alpha)) for alpha in (0.1, 0.2)]
    settings.append(("ama", METHODS.get("ama").Config()))
    found = make_stages(setup, settings, tmp_path, seed=7)
    (key,) = found
    assert key == Banked.stages[0].key(BankConfig()) and key.startswith("bank-")
    assert found[key]["bank"].tolist() == [7.0] * 3 and found[key]["classes"] == 10
    again = make_stages(setup, settings, tmp_path, seed=7)
    assert torch.equal(again[key]["bank"], found[key]["bank"]) and CALLS == [(3, 7)]
    assert [file.name.startswith(key) for file in tmp_path.iterdir()] == [True]


def test_other_seeds_teachers_and_damaged_files_run_it_again(setup: Setup, tmp_path: Path) -> None:
    settings = [("banked", BankConfig())]
    make_stages(setup, settings, tmp_path, seed=1)
    make_stages(setup, settings, tmp_path, seed=2)
    other = Setup.of(build_model("cifar_resnet8", 10, (3, 8, 8)), setup.blocks, setup.data, setup.runtime)
    make_stages(other, settings, tmp_path, seed=1)
    assert CALLS == [(3, 1), (3, 2), (3, 1)]
    for file in tmp_path.glob("*.pt"):
        file.write_bytes(file.read_bytes()[:-20])
    make_stages(setup, settings, tmp_path, seed=1)
    assert len(CALLS) == 4


def test_an_interrupted_stage_finds_its_checkpoints(setup: Setup, tmp_path: Path) -> None:
    settings = [("banked", BankConfig(rows=5))]
    with pytest.raises(KeyboardInterrupt):
        make_stages(setup, settings, tmp_path)
    seen: list[tuple[str, int, int]] = []
    found = make_stages(setup, settings, tmp_path, progress=lambda *what: seen.append(what))
    assert len(next(iter(found.values()))["bank"]) == 5 and seen == [("bank", 5, 5)]
    assert CALLS == [(5, 0), (5, 0)]
