"""What the code computes now against the golden record (`make.py` says what is in it and when it may change).

On the versions that the record is of (torch, NumPy, SciPy, Optuna, the kind of processor), everything must be
as recorded, bit for bit. On other versions

- floats are within a relative 1e-3, accuracies within an absolute 0.03 (four of the 144 validation images);
  names, shapes, counts and settings are as recorded;
- hashes of weights and of images, and digests that come from them, are not compared;
- proposals, of whatever sampler, are only checked for being valid: random numbers and models may differ.

An epoch may have metrics that the record lacks; it may not lack or change one, except that

- the parts of the loss are recorded with their weights since 0.2, and the weighted ones are summed:
  `train_loss` and the parts, divided by their weights again, are within a relative 1e-6;
- `entropy` was the epoch's mean and is the value at its end.

Weights and scores, and with them every gradient, are the same to the last bit.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fixed_process import FOLDER, run_maker

pytestmark = pytest.mark.slow

RECORD: dict[str, Any] = json.loads((FOLDER / "record.json").read_text())
SAME = ("torch", "numpy", "scipy", "optuna", "greenlet", "machine")  # for equality to the last bit
RELATIVE, ACCURACY = 1e-3, 0.03
ROUNDING = 1e-6  # relative, of the loss and its parts
SHOWN = 5  # differences

HEX_FLOAT = re.compile(r"-?0x[01]\.[0-9a-f]+p[+-]\d+|-?inf|nan")
HASH = re.compile(r"[0-9a-f]{16}|[0-9a-f]{64}")
EPOCH = re.compile(r"epochs\[\d+\]")
PART = re.compile(r"epochs\[\d+\]\.(train_loss|ce|kl|feature)")
OF_WEIGHTS = ("teacher", "library")  # digests that come from weights


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The record as the code makes it now."""
    folder = tmp_path_factory.mktemp("golden")
    (folder / "home").mkdir()
    ended = run_maker(folder / "home", "--out", str(folder / "made.json"))
    assert ended.returncode == 0, ended.stderr
    return dict(json.loads((folder / "made.json").read_text()))


def is_same_software(made: dict[str, Any]) -> bool:
    before, now = RECORD["fingerprint"], made["fingerprint"]
    return all(before[name] == now[name] for name in SAME)


@pytest.mark.parametrize("name", RECORD["entries"])
def test_entry_is_as_recorded(name: str, made: dict[str, Any]) -> None:
    assert name in made["entries"], "the entry is not made any more"
    before, now = RECORD["entries"][name], made["entries"][name]
    assert "failed" not in now, now["failed"]
    exact = is_same_software(made)
    if not exact and name.startswith("proposals/"):
        assert list(invalid(before["proposals"], now["proposals"])) == []
        return
    found = list(differences(before, now, "", name, exact))
    more = f"\n… and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    assert not found, f"{name}:\n" + "\n".join(found[:SHOWN]) + more


def test_the_record_has_every_entry(made: dict[str, Any]) -> None:
    assert set(made["entries"]) == set(RECORD["entries"])
    assert made["format"] == RECORD["format"]


def differences(before: Any, now: Any, path: str, entry: str, exact: bool) -> Iterator[str]:
    """Lines such as `epochs[1].val_loss: recorded 2.30 (0x1.26…p+1), now 2.31 (0x1.27…p+1)`, in order."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key, value in before.items():
            if EPOCH.fullmatch(path) and key == "entropy":
                continue
            where = f"{path}.{key}".lstrip(".")
            if key not in now:
                yield f"{where}: recorded {shown(value)}, now missing"
            else:
                yield from differences(value, now[key], where, entry, exact)
        if not EPOCH.fullmatch(path):
            for key in now.keys() - before.keys():
                yield f"{path}.{key}".lstrip(".") + f": not recorded, now {shown(now[key])}"
    elif isinstance(before, list) and isinstance(now, list):
        for index, pair in enumerate(zip(before, now)):
            yield from differences(*pair, f"{path}[{index}]", entry, exact)
        if len(before) != len(now):
            yield f"{path}: recorded {len(before)} items, now {len(now)}"
    elif type(before) is not type(now) or (before != now and not (_close(before, now, path, entry, exact))):
        yield f"{path}: recorded {shown(before)}, now {shown(now)}"


def _close(before: Any, now: Any, path: str, entry: str, exact: bool) -> bool:
    """Whether a difference is one that other versions may make."""
    if not isinstance(before, str):
        return False
    if exact:
        old, new = (float.fromhex(each) if HEX_FLOAT.fullmatch(each) else math.nan for each in (before, now))
        is_part = entry.startswith("distilled/") and PART.fullmatch(path)
        return bool(is_part) and abs(old - new) <= ROUNDING * abs(old)
    if HEX_FLOAT.fullmatch(before) and HEX_FLOAT.fullmatch(now):
        old, new = float.fromhex(before), float.fromhex(now)
        if "accuracy" in path:
            return abs(old - new) <= ACCURACY
        return abs(old - new) <= RELATIVE * max(abs(old), RELATIVE)
    is_hash = HASH.fullmatch(before) and HASH.fullmatch(now)
    return bool(is_hash) and (entry != "digests" or path in OF_WEIGHTS)


def invalid(before: list[Any], now: list[Any]) -> Iterator[str]:
    """What is wrong with proposals of which the values may be others."""
    for index, row in enumerate(now):
        where, like = f"proposals[{index}]", before[0]
        for part in ("params", "costs", "violations"):
            if row[part].keys() != like[part].keys():
                yield f"{where}.{part}: recorded {sorted(like[part])}, now {sorted(row[part])}"
        for name, value in row["params"].items():
            if type(value) is not type(like["params"][name]):
                yield f"{where}.params.{name}: recorded {shown(like['params'][name])}, now {shown(value)}"
        broken = any(float.fromhex(value) > 0 for value in row["violations"].values())
        if (row["refused"] == "infeasible") != broken or row["refused"] not in (
            None,
            "infeasible",
            "duplicate",
        ):
            yield f"{where}.refused: {row['refused']} with violations {row['violations']}"
    if not any(row["refused"] is None for row in now):
        yield "no proposal is to be trained"


def shown(value: Any) -> str:
    """A value for people; a float both ways."""
    if isinstance(value, str) and HEX_FLOAT.fullmatch(value):
        return f"{float.fromhex(value):.9g} ({value})"
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}…"


def test_differences_are_named_with_both_values() -> None:
    before = {"epochs": [{"epoch": 1, "val_loss": (2.0).hex()}, {"epoch": 2, "val_loss": (1.0).hex()}]}
    later = {
        "epochs": [{"epoch": 1, "val_loss": (2.0).hex(), "new": 1}, {"epoch": 2, "val_loss": (1.5).hex()}]
    }
    expected = f"epochs[1].val_loss: recorded 1 ({(1.0).hex()}), now 1.5 ({(1.5).hex()})"
    assert list(differences(before, later, "", "x", True)) == [expected]
    assert list(differences(before, {"epochs": [{"epoch": 1}]}, "", "x", True)) == [
        f"epochs[0].val_loss: recorded 2 ({(2.0).hex()}), now missing",
        "epochs: recorded 2 items, now 1",
    ]
    assert list(differences({"a": 1}, {"a": 1, "b": 2}, "", "x", True)) == ["b: not recorded, now 2"]


def test_other_versions_may_differ_by_rounding_alone() -> None:
    def faults(before: Any, now: Any, key: str = "val_loss", entry: str = "teacher") -> list[str]:
        return list(differences({key: before}, {key: now}, "", entry, False))

    assert faults((2.0).hex(), (2.001).hex()) == []
    assert faults((2.0).hex(), (2.01).hex()) != []
    assert faults((0.5).hex(), (0.52).hex(), "val_accuracy") == []
    assert faults((0.5).hex(), (0.54).hex(), "val_accuracy") != []
    assert faults("0" * 64, "1" * 64, "weights") == []
    assert faults("0" * 16, "1" * 16, "teacher", "digests") == []
    assert faults("0" * 16, "1" * 16, "data", "digests") != []
    assert faults(1, 2, "params") != []


def test_the_record_holds_no_paths(tmp_path: Path) -> None:
    text = (FOLDER / "record.json").read_text()
    assert not re.search(r'"/|/(home|root|tmp|Users)/', text)
