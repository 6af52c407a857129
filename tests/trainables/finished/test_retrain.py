"""Retraining: files, read-back, baselines, the table."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch

from trainables.blocks.blocks import Block, find_blocks
from trainables.config import (
    DataConfig,
    DistillConfig,
    OptimConfig,
    RuntimeConfig,
    StudentSpec,
    TeacherConfig,
)
from trainables.data.dataset import ImageData
from trainables.data.load import load_data
from trainables.errors import InputError
from trainables.finished.model_card import model_card
from trainables.finished.model_files import MANIFEST, load_model
from trainables.finished.retrain import RetrainResult, baselines, retrain_one
from trainables.loss_config import LossConfig
from trainables.network.evaluate import evaluate
from trainables.runtime.runtime import Runtime, resolve
from trainables.teacher.teacher import Teacher
from trainables.teacher.training import train_teacher
from trainables.training.metrics import EpochMetrics

DATA = DataConfig(name="digits", train_limit=250)


@pytest.fixture(scope="module")
def runtime() -> Runtime:
    return resolve(RuntimeConfig(device="cpu", precision="fp32", threads=1))


@pytest.fixture(scope="module")
def data() -> ImageData:
    return load_data(DATA, test=True)


@pytest.fixture(scope="module")
def teacher(data: ImageData, runtime: Runtime, tmp_path_factory: pytest.TempPathFactory) -> Teacher:
    config = TeacherConfig(arch="cifar_resnet14", epochs=2, batch_size=50)
    return train_teacher(config, data, runtime, tmp_path_factory.mktemp("teacher") / "teacher.safetensors")


@pytest.fixture(scope="module")
def blocks(teacher: Teacher, data: ImageData) -> tuple[Block, ...]:
    return find_blocks(teacher.model, torch.zeros(1, *data.image_shape))


@pytest.fixture(scope="module")
def config(blocks: tuple[Block, ...]) -> DistillConfig:
    """Two fused spans and a single one."""
    widths = dict.fromkeys(("layer1.0", "layer1.1", "layer2.0", "layer3.1"), 0.5)
    return DistillConfig(
        student=StudentSpec(widths=widths), optim=OptimConfig(batch_size=50), epochs=2, seed=3
    )


@pytest.fixture(scope="module")
def result(
    config: DistillConfig,
    teacher: Teacher,
    blocks: tuple[Block, ...],
    data: ImageData,
    runtime: Runtime,
    tmp_path_factory: pytest.TempPathFactory,
) -> RetrainResult:
    folder = tmp_path_factory.mktemp("run") / "student-3"
    made = {"command": "ama retrain pick.yaml", "seeds": [3, 4], "overrides": []}
    return retrain_one(config, teacher, blocks, data, runtime, folder, data_config=DATA, made=made)


def test_model_comes_back_with_the_scores_it_was_saved_with(
    result: RetrainResult, data: ImageData, runtime: Runtime, teacher: Teacher
) -> None:
    for path in (result.path, result.path.parent, result.path.parent / "model.json"):
        model, manifest = load_model(path)
    score = evaluate(model, data.eval_batches("test", runtime), runtime)
    assert (score.accuracy, score.loss) == (result.test_accuracy, result.test_loss)
    assert not model.training
    assert manifest["results"]["seed"] == result.seed == 3
    assert result.params == sum(p.numel() for p in model.parameters())
    assert manifest["teacher"]["hash"] == teacher.record.hash
    assert manifest["data_hash"] == data.hash
    assert DataConfig.model_validate(manifest["data"]["config"]) == DATA
    assert manifest["data"]["classes"] == list(data.classes)
    assert {"ama-search", "torch", "python"} <= set(manifest["versions"])


def test_student_is_smaller_than_its_teacher(
    result: RetrainResult, teacher: Teacher, blocks: tuple[Block, ...]
) -> None:
    replaced = sum(block.flops for block in blocks if block.name != "layer2.1")
    assert result.params < sum(p.numel() for p in teacher.model.parameters())
    assert 0 < result.flops < replaced


def test_the_card_says_what_the_manifest_says(result: RetrainResult, data: ImageData) -> None:
    _, manifest = load_model(result.path)
    assert manifest["made"] == {"command": "ama retrain pick.yaml", "seeds": [3, 4], "overrides": []}
    assert data.test is not None
    assert manifest["data"]["images"] == {"train": 250, "val": len(data.val), "test": len(data.test)}
    card = (result.path.parent / "README.md").read_text()
    assert card == model_card(manifest)
    for words in (
        "# student, seed 3",
        f"{100 * result.test_accuracy:.2f} %",
        manifest["teacher"]["hash"],
        manifest["data_hash"],
        "| layer1.0 | AMA module, width 0.5 |",
        "| layer2.1 | kept |",
        "4 of 6 blocks are replaced",
        "0.5 × cross-entropy + 0.5 × logits of the teacher (temperature 4) + 1 × activation maps",
        "- command: ama retrain pick.yaml",
        "- seeds: 3, 4",
    ):
        assert words in card
    assert "overrides" not in card


def test_a_card_lists_the_settings_of_any_method(result: RetrainResult) -> None:
    _, manifest = load_model(result.path)
    card = model_card(manifest)
    assert re.search(
        r"- Method: ama \(alpha 0.5, tau 4, logits kl, beta 1, maps relative, .*supervision uniform", card
    )
    for settings, line in (
        (
            {"weight": 0.25, "bank": 4096, "kind": "pairs"},
            "import:mine.py:Mine (weight 0.25, bank 4096, kind pairs)",
        ),
        ({"alpha": 0.5}, "import:mine.py:Mine (alpha 0.5)"),
        ({"taps": ["a", "b"], "ema": None}, "import:mine.py:Mine (taps [a, b], ema None)"),
        ({}, "import:mine.py:Mine"),
    ):
        other = {
            **manifest,
            "config": {**manifest["config"], "method": "import:mine.py:Mine", "loss": settings},
        }
        lines = model_card(other).splitlines()
        assert f"- Method: {line}" in lines
        assert not [text for text in lines if text.startswith("- Loss:")]
        assert any(text.startswith("- SGD, peak learning rate") for text in lines)
    old = {key: value for key, value in manifest["config"].items() if key != "method"}
    assert model_card({**manifest, "config": old}) == card, "version 0.1 named no method"


def test_test_images_are_read_when_training_is_over(
    config: DistillConfig,
    teacher: Teacher,
    blocks: tuple[Block, ...],
    data: ImageData,
    runtime: Runtime,
    tmp_path: Path,
) -> None:
    fresh = ImageData.from_arrays(data.to_arrays())  # remembers which splits were read

    def splits() -> set[str]:
        return {name for name, _ in fresh._on_device}

    epochs: list[set[str]] = []
    retrain_one(config, teacher, blocks, fresh, runtime, tmp_path, report=lambda _: epochs.append(splits()))
    assert epochs == [set(), set()]  # training has data of its own, without test images
    assert splits() == {"test"}


def test_a_model_that_version_0_1_finished_is_read_back(
    result: RetrainResult,
    config: DistillConfig,
    teacher: Teacher,
    blocks: tuple[Block, ...],
    data: ImageData,
    runtime: Runtime,
    tmp_path: Path,
) -> None:
    shutil.copytree(result.path.parent, tmp_path / "old")
    file = tmp_path / "old" / MANIFEST
    manifest = json.loads(file.read_text())
    for added in ("method", "scores"):
        del manifest["config"][added]
    file.write_text(json.dumps(manifest))
    again = retrain_one(config, teacher, blocks, data, runtime, file.parent)
    assert (again.test_accuracy, again.seed) == (result.test_accuracy, result.seed)


def test_without_test_images_nothing_trains(
    config: DistillConfig, teacher: Teacher, blocks: tuple[Block, ...], runtime: Runtime, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"test images: load_data\(\.\.\., test=True\)"):
        retrain_one(config, teacher, blocks, load_data(DATA), runtime, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_finished_run_is_read_back(
    result: RetrainResult,
    config: DistillConfig,
    teacher: Teacher,
    blocks: tuple[Block, ...],
    data: ImageData,
    runtime: Runtime,
) -> None:
    folder = result.path.parent
    assert {file.name for file in folder.iterdir()} == {"model.safetensors", "model.json", "README.md"}
    before = {file: file.stat().st_mtime_ns for file in folder.iterdir()}
    seen: list[EpochMetrics] = []
    assert retrain_one(config, teacher, blocks, data, runtime, folder, report=seen.append) == result
    assert not seen and before == {file: file.stat().st_mtime_ns for file in folder.iterdir()}


def test_folder_of_another_run_is_refused(
    result: RetrainResult,
    config: DistillConfig,
    teacher: Teacher,
    blocks: tuple[Block, ...],
    data: ImageData,
    runtime: Runtime,
) -> None:
    folder = result.path.parent
    with pytest.raises(InputError, match="finished model of another config"):
        other = config.model_copy(update={"epochs": 9})
        retrain_one(other, teacher, blocks, data, runtime, folder)
    with pytest.raises(InputError, match="finished model of another kind"):
        retrain_one(config, teacher, blocks, data, runtime, folder, kind="scratch")


def test_interrupted_retraining_continues(
    result: RetrainResult,
    config: DistillConfig,
    teacher: Teacher,
    blocks: tuple[Block, ...],
    data: ImageData,
    runtime: Runtime,
    tmp_path: Path,
) -> None:
    class Killed(Exception):  # noqa: N818
        pass

    def kill(metrics: EpochMetrics) -> None:
        raise Killed

    seen: list[int] = []
    with pytest.raises(Killed):
        retrain_one(config, teacher, blocks, data, runtime, tmp_path, report=kill)
    again = retrain_one(
        config, teacher, blocks, data, runtime, tmp_path, report=lambda m: seen.append(m.epoch)
    )
    assert seen == [2]
    assert (again.test_accuracy, again.test_loss) == (result.test_accuracy, result.test_loss)


def test_files_that_are_no_model(result: RetrainResult, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"model\.json: no such file"):
        load_model(tmp_path)
    manifest = tmp_path / "model.json"
    manifest.write_text("{")
    with pytest.raises(InputError, match="not JSON"):
        load_model(tmp_path)
    manifest.write_text('{"format": 99}')
    with pytest.raises(InputError, match="format 1, got 99"):
        load_model(tmp_path)
    manifest.write_text("[]")
    with pytest.raises(InputError, match="got 'list'"):
        load_model(tmp_path)


def test_weights_gone_or_of_another_student(
    result: RetrainResult,
    config: DistillConfig,
    teacher: Teacher,
    blocks: tuple[Block, ...],
    data: ImageData,
    runtime: Runtime,
    tmp_path: Path,
) -> None:
    manifest = json.loads((result.path.parent / "model.json").read_text())
    (tmp_path / "model.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=r"model\.safetensors: missing beside its manifest"):
        retrain_one(config, teacher, blocks, data, runtime, tmp_path)
    (tmp_path / "model.safetensors").write_bytes(result.path.read_bytes())
    manifest["config"]["student"]["widths"] = {"layer3.0": 0.25}
    (tmp_path / "model.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=r"does not fit.*layer1\.0\.conv1"):
        load_model(tmp_path)


def test_baselines_are_the_same_student_without_distillation(config: DistillConfig) -> None:
    frozen = config.model_copy(
        update={"train": "modules", "warm_start": "library", "loss": LossConfig(supervision="adaptive")}
    )
    found = baselines(frozen)
    assert {name: each.warm_start for name, each in found.items()} == {
        "scratch": "none",
        "finetune": "teacher",
    }
    for each in found.values():
        assert (each.loss.alpha, each.loss.beta, each.train) == (0.0, 0.0, "all")
        assert (each.student, each.optim, each.epochs, each.seed) == (
            frozen.student,
            frozen.optim,
            frozen.epochs,
            frozen.seed,
        )
