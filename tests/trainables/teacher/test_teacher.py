"""Teachers on the embedded digits: trained, resumed, recorded, loaded, refused."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from trainables.config import DataConfig, RuntimeConfig, TeacherConfig
from trainables.data.dataset import ImageData
from trainables.data.load import load_data
from trainables.errors import InputError
from trainables.network.architectures import build_model
from trainables.network.evaluate import evaluate
from trainables.network.weights import save_weights, weights_hash
from trainables.runtime.runtime import Runtime, resolve
from trainables.teacher.record import TeacherRecord
from trainables.teacher.teacher import Teacher, load_teacher
from trainables.teacher.training import train_teacher
from trainables.training.optim import lr_at

CONFIG = TeacherConfig(arch="cifar_resnet8", epochs=3, lr=0.05, batch_size=64)


@pytest.fixture(scope="module")
def data() -> ImageData:
    """Few digits, test images included."""
    return load_data(DataConfig(name="digits", train_limit=200), test=True)


@pytest.fixture(scope="module")
def runtime() -> Runtime:
    return resolve(RuntimeConfig(device="cpu", precision="fp32", threads=torch.get_num_threads()))


@pytest.fixture(scope="module")
def trained(data, runtime, tmp_path_factory) -> tuple[Teacher, Path, list[dict]]:
    """A teacher, its run directory and what its training reported."""
    run_dir = tmp_path_factory.mktemp("run")
    reports: list[dict] = []
    teacher = train_teacher(CONFIG, data, runtime, run_dir / "teacher.safetensors", report=reports.append)
    return teacher, run_dir, reports


class InterruptionError(Exception):
    """Stands for whatever ends a process."""


def interrupt_after(epoch: int):
    def report(metrics: dict) -> None:
        if metrics["epoch"] == epoch:
            raise InterruptionError

    return report


def test_training_lowers_the_loss_and_reports_every_epoch(trained, data):
    _, _, reports = trained
    assert [r["epoch"] for r in reports] == [1, 2, 3]
    assert reports[-1]["train_loss"] < 0.6 * reports[0]["train_loss"]
    assert all(r["seconds"] > 0 and r["images_per_second"] > 0 for r in reports)
    steps = data.steps_per_epoch(64)
    expected = [lr_at((e + 1) * steps - 1, 3 * steps, steps, CONFIG.lr) for e in range(3)]
    assert [r["lr"] for r in reports] == expected


def test_record_holds_what_the_model_scores(trained, data, runtime):
    teacher, _, reports = trained
    record = teacher.record
    assert not teacher.model.training
    val = evaluate(teacher.model, data.eval_batches("val", runtime), runtime)
    test = evaluate(teacher.model, data.eval_batches("test", runtime), runtime)
    assert (record.val_accuracy, record.val_loss) == (val.accuracy, val.loss)
    assert (record.test_accuracy, record.test_loss) == (test.accuracy, test.loss)
    assert (record.val_accuracy, record.val_loss) == (reports[-1]["val_accuracy"], reports[-1]["val_loss"])
    assert record.hash == weights_hash(teacher.model)
    assert (record.arch, record.epochs, record.source) == ("cifar_resnet8", 3, "trained")
    assert (record.data_hash, record.num_classes, record.image_shape) == (data.hash, 10, (3, 8, 8))


def test_the_run_directory_holds_weights_and_record_alone(trained):
    teacher, run_dir, _ = trained
    assert sorted(p.name for p in run_dir.iterdir()) == ["teacher.json", "teacher.safetensors"]
    assert TeacherRecord.load(run_dir / "teacher.json") == teacher.record
    with safe_open(run_dir / "teacher.safetensors", "pt") as file:
        assert file.metadata()["hash"] == teacher.record.hash
        assert file.metadata()["format"] == "1"


def test_test_data_is_scored_only_when_it_is_there(data, runtime, tmp_path):
    blind = dataclasses.replace(data, test=None)
    config = CONFIG.model_copy(update={"epochs": 1})
    record = train_teacher(config, blind, runtime, tmp_path / "teacher.safetensors").record
    assert (record.test_accuracy, record.test_loss) == (None, None)
    full = load_teacher(config, data, runtime, tmp_path).record
    assert full.test_accuracy is not None
    assert dataclasses.replace(full, test_accuracy=None, test_loss=None) == record


DROPPING = """
from torch import nn

def make(num_classes):
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(),
        nn.Linear(288, num_classes),
    )
"""


@pytest.fixture
def dropping(tmp_path, monkeypatch) -> TeacherConfig:
    """A tiny network of a user's own, with dropout."""
    (tmp_path / "dropping_for_test.py").write_text(DROPPING)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    return CONFIG.model_copy(update={"arch": "import:dropping_for_test:make"})


@pytest.mark.parametrize("done", [1, 3])
def test_resume_gives_the_numbers_of_an_unbroken_training(dropping, data, runtime, tmp_path, done):
    config = dropping
    whole = train_teacher(config, data, runtime, tmp_path / "a" / "teacher.safetensors", seed=5)
    out = tmp_path / "b" / "teacher.safetensors"
    with pytest.raises(InterruptionError):
        train_teacher(config, data, runtime, out, seed=5, report=interrupt_after(done))
    assert not out.exists()
    torch.rand(7)  # other work between the two must not matter
    epochs: list[int] = []
    resumed = train_teacher(
        config, data, runtime, out, seed=5, report=lambda metrics: epochs.append(metrics["epoch"])
    )
    assert epochs == list(range(done + 1, 4))
    assert resumed.record.hash == whole.record.hash
    assert resumed.record.val_loss == whole.record.val_loss
    assert resumed.record.epochs == 3


def test_training_leaves_the_callers_random_stream_alone_and_follows_its_seed(
    trained, data, runtime, tmp_path
):
    before = torch.get_rng_state()
    again = train_teacher(CONFIG, data, runtime, tmp_path / "same.safetensors", seed=0)
    other = train_teacher(CONFIG, data, runtime, tmp_path / "other.safetensors", seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert again.record.hash == trained[0].record.hash
    assert other.record.hash != trained[0].record.hash


def test_a_checkpoint_of_another_training_is_refused(data, runtime, tmp_path):
    out = tmp_path / "teacher.safetensors"
    with pytest.raises(InterruptionError):
        train_teacher(CONFIG, data, runtime, out, report=interrupt_after(1))
    for config, seed in ((CONFIG.model_copy(update={"lr": 0.2}), 0), (CONFIG, 1)):
        with pytest.raises(InputError, match=r"teacher\.ckpt is of a teacher training with another"):
            train_teacher(config, data, runtime, out, seed=seed)


def test_a_loss_that_is_not_finite_ends_with_advice_and_no_checkpoint(data, runtime, tmp_path):
    config = CONFIG.model_copy(update={"lr": 1e20, "warmup_epochs": 0.0})
    with pytest.raises(InputError, match=r"diverged.*lower teacher\.lr \(1e\+20\)"):
        train_teacher(config, data, runtime, tmp_path / "teacher.safetensors")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_and_channels_last_train_too(dropping, data, runtime, tmp_path, precision):
    mixed = dataclasses.replace(runtime, precision=precision, channels_last=True)
    losses: list[float] = []
    teacher = train_teacher(
        dropping,
        data,
        mixed,
        tmp_path / "teacher.safetensors",
        report=lambda metrics: losses.append(metrics["train_loss"]),
    )
    assert losses[-1] < 0.8 * losses[0]
    assert {p.dtype for p in teacher.model.parameters()} == {torch.float32}
    assert load_teacher(dropping, data, mixed, tmp_path).record == teacher.record


def test_fp16_scales_its_loss_and_resumes_the_scale(dropping, data, runtime, tmp_path):
    half = dataclasses.replace(runtime, precision="fp16")
    out = tmp_path / "teacher.safetensors"
    with pytest.raises(InterruptionError):
        train_teacher(dropping, data, half, out, report=interrupt_after(2))
    assert torch.load(tmp_path / "teacher.ckpt", weights_only=True)["scaler"]["scale"] > 1
    resumed = train_teacher(dropping, data, half, out)
    whole = train_teacher(dropping, data, half, tmp_path / "whole.safetensors")
    assert resumed.record.hash == whole.record.hash


FUSSY = """
import torch
from trainables.network.architectures import build_model

class Fussy(torch.nn.Module):
    "A network that finds no memory for more than `most` images at a time while it trains."
    def __init__(self, num_classes, most):
        super().__init__()
        self.net, self.most = build_model("cifar_resnet8", num_classes, (3, 8, 8)), most
    def forward(self, images):
        if self.training and len(images) > self.most:
            raise torch.OutOfMemoryError(f"{len(images)} images")
        return self.net(images)

def half(num_classes): return Fussy(num_classes, 20)
def none(num_classes): return Fussy(num_classes, 5)
"""


def test_a_teachers_batch_that_does_not_fit_is_computed_in_halves(data, runtime, tmp_path, monkeypatch):
    (tmp_path / "fussy_teacher.py").write_text(FUSSY)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    config = TeacherConfig(arch="import:fussy_teacher:half", epochs=2, batch_size=32)
    reports: list[dict] = []
    train_teacher(config, data, runtime, tmp_path / "half.safetensors", report=reports.append)
    assert reports[1]["train_loss"] < reports[0]["train_loss"]
    impossible = config.model_copy(update={"arch": "import:fussy_teacher:none"})
    expected = r"teacher\.batch_size: .* got 32: half a batch of 29 images does not fit: 15 images; lower it"
    with pytest.raises(InputError, match=expected):
        train_teacher(impossible, data, runtime, tmp_path / "none.safetensors")


def test_loading_gives_the_trained_teacher_back(trained, data, runtime):
    teacher, run_dir, _ = trained
    loaded = load_teacher(CONFIG, data, runtime, run_dir)
    assert loaded.record == teacher.record
    assert not loaded.model.training
    images = data.val.images[:4] / 255
    with torch.no_grad():
        assert torch.equal(loaded.model(images), teacher.model(images))


def test_a_trained_teacher_is_loaded_by_its_path(trained, data, tmp_path):
    teacher, run_dir, _ = trained
    for place in (run_dir, str(run_dir / "teacher.safetensors")):
        assert load_teacher(place, data).record == teacher.record
    with pytest.raises(InputError, match=r"no teacher: .*nowhere\.safetensors does not exist"):
        load_teacher(tmp_path / "nowhere.safetensors", data)
    shutil.copy(run_dir / "teacher.safetensors", tmp_path / "bare.safetensors")
    with pytest.raises(InputError, match=r"no record beside it.*TeacherConfig\(arch=\.\.\., checkpoint="):
        load_teacher(tmp_path / "bare.safetensors", data)


def test_another_split_is_scored_anew_with_a_warning(trained, data, runtime, caplog):
    swapped = dataclasses.replace(data, val=data.train, hash="another split...")
    with caplog.at_level(logging.WARNING):
        record = load_teacher(CONFIG, swapped, runtime, trained[1]).record
    assert "may have seen these validation images" in caplog.text
    assert record.data_hash == "another split..."
    assert record.val_accuracy != trained[0].record.val_accuracy
    assert record.test_accuracy == trained[0].record.test_accuracy


def test_everything_that_differs_from_the_recorded_teacher_is_named(trained, data, runtime):
    _, run_dir, _ = trained
    other = dataclasses.replace(
        data,
        classes=tuple("abcdefghijk"),
        mean=(0.5, 0.5, 0.5),
        std=(1.0, 1.0, 1.0),
        train=dataclasses.replace(data.train, images=torch.zeros(1, 3, 16, 12, dtype=torch.uint8)),
    )
    config = TeacherConfig(arch="torchvision:resnet18")
    with pytest.raises(InputError) as caught:
        load_teacher(config, other, runtime, run_dir)
    for part in (
        "teacher.arch was cifar_resnet8, now torchvision:resnet18",
        "classes was 10, now 11",
        "image shape was (3, 8, 8), now (3, 16, 12)",
        "small stem was False, now True",
        "data.mean was",
        "data.std was",
    ):
        assert part in str(caught.value)


def copy_run(source: Path, target: Path) -> Path:
    for file in source.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target


def test_weights_that_are_not_the_records_are_refused(trained, data, runtime, tmp_path):
    run_dir = copy_run(trained[1], tmp_path)
    save_weights(build_model("cifar_resnet8", 10, (3, 8, 8)), run_dir / "teacher.safetensors", {})
    with pytest.raises(InputError, match=f"its record says {trained[0].record.hash}"):
        load_teacher(CONFIG, data, runtime, run_dir)


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (None, "cannot read the teacher's record"),
        ("{", "cannot read the teacher's record"),
        ("[]", "expected a teacher's record of format 1"),
        ('{"format": 2}', "expected a teacher's record of format 1"),
        ('{"format": 1, "colour": "red"}', "missing or unknown arch, colour"),
    ],
)
def test_a_record_that_cannot_be_read_is_named(trained, data, runtime, tmp_path, content, part):
    record = copy_run(trained[1], tmp_path) / "teacher.json"
    record.unlink()
    if content is not None:
        record.write_text(content)
    with pytest.raises(InputError, match=rf"teacher\.json: .*{part}"):
        load_teacher(CONFIG, data, runtime, tmp_path)


def test_no_teacher_says_how_to_get_one(data, runtime, tmp_path):
    with pytest.raises(InputError, match=r"no teacher: .*`ama teacher`.*teacher\.checkpoint"):
        load_teacher(CONFIG, data, runtime, tmp_path)


def test_a_given_checkpoint_is_loaded_and_scored(trained, data, runtime, tmp_path):
    teacher, _, _ = trained
    torch.save({"state_dict": teacher.model.state_dict()}, tmp_path / "given.pt")
    config = CONFIG.model_copy(update={"checkpoint": str(tmp_path / "given.pt")})
    given = load_teacher(config, data, runtime, tmp_path / "no run").record
    assert (given.epochs, given.seconds, given.source) == (0, 0.0, "given.pt")
    assert (
        dataclasses.replace(given, epochs=3, seconds=teacher.record.seconds, source="trained")
        == teacher.record
    )


def test_a_given_checkpoint_that_does_not_fit_names_keys_and_architecture(trained, data, runtime, tmp_path):
    save_weights(trained[0].model, tmp_path / "given.safetensors", {})
    config = TeacherConfig(arch="cifar_resnet14", checkpoint=str(tmp_path / "given.safetensors"))
    with pytest.raises(
        InputError, match=r"does not fit cifar_resnet14 with 10 classes: 30 missing \(layer1\.1"
    ):
        load_teacher(config, data, runtime, tmp_path)


def test_record_is_json_with_format_and_version(trained):
    content = json.loads((trained[1] / "teacher.json").read_text())
    assert content["format"] == 1
    assert content["version"]
    assert math.isfinite(content["val_loss"])
