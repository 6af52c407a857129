"""Checkpoint files: whole after any interruption, and never silently damaged."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from trainables.checkpoint import has_checkpoint, load_checkpoint, previous_of, save_checkpoint
from trainables.errors import InputError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Two checkpoints were written: 2 is the latest, 1 the previous one."""
    path = tmp_path / "run" / "checkpoint.pt"
    for epoch in (1, 2):
        save_checkpoint(path, {"epoch": epoch, "weights": torch.full((1000,), float(epoch))})
    return path


def test_round_trip_keeps_the_previous_one(path: Path) -> None:
    state = load_checkpoint(path)
    assert state["epoch"] == 2 and torch.equal(state["weights"], torch.full((1000,), 2.0))
    assert load_checkpoint(previous_of(path))["epoch"] == 1
    assert {file.name for file in path.parent.iterdir()} == {path.name, previous_of(path).name}


def test_killed_between_the_two_renames(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path.unlink()
    assert has_checkpoint(path)
    with caplog.at_level(logging.WARNING):
        assert load_checkpoint(path)["epoch"] == 1
    assert "going back to the previous one" in caplog.text


@pytest.mark.parametrize("size", [0, 100, -200])
def test_truncated_file_falls_back(path: Path, size: int, caplog: pytest.LogCaptureFixture) -> None:
    path.write_bytes(path.read_bytes()[:size])
    with caplog.at_level(logging.WARNING):
        assert load_checkpoint(path)["epoch"] == 1
    assert str(path) in caplog.text


def test_flipped_bit_in_a_weight_is_noticed(path: Path) -> None:
    damaged = bytearray(path.read_bytes())
    damaged[damaged.index(b"\x00\x00\x00\x40" * 10) + 3] ^= 1  # a 2.0 that would still load as a float
    path.write_bytes(damaged)
    assert load_checkpoint(path)["epoch"] == 1


def test_nothing_readable_names_both_files(path: Path) -> None:
    path.write_bytes(b"not a checkpoint")
    previous_of(path).unlink()
    with pytest.raises(InputError, match=r"checkpoint\.pt: .*checkpoint\.pt\.prev: .*remove both"):
        load_checkpoint(path)


def test_file_of_something_else_is_refused(path: Path) -> None:
    torch.save([1, 2], path)
    with pytest.raises(InputError, match="expected a dict, got list"):
        load_checkpoint(path)


def test_absent(tmp_path: Path) -> None:
    assert not has_checkpoint(tmp_path / "checkpoint.pt")
