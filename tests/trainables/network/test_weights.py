"""Weights as files: round trips, what does not fit, damaged files, and the hash."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import nn

from trainables.errors import InputError
from trainables.network.weights import load_weights, save_weights, weights_hash


def small(classes: int = 3, seed: int = 0) -> nn.Sequential:
    """Convolution, batch norm and a linear layer."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, classes))


def test_safetensors_round_trip_keeps_every_bit_and_the_metadata(tmp_path: Path):
    path = tmp_path / "folder" / "model.safetensors"
    save_weights(small(seed=1), path, {"arch": "small"})
    model = small(seed=2)
    load_weights(model, path)
    assert weights_hash(model) == weights_hash(small(seed=1))
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"arch": "small", "weights_hash": weights_hash(model)}
    assert [p.name for p in path.parent.iterdir()] == ["model.safetensors"]


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": {"state_dict": state}},
        lambda state: {f"module.{name}": tensor for name, tensor in state.items()},
        lambda state: {"model": {f"_orig_mod.module.{name}": tensor for name, tensor in state.items()}},
    ],
    ids=["bare", "state_dict", "nested", "parallel", "compiled"],
)
def test_torch_files_are_unwrapped(tmp_path: Path, wrap):
    torch.save(
        wrap(small(seed=1).state_dict()), tmp_path / "weights.safetensors"
    )  # content decides, not name
    model = small(seed=2)
    load_weights(model, tmp_path / "weights.safetensors")
    assert weights_hash(model) == weights_hash(small(seed=1))


def test_a_model_whose_own_names_start_with_module_is_left_alone(tmp_path: Path):
    model = nn.ModuleDict({"module": nn.Linear(2, 2)})
    save_weights(model, tmp_path / "m.safetensors", {})
    before = weights_hash(model)
    nn.init.zeros_(model["module"].weight)
    load_weights(model, tmp_path / "m.safetensors")
    assert weights_hash(model) == before


def test_half_precision_weights_take_the_models_type(tmp_path: Path):
    save_weights(small(seed=1).to(torch.bfloat16), tmp_path / "half.safetensors", {})
    model = small(seed=2)
    load_weights(model, tmp_path / "half.safetensors")
    assert model[0].weight.dtype == torch.float32
    assert torch.equal(model[0].weight, small(seed=1)[0].weight.bfloat16().float())


def test_tied_weights_are_written_once_a_name(tmp_path: Path):
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight = model[0].weight
    before = weights_hash(model)
    save_weights(model, tmp_path / "tied.safetensors", {})
    nn.init.zeros_(model[0].weight)
    load_weights(model, tmp_path / "tied.safetensors")
    assert weights_hash(model) == before


def test_files_without_batch_counters_fit(tmp_path: Path):
    state = {k: v for k, v in small(seed=1).state_dict().items() if "num_batches" not in k}
    torch.save(state, tmp_path / "old.pt")
    model = small(seed=2)
    load_weights(model, tmp_path / "old.pt")
    assert torch.equal(model[3].weight, state["3.weight"])


def test_all_that_does_not_fit_comes_in_one_error_and_changes_nothing(tmp_path: Path):
    state = small(classes=5).state_dict()
    del state["0.bias"]
    state |= {f"extra.{i}": torch.zeros(1) for i in range(6)}
    torch.save(state, tmp_path / "other.pt")
    model = small(seed=2)
    before = weights_hash(model)
    with pytest.raises(InputError) as caught:
        load_weights(model, tmp_path / "other.pt", what="small with 3 classes")
    text = str(caught.value)
    assert "other.pt does not fit small with 3 classes" in text
    assert "1 missing (0.bias)" in text
    assert "6 unexpected (extra.0, extra.1, extra.2, extra.3, and 2 more)" in text
    assert "2 of another shape (3.weight: file (5, 16), model (3, 16)" in text
    assert weights_hash(model) == before


class Trap:
    """Unpickling it would make the file it names."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_pickled_objects_are_refused_and_not_run(tmp_path: Path):
    torch.save({"state_dict": Trap(tmp_path / "sprung")}, tmp_path / "trap.pt")
    with pytest.raises(InputError, match=r"trap\.pt.*state_dict\(\)"):
        load_weights(small(), tmp_path / "trap.pt")
    assert not (tmp_path / "sprung").exists()


def test_damaged_files_are_named(tmp_path: Path):
    save_weights(small(), tmp_path / "whole.safetensors", {})
    torch.save(small().state_dict(), tmp_path / "whole.pt")
    for name in ("whole.safetensors", "whole.pt"):
        content = (tmp_path / name).read_bytes()
        (tmp_path / f"cut-{name}").write_bytes(content[: len(content) // 2])
    (tmp_path / "cut-empty").write_bytes(b"")
    (tmp_path / "cut-text").write_text("these are no weights, and never were")
    for path in sorted(tmp_path.glob("cut-*")):
        with pytest.raises(InputError, match=path.name):
            load_weights(small(), path)


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ([1, 2], "got list"),
        ({}, "nothing"),
        ({"epoch": 3, "weight": torch.zeros(1)}, "epoch"),
    ],
)
def test_files_without_a_state_dict_say_what_they_hold(tmp_path: Path, content, part):
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(InputError, match=part):
        load_weights(small(), tmp_path / "other.pt")


def test_missing_file_and_folder(tmp_path: Path):
    with pytest.raises(InputError, match=r"none\.pt: cannot read weights: No such file"):
        load_weights(small(), tmp_path / "none.pt")
    with pytest.raises(InputError, match="cannot read weights"):
        load_weights(small(), tmp_path)


def test_hash_follows_values_names_shapes_and_types_only():
    base = weights_hash(small())
    assert len(base) == 16
    assert weights_hash(small().to(memory_format=torch.channels_last)) == base
    assert weights_hash(small().eval()) == base
    changed = small()
    with torch.no_grad():
        changed[3].bias[0] += 1e-6
    renamed = nn.Sequential(nn.Identity(), *small())
    reshaped = small()
    reshaped[3].weight = nn.Parameter(reshaped[3].weight.reshape(16, 3))
    hashes = {base, *map(weights_hash, (changed, renamed, reshaped, small().double()))}
    assert len(hashes) == 5
