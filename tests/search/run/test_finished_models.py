"""`ama evaluate` and `ama export` on a model that was really retrained."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from analysis.picks.pick import pick
from analysis.picks.pick_file import write_pick
from search.run.finished_models import CHECKED_IMAGES, evaluate_model, export_retrained
from search.run.retrain import retrain_picks
from trainables.config import DataConfig
from trainables.data.load import load_data
from trainables.errors import InputError


@pytest.fixture(scope="module")
def model(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    picks = pick(tiny_run, knee=True)
    write_pick(folder / "pick.yaml", picks, tiny_run)
    retrain_picks(folder / "pick.yaml", seeds=1, epochs=2, out=folder)
    return folder / f"trial-{picks[0].number}" / "student" / "seed-1"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The test images of digits as PNG files, `test/<class>/*`."""
    root = tmp_path_factory.mktemp("images")
    data = load_data(DataConfig(name="digits"), test=True)
    assert data.test is not None
    for index, (pixels, label) in enumerate(zip(data.test.images, data.test.labels, strict=True)):
        place = root / "test" / data.classes[int(label)]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(place / f"{index}.png")
    return root


@pytest.fixture
def with_cache(model: Path, tmp_path: Path) -> Path:
    """A copy of the model whose decoded images are cached in the test's own folder."""
    copy = tmp_path / "model"
    shutil.copytree(model, copy)
    edit(copy, cache=str(tmp_path / "cache"))
    return copy


def edit(model: Path, **config: object) -> None:
    manifest = json.loads((model / "model.json").read_text())
    manifest["data"]["config"].update(config)
    (model / "model.json").write_text(json.dumps(manifest))


def test_scoring_again_gives_the_manifests_figures(model: Path) -> None:
    answer = evaluate_model(model)
    results = json.loads((model / "model.json").read_text())["results"]
    assert answer["n"] == 359
    assert answer["data"] == "digits"
    assert answer["accuracy"] == results["test_accuracy"]
    assert answer["loss"] == pytest.approx(results["test_loss"], rel=1e-5)


def test_the_same_images_in_a_folder_score_the_same(with_cache: Path, images: Path) -> None:
    own, folder = evaluate_model(with_cache), evaluate_model(with_cache, images)
    assert (folder["n"], folder["accuracy"], folder["skipped"]) == (own["n"], own["accuracy"], 0)
    assert folder["loss"] == pytest.approx(own["loss"], rel=1e-5)
    below = evaluate_model(with_cache, images / "test")  # <class>/* right below it
    assert below["accuracy"] == own["accuracy"]


def test_unreadable_images_are_named_or_counted(with_cache: Path, images: Path, tmp_path: Path) -> None:
    spoiled = tmp_path / "spoiled"
    shutil.copytree(images, spoiled)
    (spoiled / "test" / "3" / "broken.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"broken\.png"):
        evaluate_model(with_cache, spoiled)
    edit(with_cache, skip_unreadable=True)
    answer = evaluate_model(with_cache, spoiled)
    assert (answer["skipped"], answer["n"]) == (1, 359)


def test_a_folder_that_is_missing_or_of_other_classes_is_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"--data: no such folder: {tmp_path / 'none'}"):
        evaluate_model(model, tmp_path / "none")
    (tmp_path / "test" / "cat").mkdir(parents=True)
    with pytest.raises(InputError, match=r"the model knows the classes 0, 1, .*, but the data has cat"):
        evaluate_model(model, tmp_path)


def test_a_model_without_a_data_config_asks_for_a_folder(with_cache: Path, images: Path) -> None:
    manifest = json.loads((with_cache / "model.json").read_text())
    manifest["data"]["config"] = None
    (with_cache / "model.json").write_text(json.dumps(manifest))
    with pytest.raises(
        InputError, match="does not say what data it was trained on; name a folder with --data"
    ):
        evaluate_model(with_cache)


def test_the_exported_file_computes_what_the_model_computes(model: Path, tmp_path: Path) -> None:
    answer = export_retrained(model, "pt2", tmp_path / "student.pt2")
    assert answer["checked_on"] == f"{CHECKED_IMAGES} test images"
    assert answer["max_abs_difference"] < 1e-4
    assert answer["path"] == str(tmp_path / "student.pt2")
    assert answer["bytes"] == (tmp_path / "student.pt2").stat().st_size
    program = torch.export.load(tmp_path / "student.pt2").module()
    assert program(torch.zeros(5, 3, 8, 8)).shape == (5, 10)


def test_the_snippet_runs_without_this_package(model: Path, tmp_path: Path) -> None:
    answer = export_retrained(model, "onnx", tmp_path / "student.onnx")
    (tmp_path / "use.py").write_text(answer["snippet"])
    ran = subprocess.run(
        [sys.executable, "-I", "use.py"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    name, probability = ran.stdout.strip("[]\n").split("] [")
    assert int(name) in range(10)
    assert 0.1 <= float(probability) <= 1.0


def test_a_model_moved_away_from_its_data_is_checked_on_random_images(
    with_cache: Path, tmp_path: Path
) -> None:
    edit(with_cache, name="imagefolder", root=str(tmp_path / "gone"), size=8)
    answer = export_retrained(with_cache, "pt2")
    assert answer["checked_on"] == "random images"
    assert Path(answer["path"]) == with_cache / "model.pt2"
