"""The module library on a real, tiny teacher: it learns, comes back from its files, and helps students."""

import math

import pytest
import torch

from trainables.blocks.blocks import find_blocks
from trainables.config import (
    DataConfig,
    DistillConfig,
    LibraryConfig,
    OptimConfig,
    RuntimeConfig,
    StudentSpec,
    TeacherConfig,
)
from trainables.data.load import load_data
from trainables.errors import InputError
from trainables.library.build import build_library
from trainables.library.library import META, WEIGHTS, Library, library_key
from trainables.methods.base import Setup
from trainables.network.evaluate import evaluate
from trainables.runtime.runtime import resolve
from trainables.student.spans import candidate_spans, merged_widths
from trainables.teacher.training import train_teacher
from trainables.training.loop import Distiller

CONFIG = LibraryConfig(epochs=4, student_epochs=4, batch_size=128)
WIDTHS = (0.25, 0.5)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    runtime = resolve(RuntimeConfig(device="cpu", precision="fp32"))
    data = load_data(DataConfig(name="digits"))
    config = TeacherConfig(arch="cifar_resnet8", epochs=6, lr=0.1, batch_size=64)
    teacher = train_teacher(config, data, runtime, tmp_path_factory.mktemp("t") / "teacher.safetensors")
    blocks = find_blocks(teacher.model, torch.zeros(1, *data.image_shape))
    before = {name: t.clone() for name, t in teacher.model.state_dict().items()}
    setup = Setup.of(teacher.model, blocks, data, runtime)
    library = build_library(setup, WIDTHS, True, CONFIG, key="key")
    return runtime, data, teacher, blocks, library, before


def test_every_candidate_is_there_and_the_teacher_is_untouched(made):
    _, _, teacher, blocks, library, before = made
    keys = {span.key for span in candidate_spans(blocks, WIDTHS, True)}
    assert set(library.modules) == set(library.errors) == set(library.solo_loss) == keys
    after = teacher.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(p.requires_grad for p in teacher.model.parameters())
    assert not teacher.model.training


def test_modules_come_closer_to_their_blocks_than_untrained_ones(made):
    runtime, data, teacher, blocks, library, _ = made
    setup = Setup.of(teacher.model, blocks, data, runtime)
    fresh = build_library(setup, WIDTHS, True, LibraryConfig(epochs=1e-9, student_epochs=0))
    assert fresh.key == library_key(
        teacher.record.hash, data.hash, blocks, WIDTHS, True, LibraryConfig(epochs=1e-9, student_epochs=0)
    )
    assert sum(library.errors.values()) < 0.6 * sum(fresh.errors.values())
    assert all(math.isfinite(loss) for loss in library.solo_loss.values())


def test_a_student_from_the_library_starts_better_than_one_with_fresh_modules(made):
    runtime, data, teacher, blocks, library, _ = made
    spec = StudentSpec(widths={block.name: merged_widths(block, WIDTHS)[0.5] for block in blocks})
    scores = {}
    for start in ("library", "teacher"):
        config = DistillConfig(student=spec, epochs=1, warm_start=start, optim=OptimConfig(batch_size=64))
        student = Distiller(config, Setup.of(teacher.model, blocks, data, runtime, library.modules)).student
        scores[start] = evaluate(student, data.eval_batches("val", runtime), runtime).accuracy
    assert scores["library"] > scores["teacher"] + 0.2


def test_wider_modules_are_closer(made):
    library = made[4]
    narrow = sum(error for key, error in library.errors.items() if key.endswith("@0.25"))
    assert sum(error for key, error in library.errors.items() if key.endswith("@0.5")) < narrow


def test_proxy_is_the_sum_of_the_modules_of_the_student(made):
    _, _, _, blocks, library, _ = made
    names = [block.name for block in blocks]
    spec = StudentSpec(widths={names[0]: 0.25, names[2]: 0.5})
    expected = library.solo_loss[f"{names[0]}@0.25"] + library.solo_loss[f"{names[2]}@0.5"]
    assert library.proxy(blocks, spec) == pytest.approx(expected)
    assert library.proxy(blocks, StudentSpec()) == 0


def test_files_come_back_as_they_were_and_saving_twice_keeps_the_first(made, tmp_path):
    library = made[4]
    folder = library.save(tmp_path)
    assert library.save(tmp_path) == folder == tmp_path / library.key
    assert [path.name for path in tmp_path.iterdir()] == [library.key]
    again = Library.load(folder)
    assert again.errors == library.errors and again.solo_loss == library.solo_loss
    for key, state in library.modules.items():
        assert state.keys() == again.modules[key].keys()
        assert all(torch.equal(tensor, again.modules[key][name]) for name, tensor in state.items())


@pytest.mark.parametrize("damaged", [WEIGHTS, META])
def test_a_damaged_library_is_named(made, tmp_path, damaged):
    folder = made[4].save(tmp_path)
    (folder / damaged).write_bytes(b"{}")
    with pytest.raises(InputError, match=folder.name):
        Library.load(folder)


def test_the_key_follows_what_determines_the_library_and_nothing_else(made):
    blocks = made[3]
    base = library_key("t", "d", blocks, WIDTHS, True, CONFIG)
    assert base == library_key("t", "d", blocks, WIDTHS[::-1], True, CONFIG.model_copy(update={"dir": "x"}))
    others = {
        library_key("u", "d", blocks, WIDTHS, True, CONFIG),
        library_key("t", "e", blocks, WIDTHS, True, CONFIG),
        library_key("t", "d", blocks[:2], WIDTHS, True, CONFIG),
        library_key("t", "d", blocks, (0.25,), True, CONFIG),
        library_key("t", "d", blocks, WIDTHS, False, CONFIG),
        library_key("t", "d", blocks, WIDTHS, True, CONFIG.model_copy(update={"lr": 1e-3})),
        library_key("t", "d", blocks, WIDTHS, True, CONFIG, seed=1),
    }
    assert len(others) == 7 and base not in others
