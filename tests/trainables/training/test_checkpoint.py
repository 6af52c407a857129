"""Checkpoint files: whole after any interruption, and never silently damaged."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from trainables.errors import InputError
from trainables.training.checkpoint import has_checkpoint, load_checkpoint, previous_of, save_checkpoint


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


def test_no_damaged_byte_goes_unnoticed(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    state = {"epoch": 7, "name": "a", "weights": torch.arange(12.0)}
    save_checkpoint(path, state)
    whole = path.read_bytes()
    step = 7  # in the interest of time; all of them were tried
    for position in range(0, len(whole), step):
        damaged = bytearray(whole)
        damaged[position] ^= 0b10010
        path.write_bytes(damaged)
        try:
            read = load_checkpoint(path)
        except InputError as fault:
            assert "no readable checkpoint" in str(fault)
            continue
        assert read.keys() == state.keys() and (read["epoch"], read["name"]) == (7, "a"), position
        assert torch.equal(read["weights"], state["weights"]), position


@pytest.mark.parametrize("field", [16, 24, 38])  # sizes and attributes, in the zip file's directory
def test_damage_that_no_checksum_covers_is_noticed(tmp_path: Path, field: int) -> None:
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, {"weights": torch.arange(12.0)})
    damaged = bytearray(path.read_bytes())
    entry = damaged.rindex(b"PK\x01\x02", 0, damaged.rindex(b"/data/0"))
    damaged[entry + field] ^= 0b10000
    path.write_bytes(damaged)
    with pytest.raises(InputError, match="no readable checkpoint"):
        load_checkpoint(path)


def test_nothing_readable_names_both_files(path: Path) -> None:
    path.write_bytes(b"not a checkpoint")
    previous_of(path).unlink()
    with pytest.raises(InputError, match=r"checkpoint\.pt: .*checkpoint\.pt\.prev: .*remove both"):
        load_checkpoint(path)


def test_file_of_something_else_is_refused(path: Path) -> None:
    torch.save([1, 2], path)
    assert load_checkpoint(path)["epoch"] == 1
    previous_of(path).unlink()
    with pytest.raises(InputError, match="expected a dict, got list"):
        load_checkpoint(path)


def test_absent(tmp_path: Path) -> None:
    assert not has_checkpoint(tmp_path / "checkpoint.pt")
