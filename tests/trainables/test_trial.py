"""One trial as Ray Tune runs it, without a cluster: real training of tiny students on digits."""

from __future__ import annotations

import dataclasses
import gc
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from trainables.blocks.blocks import find_blocks
from trainables.config import DataConfig, DistillConfig, OptimConfig, RuntimeConfig, StudentSpec
from trainables.data.load import load_data
from trainables.loss_config import LossConfig
from trainables.network.architectures import build_model
from trainables.runtime.memory import Growth, MemoryGrown
from trainables.training.profile import CLAIM
from trainables.trial import CHECKPOINT_FILE, DistillTrial, TrialContext

# Differ from run to run.
TIMES = {
    "seconds",
    "images_per_second",
    "startup_seconds",
    "began_at",
    "data_seconds",
    "step_seconds",
    "eval_seconds",
} | {
    "host_mib",
    "gpu_mib",
}


@pytest.fixture(scope="module")
def context() -> TrialContext:
    data = load_data(DataConfig(name="digits", train_limit=150))
    torch.manual_seed(0)
    teacher = build_model("cifar_resnet8", data.num_classes, data.image_shape).eval()
    blocks = find_blocks(teacher, torch.zeros(1, *data.image_shape))
    runtime = RuntimeConfig(device="cpu", precision="fp32", threads=1)
    return TrialContext(data.to_arrays(), teacher, blocks, runtime)


Make = Callable[..., DistillTrial]


def bound(context: TrialContext) -> Make:
    class Bound(DistillTrial):
        # What `tune.with_parameters` does, without an object store.
        def setup(self, config: dict[str, Any]) -> None:  # type: ignore[override]
            super().setup(config, context=context)

    return lambda config: Bound(config=config)


@pytest.fixture
def make(context: TrialContext) -> Make:
    return bound(context)


def config(
    number: int = 0, width: float = 0.25, resume: tuple[Path, ...] = (), **fields: Any
) -> dict[str, Any]:
    distill = DistillConfig(
        student=StudentSpec(widths={"layer1.0": width, "layer3.0": 0.5}),
        loss=LossConfig(supervision="adaptive"),
        optim=OptimConfig(lr=fields.pop("lr", 0.05), batch_size=32),
        epochs=fields.pop("epochs", 3),
        **fields,
    )
    return {"number": number, "distill": distill.model_dump_json(), "resume": [str(p) for p in resume]}


def train(trial: DistillTrial, epochs: int) -> list[dict[str, Any]]:
    return [{k: v for k, v in trial.step().items() if k not in TIMES} for _ in range(epochs)]


def saved(trial: DistillTrial, folder: Path) -> Path:
    folder.mkdir(parents=True)
    trial.save_checkpoint(str(folder))
    return folder


def damage(folder: Path) -> None:
    file = folder / CHECKPOINT_FILE
    file.write_bytes(file.read_bytes()[:-2000])  # cut short, as by a full disk


def test_a_trial_reports_every_epoch_and_its_end(make: Make) -> None:
    results = train(make(config(number=7)), 3)
    assert [r["epoch"] for r in results] == [1, 2, 3]
    assert [r["done"] for r in results] == [False, False, True]
    assert {r["number"] for r in results} == {7}


def test_nothing_leaks_from_one_trial_into_the_next(make: Make, context: TrialContext) -> None:
    before = {name: value.clone() for name, value in context.teacher.state_dict().items()}
    alone = train(make(config(number=3, seed=1)), 3)
    actor = make(config(number=1, width=1.0, lr=0.2))
    train(actor, 2)
    assert actor.reset_config(config(number=2, train="modules"))
    train(actor, 1)
    assert actor.reset_config(config(number=3, seed=1))
    assert train(actor, 3) == alone
    after = context.teacher.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items()), "the teacher is shared"


def test_a_config_that_cannot_be_trained_ends_the_trial_and_not_the_actor(make: Make, tmp_path: Path) -> None:
    wrong = config(number=4, train="modules", warm_start="none")
    for actor in (make(wrong), make(config())):
        actor.reset_config(wrong)
        ended = actor.step()
        assert ended["done"] and ended["number"] == 4 and "warm_start: none" in ended["failure"]
        assert set(ended) == {"number", "failure", "done"}
        actor.save_checkpoint(str(tmp_path))
        assert not list(tmp_path.iterdir()), "there is nothing to go on from"
        assert actor.reset_config(config(number=5, epochs=1))
        assert actor.step()["epoch"] == 1


def test_a_library_that_lacks_a_module_ends_the_trial(make: Make) -> None:
    for modules in (None, {}):
        ended = bound(dataclasses.replace(make(config())._context, modules=modules))(
            config(warm_start="library")
        ).step()
        assert ended["done"] and "module library" in ended["failure"]


def test_a_saved_and_loaded_trial_goes_on_as_if_without_a_break(make: Make, tmp_path: Path) -> None:
    whole = train(make(config()), 3)
    first = make(config())
    assert train(first, 1) == whole[:1]
    folder = saved(first, tmp_path / "checkpoint_000000")
    second = make(config(width=1.0))
    train(second, 1)
    second.reset_config(config())
    second.load_checkpoint(str(folder))
    assert train(second, 2) == whole[1:]


def test_an_interrupted_trial_is_taken_up_from_its_newest_readable_checkpoint(
    make: Make, tmp_path: Path
) -> None:
    first = make(config())
    whole = train(first, 1)
    older = saved(first, tmp_path / "00000-1" / "checkpoint_000000")
    whole += train(first, 1)
    newer = saved(first, tmp_path / "00000-2" / "checkpoint_000000")
    whole += train(first, 1)
    assert train(make(config(resume=(newer, older))), 1) == whole[2:]
    damage(newer)
    assert train(make(config(resume=(newer, older))), 2) == whole[1:]
    shutil.rmtree(older)
    assert train(make(config(resume=(newer, older))), 3) == whole


def test_epochs_that_the_study_missed_are_told_before_anything_is_trained(make: Make, tmp_path: Path) -> None:
    first = make(config())
    whole = train(first, 2)
    checkpoint = saved(first, tmp_path / "00000-1" / "checkpoint_000001")
    whole += train(first, 1)
    second = make({**config(resume=(checkpoint,)), "told": 0})
    assert [{**result, "again": False} for result in train(second, 3)] == whole
    third = make({**config(resume=(checkpoint,)), "told": 1})
    assert train(third, 2) == [{**whole[1], "again": True}, whole[2]]
    # Retried in the middle of telling: neither is an epoch left out nor told once more.
    fourth = make({**config(resume=(checkpoint,)), "told": 0})
    train(fourth, 1)
    fourth.load_checkpoint(str(saved(fourth, tmp_path / "00000-2" / "checkpoint_000000")))
    assert [(r["epoch"], r["again"]) for r in train(fourth, 2)] == [(2, True), (3, False)]
    assert train(make({**config(), "told": 2}), 1) == whole[:1], "without its checkpoint it starts anew"


def test_a_retried_trial_passes_over_damaged_checkpoints(make: Make, tmp_path: Path) -> None:
    first = make(config())
    whole = []
    folders = []
    for index in range(2):
        whole += train(first, 1)
        folders.append(saved(first, tmp_path / f"checkpoint_{index:06d}"))
    damage(folders[1])
    retried = make(config())
    retried.load_checkpoint(str(folders[1]))
    assert train(retried, 1) == whole[1:]
    damage(folders[0])
    retried = make(config())
    retried.load_checkpoint(str(folders[1]))
    assert train(retried, 2) == whole, "starts again where nothing can be read"


def test_the_checkpoint_of_another_trial_is_not_taken_up(make: Make, tmp_path: Path) -> None:
    other = make(config(width=1.0))
    train(other, 2)
    folder = saved(other, tmp_path / "checkpoint_000000")
    assert train(make(config(resume=(folder,))), 1)[0]["epoch"] == 1


def test_a_trial_cut_off_after_its_last_epoch_only_reports_it(make: Make, tmp_path: Path) -> None:
    first = make(config(epochs=2))
    last = train(first, 2)[-1]
    folder = saved(first, tmp_path / "checkpoint_000001")
    again = make(config(epochs=2, resume=(folder,)))
    assert train(again, 1) == [{**last, "again": True}] and last["done"]


def test_a_diverged_trial_ends_with_its_reason(make: Make) -> None:
    result = make(config(number=4, lr=1e30)).step()
    assert result["done"] and result["number"] == 4 and "val_accuracy" not in result
    assert "not finite" in result["failure"] or "loss is" in result["failure"]


def test_a_profile_of_the_second_epoch_is_written_once(context: TrialContext, tmp_path: Path) -> None:
    folder = tmp_path / "profile"
    actor = bound(dataclasses.replace(context, profile=str(folder)))(config(number=5))
    train(actor, 1)
    assert not folder.exists()
    train(actor, 1)
    names = {"trial-5.trace.json", "trial-5.txt"}
    assert {file.name for file in folder.iterdir()} - {CLAIM} == names
    events = json.loads((folder / "trial-5.trace.json").read_text())["traceEvents"]
    assert any("conv" in str(event.get("name")) for event in events)
    table = (folder / "trial-5.txt").read_text()
    assert "epoch 2" in table and "aten::" in table and "Self CPU" in table
    actor.reset_config(config(number=6))
    train(actor, 2)
    assert {file.name for file in folder.iterdir()} - {CLAIM} == names


def test_an_actor_whose_memory_has_grown_starts_no_further_trial(context: TrialContext) -> None:
    gc.collect()  # what earlier tests left would be freed meanwhile, and hide the growth
    hoard = []
    growth = Growth(settled=2, factor=1.0, slack_mib=150.0)
    actor = bound(dataclasses.replace(context, growth=growth))(config(epochs=1))
    for number in range(1, 4):
        train(actor, 1)
        assert actor.reset_config(config(number=number, epochs=1))
    train(actor, 1)
    hoard.append(torch.ones(300 * 2**20))  # 1200 MiB
    with pytest.raises(MemoryGrown, match=r"grown over 4 trials: host from \d+ to \d+ MiB"):
        actor.reset_config(config(number=4, epochs=1))
    assert context.growth == Growth(), "every actor counts for itself"


def test_a_trial_that_does_not_fit_ends_with_its_reason(context: TrialContext, make: Make) -> None:
    actor = make(config(number=9))

    def fail(*_: Any) -> None:
        raise torch.OutOfMemoryError("no room")

    actor._distiller.student.register_forward_pre_hook(fail)
    result = actor.step()
    assert result["done"] and "half a batch of 30 images does not fit: no room" in result["failure"]
