"""Checkpoints as people's tools write them: what loads, what is said, and what is refused by kind of file."""

from __future__ import annotations

import argparse
import collections
import copy
import datetime
import gzip
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file, save_model
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from trainables.errors import InputError
from trainables.network.weights import load_weights, save_weights, weights_hash

State = dict[str, torch.Tensor]


class Net(nn.Module):
    """Two blocks and a head, with the names of a ResNet."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3)
        self.layer1 = nn.Sequential(nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)), nn.Conv2d(4, 4, 1))
        self.fc = nn.Linear(4, classes)


def net(seed: int = 0, classes: int = 3) -> Net:
    torch.manual_seed(seed)
    return Net(classes)


def averaged(model: nn.Module) -> nn.Module:
    """`model` as the average in an `AveragedModel`."""
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))


def under(prefix: str, weights: State) -> State:
    return {prefix + name: tensor for name, tensor in weights.items()}


WEIGHTS = net(seed=1).state_dict()
OTHER = net(seed=2).state_dict()
LOADS: dict[str, Any] = {
    "torchvision's script": {"model": WEIGHTS, "args": argparse.Namespace(lr=0.1), "epoch": 3},
    "numpy scalars": {"state_dict": WEIGHTS, "best": np.float64(0.93), "n": np.int64(3), "f": np.float32(1)},
    "paths and times": {"model": WEIGHTS, "root": Path("data/x"), "at": datetime.datetime(2024, 1, 2)},
    "numpy array": {"state_dict": WEIGHTS, "history": np.arange(6.0).reshape(2, 3)},
    "Lightning": {"state_dict": under("model.", WEIGHTS), "hyper_parameters": {"lr": 0.1}, "loops": {}},
    "Lightning with an own name": {"state_dict": under("classifier.net.", WEIGHTS)},
    "pytorch-cifar": {"net": WEIGHTS, "acc": 93.1},
    "pytorch-cifar in parallel": {"net": under("module.", WEIGHTS), "acc": 93.1},
    "under a key of one's own": {"the_weights": {"of_today": WEIGHTS}},
    "in a list": [3, WEIGHTS],
    "optimiser beside": {
        "optimizer": {"state": {0: {"exp_avg": torch.ones(4, 3, 3, 3)}}, "param_groups": [{"lr": 0.1}]},
        "model_state_dict": WEIGHTS,
    },
    "EMA of torch": averaged(net(seed=1)).state_dict(),
    "compiled": under("_orig_mod.", WEIGHTS),
    "compiled inner module": {k.replace("layer1.0", "layer1._orig_mod.0"): v for k, v in WEIGHTS.items()},
    "parallel inner module": {k.replace("layer1.", "layer1.module."): v for k, v in WEIGHTS.items()},
    "checkpointed and sharded": {
        k.replace("layer1.", "_fsdp_wrapped_module.layer1._checkpoint_wrapped_module."): v
        for k, v in WEIGHTS.items()
    },
    "parallel of a compiled one": under("module._orig_mod.", WEIGHTS),
    "compiled inside Lightning": {"state_dict": under("model._orig_mod.", WEIGHTS)},
    "profiler's counters": {
        **WEIGHTS,
        **{
            f"{where}{what}": torch.zeros(1)
            for where in ("", "layer1.")
            for what in ("total_ops", "total_params")
        },
    },
    "default dict": collections.defaultdict(list, WEIGHTS),
    "ordered dict": collections.OrderedDict(WEIGHTS),
    "half": {k: v.half() if v.is_floating_point() else v for k, v in WEIGHTS.items()},
    "same weights twice": {"state_dict": WEIGHTS, "model": copy.deepcopy(WEIGHTS)},
    "without counters": {k: v for k, v in WEIGHTS.items() if "num_batches" not in k},
}


def loaded(content: Any, folder: Path, **options: Any) -> tuple[Net, tuple[str, ...]]:
    torch.save(content, folder / "checkpoint.pt")
    model = net(seed=3)
    return model, load_weights(model, folder / "checkpoint.pt", **options)


def refusal(path: Path, model: nn.Module | None = None) -> str:
    """The message with which a file is refused; the model is unchanged."""
    model = model or net(seed=3)
    before = weights_hash(model)
    with pytest.raises(InputError) as caught:
        load_weights(model, path)
    assert str(path) in str(caught.value)
    assert weights_hash(model) == before
    return str(caught.value)


def refused(content: Any, folder: Path) -> str:
    torch.save(content, folder / "checkpoint.pt")
    return refusal(folder / "checkpoint.pt")


@pytest.mark.parametrize("name", LOADS)
def test_the_weights_are_found_whatever_holds_them(name: str, tmp_path: Path) -> None:
    model, notes = loaded(LOADS[name], tmp_path)
    for key, tensor in WEIGHTS.items():
        atol = 1e-3 if name == "half" else 0
        torch.testing.assert_close(model.state_dict()[key], tensor, atol=atol, rtol=0, msg=key)
    assert notes == ()


def test_the_old_format_of_torch_loads(tmp_path: Path) -> None:
    torch.save({"net": WEIGHTS}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    model = net(seed=3)
    load_weights(model, tmp_path / "old.pt")
    assert weights_hash(model) == weights_hash(net(seed=1))


@pytest.mark.parametrize(
    ("content", "where"),
    [
        ({"state_dict": OTHER, "state_dict_ema": WEIGHTS}, "under 'state_dict_ema'"),
        ({"model": OTHER, "model_ema": averaged(net(seed=1)).state_dict()}, "under 'model_ema'"),
        ({"model": OTHER, "ema": {"module": WEIGHTS}}, "under 'ema/module'"),
        (
            {"state_dict": under("net.", OTHER) | under("ema_net.", WEIGHTS)},
            "under 'state_dict' with the prefix 'ema_net.'",
        ),
        ({"net": OTHER, "swa_model": WEIGHTS}, "under 'swa_model'"),
    ],
    ids=["timm", "torchvision", "nested", "one state dict", "SWA"],
)
def test_averaged_weights_come_first_and_it_is_said(
    content: Any, where: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, notes = loaded(content, tmp_path)
    assert weights_hash(model) == weights_hash(net(seed=1))
    assert notes[0] == f"the averaged weights (EMA) {where} are taken"
    assert notes[0] in caplog.text and "checkpoint.pt" in caplog.text


def test_averaged_weights_that_do_not_fit_are_named(tmp_path: Path) -> None:
    part = {name: tensor for name, tensor in OTHER.items() if name != "fc.bias"}
    model, notes = loaded({"state_dict": WEIGHTS, "state_dict_ema": part}, tmp_path)
    assert weights_hash(model) == weights_hash(net(seed=1))
    assert notes == (
        "the averaged weights (EMA) under 'state_dict_ema' do not fit; those under 'state_dict' are taken",
    )


@pytest.mark.parametrize(
    ("extra", "prefix"),
    [
        ({"criterion.weight": torch.ones(3)}, "net."),
        ({"criterion.weight": torch.ones(3)}, ""),
        ({"train_acc.total": torch.ones(1), "loss_fn.weight": torch.ones(3)}, "model."),
        ({"projector.weight": torch.ones(3, 3)}, "backbone."),
    ],
)
def test_tensors_beside_the_model_are_named_and_ignored(extra: State, prefix: str, tmp_path: Path) -> None:
    model, notes = loaded({"state_dict": under(prefix, WEIGHTS) | extra}, tmp_path)
    assert weights_hash(model) == weights_hash(net(seed=1))
    assert len(notes) == 1 and all(name in notes[0] for name in extra)


def test_a_larger_model_is_no_prefix(tmp_path: Path) -> None:
    deeper = {**WEIGHTS, "layer1.2.weight": torch.ones(4, 4, 1, 1)}
    assert "1 unexpected (layer1.2.weight)" in refused(deeper, tmp_path)
    assert "1 unexpected (net.layer1.2.weight)" in refused(under("net.", deeper), tmp_path)


def test_two_sets_that_fit_are_not_guessed_between(tmp_path: Path) -> None:
    text = refused(under("student.", WEIGHTS) | under("teacher.", OTHER), tmp_path)
    assert "several sets of weights fit the model: with the prefix 'student.', with the prefix" in text
    text = refused({"first": WEIGHTS, "best": OTHER}, tmp_path)
    assert "under 'first', under 'best'" in text
    text = refused({"ema_0.9": WEIGHTS, "ema_0.99": OTHER, "model": OTHER}, tmp_path)
    assert "under 'ema_0.9', under 'ema_0.99'" in text


def test_the_usual_key_wins_and_the_others_are_named(tmp_path: Path) -> None:
    model, notes = loaded({"best": OTHER, "state_dict": WEIGHTS}, tmp_path)
    assert weights_hash(model) == weights_hash(net(seed=1))
    assert notes == ("the weights under 'state_dict' are taken; others fit, too: under 'best'",)


def test_a_model_with_a_wrappers_name_keeps_it(tmp_path: Path) -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module, self.weight = nn.Linear(2, 2), nn.Parameter(torch.zeros(2, 2))

    model = Named()  # without `module` two names are the same
    torch.save(under("net.", model.state_dict()), tmp_path / "m.pt")
    before = weights_hash(model)
    nn.init.ones_(model.module.weight)
    load_weights(model, tmp_path / "m.pt")
    assert weights_hash(model) == before


def test_a_compiled_model_takes_plain_weights(tmp_path: Path) -> None:
    torch.save(WEIGHTS, tmp_path / "plain.pt")
    model = nn.ModuleDict({"_orig_mod": net(seed=3)})  # names as those of torch.compile
    load_weights(model, tmp_path / "plain.pt")
    assert torch.equal(model["_orig_mod"].fc.weight, WEIGHTS["fc.weight"])


def test_tied_tensors_that_safetensors_writes_once(tmp_path: Path) -> None:
    def tied(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
        model[2].weight = model[0].weight
        return model

    save_model(tied(1), str(tmp_path / "tied.safetensors"))
    model = tied(2)
    load_weights(model, tmp_path / "tied.safetensors")
    assert weights_hash(model) == weights_hash(tied(1))
    loose = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    assert "1 missing" in refusal(tmp_path / "tied.safetensors", loose)


def test_state_that_is_no_tensor_does_not_get_in_the_way(tmp_path: Path) -> None:
    class Extra(nn.Linear):
        def get_extra_state(self) -> dict[str, int]:
            return {"calls": 3}

        def set_extra_state(self, state: object) -> None:
            raise AssertionError("no tensor was saved")

    save_weights(Extra(2, 2), tmp_path / "own.safetensors", {})
    load_weights(Extra(2, 2), tmp_path / "own.safetensors")
    torch.save(Extra(2, 2).state_dict(), tmp_path / "own.pt")
    load_weights(Extra(2, 2), tmp_path / "own.pt")


@pytest.mark.parametrize("prefix", ["", "model."])
def test_a_head_of_another_size_is_refused_with_the_way_out(prefix: str, tmp_path: Path) -> None:
    larger = under(prefix, {**WEIGHTS, "fc.weight": torch.zeros(100, 4), "fc.bias": torch.zeros(100)})
    text = refused(larger, tmp_path)
    assert "2 of another shape (fc.weight: file (100, 4), model (3, 4), fc.bias" in text
    assert "to take all but the head" in text and "fresh_head=True" in text
    model, notes = loaded(larger, tmp_path, fresh_head=True)
    assert torch.equal(model.fc.weight, net(seed=3).fc.weight)
    assert torch.equal(model.conv1.weight, WEIGHTS["conv1.weight"])
    assert notes == ("the head (fc.weight, fc.bias) has another number of classes and starts fresh",)


def test_other_layers_of_another_size_are_no_head(tmp_path: Path) -> None:
    wrong = {**WEIGHTS, "fc.weight": torch.zeros(100, 4), "conv1.weight": torch.zeros(4, 1, 3, 3)}
    assert "the head" not in refused(wrong, tmp_path)
    with pytest.raises(InputError, match="2 of another shape"):
        loaded(wrong, tmp_path, fresh_head=True)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["conv1.weight", "layer1.0.1.running_var"])
def test_weights_that_are_not_finite_are_refused(value: float, name: str, tmp_path: Path) -> None:
    broken = copy.deepcopy(WEIGHTS)
    broken[name].view(-1)[1] = value
    text = refused({"state_dict": broken}, tmp_path)
    assert f"1 of {len(WEIGHTS)} tensors are not finite" in text and name in text


def test_a_mask_may_be_infinite(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    model.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
    torch.save(model.state_dict(), tmp_path / "m.pt")
    load_weights(model, tmp_path / "m.pt")


@pytest.mark.parametrize(
    ("dtype", "name"),
    [
        (torch.int8, "int8"),
        (torch.uint8, "uint8"),
        (torch.int64, "int64"),
        (torch.float8_e4m3fn, "float8_e4m3fn"),
    ],
)
def test_quantised_weights_are_refused(dtype: torch.dtype, name: str, tmp_path: Path) -> None:
    coarse = {k: v.to(dtype) if v.is_floating_point() else v for k, v in WEIGHTS.items()}
    text = refused(coarse, tmp_path)
    assert "quantised or of a wrong type" in text and f"conv1.weight: {name}" in text


def test_pickled_models_are_named(tmp_path: Path) -> None:
    torch.save(nn.Sequential(nn.Linear(2, 2)), tmp_path / "whole.pt")
    torch.save(nn.Sequential(nn.Linear(2, 2)), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    torch.save({"epoch": 3, "model": nn.Sequential(nn.Linear(2, 2))}, tmp_path / "inside.pt")
    for path in tmp_path.glob("*.pt"):
        text = refusal(path)
        assert "a pickled model (of class torch.nn.modules.container.Sequential)" in text, path
        assert "save model.state_dict()" in text and "state_dict(), 'weights.pt')" in text
    torch.save(net(), tmp_path / "own.pt")
    assert re_class(refusal(tmp_path / "own.pt")).endswith("test_weight_files.Net")


def re_class(text: str) -> str:
    return text.partition("of class ")[2].partition(")")[0]


class Config:
    """Of a user's training script."""


@pytest.mark.parametrize(
    ("thing", "named"),
    [
        (Config(), "test_weight_files.Config"),
        (np.array([Config()], dtype=object), "numpy.dtypes.ObjectDType"),
        (collections.Counter.most_common, "getattr"),
        (np.random.default_rng(0), "numpy.random"),
    ],
)
def test_other_objects_are_named(thing: object, named: str, tmp_path: Path) -> None:
    text = refused({"state_dict": WEIGHTS, "config": thing}, tmp_path)
    assert "holds Python objects beside tensors" in text and named in text
    assert "save model.state_dict()" in text


def write_torchscript(path: Path) -> None:
    torch.jit.script(nn.Linear(2, 2)).save(str(path))


def write_pt2(path: Path) -> None:
    program = torch.export.export(nn.Linear(2, 2), (torch.zeros(1, 2),))
    torch.export.save(program, path)


def write_cut(path: Path) -> None:
    torch.save(WEIGHTS, path)
    path.write_bytes(path.read_bytes()[:900])


def write_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("weights/model.pt", b"1")


KINDS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "TorchScript": (write_torchscript, "a TorchScript model"),
    "pt2": (write_pt2, r"an exported program (.pt2)"),
    "cut short": (write_cut, "a damaged torch file"),
    "zip": (write_zip, "a zip archive (weights/model.pt), not written by torch.save"),
    "npz": (lambda path: np.savez(path.open("wb"), a=np.zeros(2)), "a NumPy archive (.npz)"),
    "npy": (lambda path: np.save(path.open("wb"), np.zeros(2)), "a single NumPy array"),
    "LFS": (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"), "`git lfs pull`"),
    "page": (lambda path: path.write_text("<!DOCTYPE html><html></html>"), "a web page"),
    "gzip": (lambda path: path.write_bytes(gzip.compress(b"weights")), "compressed with gzip"),
    "Keras": (lambda path: path.write_bytes(b"\x89HDF\r\n\x1a\n"), "an HDF5 file"),
    "empty": (lambda path: path.write_bytes(b""), "the file is empty"),
    "text": (lambda path: path.write_text("these are no weights"), "damaged or of another kind"),
    "pickle": (lambda path: path.write_bytes(pickle.dumps(Config())), "a pickle that torch.save did not"),
    "pickled weights": (
        lambda path: path.write_bytes(pickle.dumps(WEIGHTS)),
        "a pickle that torch.save did not",
    ),
    "cut pickle": (
        lambda path: path.write_bytes(pickle.dumps([1, 2.5])[:-3]),
        "a pickle that torch.save did not",
    ),
    "folder": (
        lambda path: (path / "model.bin").mkdir(parents=True),
        "a folder; name the file in it (found: model",
    ),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", KINDS)
def test_other_kinds_of_files_are_named(name: str, tmp_path: Path) -> None:
    write, text = KINDS[name]
    write(tmp_path / "weights")
    assert text in refusal(tmp_path / "weights")


def flip(path: Path, tensor: torch.Tensor) -> None:
    """Flip one bit of the tensor in the file."""
    content = bytearray(path.read_bytes())
    content[bytes(content).index(tensor.numpy().tobytes()) + 1] ^= 4
    path.write_bytes(content)


def test_flipped_bits_are_noticed_where_there_is_a_checksum(tmp_path: Path) -> None:
    torch.save({"net": WEIGHTS}, tmp_path / "a.pt")
    save_weights(net(seed=1), tmp_path / "b.safetensors", {})
    save_file(WEIGHTS, tmp_path / "c.safetensors")
    for path in tmp_path.iterdir():
        load_weights(net(), path)
        flip(path, WEIGHTS["conv1.weight"])
    assert "a damaged torch file" in refusal(tmp_path / "a.pt")
    assert "a damaged file: its weights have the hash" in refusal(tmp_path / "b.safetensors")
    load_weights(net(), tmp_path / "c.safetensors")  # the format has none


def test_files_without_checksums_load(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(WEIGHTS, tmp_path / "a.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    load_weights(net(), tmp_path / "a.pt")


def test_files_without_tensors_say_what_they_hold(tmp_path: Path) -> None:
    assert "got a mapping of epoch, best" in refused({"epoch": 3, "best": 0.5}, tmp_path)
    assert "got int" in refused(3, tmp_path)
    text = refused({"state_dict": {"something.else": torch.zeros(1)}}, tmp_path)
    assert "no weights of the model (such as conv1.weight), but a mapping of state_dict" in text
