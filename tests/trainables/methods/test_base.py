"""What holds for every registered method: one training, resume, half batches, baseline, and what is kept."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainables.blocks.blocks import Block, find_blocks
from trainables.config import METHODS, DataConfig, DistillConfig, OptimConfig, RuntimeConfig, StudentSpec
from trainables.data.dataset import ImageData
from trainables.data.load import load_data
from trainables.errors import InputError
from trainables.methods.base import Batch, Group, Method, Phase, Progress, Setup, Stage
from trainables.network.architectures import build_model
from trainables.runtime.runtime import Runtime, resolve
from trainables.runtime.seeds import seeded
from trainables.student.build import build_span, build_student
from trainables.student.spans import spans_of
from trainables.training.loop import Distiller
from trainables.training.stages import make_stages
from trainables.training.step import Stepper, TooLarge


@pytest.fixture(scope="module")
def runtime() -> Runtime:
    return resolve(RuntimeConfig(device="cpu", precision="fp32", threads=1, eval_batch=64))


@pytest.fixture(scope="module")
def data() -> ImageData:
    return load_data(DataConfig(name="digits", train_limit=100))


# Settings of a method, by its name, that make its test short.
SETTINGS: dict[str, dict[str, Any]] = {"lwkd": {"teacher_epochs": 1, "images_per_class": 40}}
# Further settings that are tested like a method of its own: (method, settings), by a name for the test.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    **{f"ama-{term}": ("ama", {"logits": term}) for term in ("dkd", "standardised", "dist")},
    **{f"ama-{term}": ("ama", {"maps": term}) for term in ("attention", "statistics")},
    **{f"ama-{term}": ("ama", {"embeddings": term}) for term in ("rkd", "pkt")},
    **{f"ama-{wiring}": ("ama", {"wiring": wiring}) for wiring in ("forced", "reachable", "grafted")},
    "ama-scheduled-depth": ("ama", {"wiring": "scheduled", "supervision": "depth"}),
    "separate-no-pull": ("separate", {"eta": 0.0, "rho": 0.0}),
    "lwkd-conditional": ("lwkd", {"conditional": True}),
    "lwkd-dkd": ("lwkd", {"logits": "dkd", "adversarial": 0.0}),
    "ama-adaptive-statistics": ("ama", {"maps": "statistics", "supervision": "adaptive"}),
    "crd-dkd": ("crd", {"logits": "dkd", "negatives": 32}),
    "mcl-view-prefix-all": ("mcl", {"peers": 3, "teacher": "view", "share": "prefix", "soft": "all"}),
    **{f"adain-{points}": ("adain", {"points": points, "react": "kl"}) for points in ("spans", "random")},
    "adain-dkd-clamp": ("adain", {"logits": "dkd", "clamp": True}),
}


@pytest.fixture(scope="module")
def setup(data: ImageData, runtime: Runtime, tmp_path_factory: pytest.TempPathFactory) -> Setup:
    """Everything that any registered method needs."""
    with seeded(0):
        teacher = build_model("cifar_resnet8", 10, data.image_shape).eval()
    blocks: tuple[Block, ...] = find_blocks(teacher, torch.zeros(1, *data.image_shape))
    bare = Setup.of(teacher, blocks, data, runtime)
    configs = [config_of(name, bare) for name in (*METHODS.names(), *VARIANTS)]
    settings = [(config.method, config.loss) for config in configs]
    stages = make_stages(bare, settings, tmp_path_factory.mktemp("stages"))
    spans = spans_of(blocks, configs[0].student)
    library = {span.key: build_span(span, 7).state_dict() for span in spans}
    return dataclasses.replace(bare, stages=stages, modules=library)


SEPARATE = "wrn10_2"


def config_of(method: str, setup: Setup, **fields: Any) -> DistillConfig:
    widths = {block.name: 0.5 for block in setup.blocks[1:]}
    kind = METHODS.get(VARIANTS.get(method, (method,))[0])
    if "replaced" in kind.students:
        student = StudentSpec(widths=widths)
    else:
        student = StudentSpec(arch=SEPARATE, widths=widths if kind.modules_in_teacher else {})
    name, loss = VARIANTS.get(method, (method, {}))
    given = {"method": name, "student": student, "epochs": 2, "optim": OptimConfig(batch_size=33), **fields}
    given = {"loss": {**SETTINGS.get(name, {}), **loss}, **given}
    return DistillConfig.model_validate(given)


def first_batch(setup: Setup) -> Batch:
    return Batch(*next(setup.data.train_steps(33, 0, 0, setup.runtime)))


@pytest.fixture(params=[*METHODS.names(), *VARIANTS])
def method(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_it_trains_and_its_parts_add_up(method: str, setup: Setup) -> None:
    distiller = Distiller(config_of(method, setup, epochs=4, optim={"batch_size": 33, "lr": 0.02}), setup)
    before = {name: p.clone() for name, p in distiller.student.named_parameters()}
    while not distiller.finished:
        metrics = distiller.run_epoch()
        assert metrics.train_loss == pytest.approx(sum(metrics.losses.values()), rel=1e-5)
    assert metrics.losses["ce"] < distiller.history[0].losses["ce"]
    assert all(not torch.equal(p, before[name]) for name, p in distiller.student.named_parameters())


def test_a_resume_is_exact(method: str, setup: Setup) -> None:
    config = config_of(method, setup)
    whole, broken = Distiller(config, setup), Distiller(config, setup)
    whole.run_epoch(), whole.run_epoch()
    broken.run_epoch()
    again = Distiller(config, setup)
    again.load_state_dict(copy.deepcopy(broken.state_dict()))
    again.run_epoch()
    ours, theirs = again.method.state_dict(), whole.method.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert [m.losses for m in again.history] == [m.losses for m in whole.history]


def test_only_the_student_is_kept(method: str, setup: Setup) -> None:
    config = config_of(method, setup)
    shape = setup.data.image_shape
    built = build_student(setup.teacher, setup.blocks, config.student, config.seed, image_shape=shape)
    assert Distiller(config, setup).student.state_dict().keys() == built.state_dict().keys()


def test_networks_keep_no_hook_whatever_happens(method: str, setup: Setup) -> None:
    made = Distiller(config_of(method, setup), setup).method
    with pytest.raises(RuntimeError, match="on purpose"), made.reading():
        raise RuntimeError("on purpose")
    for network in (setup.teacher, made.student):
        assert not any(each._forward_hooks or each._forward_pre_hooks for each in network.modules())


def test_its_baseline_is_cross_entropy_alone(method: str, setup: Setup) -> None:
    config = config_of(method, setup)
    kind: type[Method] = METHODS.get(config.method)
    plain = config.model_copy(update={"loss": kind.baseline(config.loss)})
    made, batch = Distiller(plain, setup).method, first_batch(setup)
    with made.reading():
        parts = made.losses(batch, Progress(0, 8, 4), made.phases()[0].name)
        assert {name for name, part in parts.items() if part.item() != 0} == {"ce"}
        found = torch.autograd.grad(torch.stack(list(parts.values())).sum(), list(made.student.parameters()))
    twin = Distiller(plain, setup).student.train()
    loss = F.cross_entropy(twin(batch.images), batch.labels)
    expected = torch.autograd.grad(loss, list(twin.parameters()))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("method", METHODS.names())
def test_settings_name_what_is_searched(method: str) -> None:
    kind: type[Method] = METHODS.get(method)
    assert kind.Config() == kind.Config.model_validate(kind.Config().model_dump(mode="json"))
    assert set(kind.teaching) <= kind.Config.model_fields.keys()


class Two(Method):
    """Two phases: the student, and a network that the student's loss reads too."""

    name, Config = "two", METHODS.get("ama").Config

    def __init__(self, setup: Setup, config: DistillConfig) -> None:
        super().__init__(setup, config)
        with seeded(1):
            self.student, self.judge = build_model("cifar_resnet8", 10, (3, 8, 8)), nn.Linear(10, 1)
        self.applied: list[int] = []
        self.register_buffer("bank", torch.zeros(1))

    def phases(self) -> list[Phase]:
        return [
            Phase("judge", [Group(list(self.judge.named_parameters()), lr_scale=0.5)]),
            Phase("student", [Group(list(self.student.named_parameters()))]),
        ]

    def losses(self, batch: Batch, progress: Progress, phase: str) -> dict[str, Tensor]:
        logits = self.logits(batch.images)
        if phase == "judge":
            return {"judged": (self.judge(logits) - 1).square().mean()}
        assert batch.labels is not None
        return {"ce": F.cross_entropy(logits, batch.labels), "fooled": self.judge(logits).square().mean()}

    def after_step(self, batch: Batch, progress: Progress) -> None:
        self.applied.append(len(batch))
        self.bank += 1


def two(setup: Setup) -> tuple[Two, Stepper]:
    method = Two(setup, DistillConfig())
    method.train()
    return method, Stepper(method, setup.runtime, 0.1, 0.9, 0.0)


def test_a_phase_updates_its_own_parameters_alone(setup: Setup) -> None:
    method, stepper = two(setup)
    reference = copy.deepcopy(method.judge)
    batch = first_batch(setup)
    with torch.no_grad():
        logits = method.logits(batch.images)
    parts = stepper.step(batch, Progress(0, 8, 4))
    assert parts["total"].item() == pytest.approx(sum(v.item() for k, v in parts.items() if k != "total"))
    # The judge moved by its own phase's gradient, and not by that of the student's phase after it.
    (reference(logits) - 1).square().mean().backward()
    for ours, theirs in zip(method.judge.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs - 0.1 * 1.9 * theirs.grad, rtol=1e-4, atol=1e-6)


def test_halves_are_computed_again_and_state_changes_once(setup: Setup) -> None:
    method, stepper = two(setup)
    forward, short = method.student.forward, True

    def fussy(images: Tensor) -> Tensor:
        if short and len(images) > 20:
            raise torch.OutOfMemoryError(f"{len(images)} images")
        logits: Tensor = forward(images)
        return logits

    method.student.forward = fussy  # type: ignore[method-assign]
    stepper.step(first_batch(setup), Progress(0, 8, 4))
    assert stepper.micro_batches == 2 and method.applied == [25] and method.bank.item() == 1


@pytest.mark.parametrize("updated_first", [0, 1, 3], ids=lambda n: f"after {n} parameters")
def test_memory_that_ends_in_the_optimisers_step_is_freed_and_the_step_goes_on(
    setup: Setup, updated_first: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fault 7: the step's own allocations (momentum, foreach temporaries) can fail, half of it applied."""
    (_, whole), (method, stepper) = two(setup), two(setup)
    batch = first_batch(setup)
    whole.step(batch, Progress(0, 8, 4))
    optimizer = stepper.optimizers["student"]
    proper, calls = optimizer.step, []

    def short() -> None:
        calls.append(1)
        if len(calls) > 1:
            proper()
            return
        groups = [group["params"] for group in optimizer.param_groups]
        flat = [parameter for group in groups for parameter in group]
        kept = {id(p): p.grad for p in flat}
        for parameter in flat[updated_first:]:
            parameter.grad = None
        proper()
        for parameter in flat:
            parameter.grad = kept[id(parameter)]
        raise torch.OutOfMemoryError("no room for a momentum buffer")

    monkeypatch.setattr(optimizer, "step", short)
    stepper.step(batch, Progress(0, 8, 4))
    assert len(calls) == 2 and stepper.micro_batches == 2
    for ours, theirs in zip(method.parameters(), whole.method.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_an_optimiser_that_never_fits_ends_the_trial(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    _, stepper = two(setup)

    def short() -> None:
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(stepper.optimizers["student"], "step", short)
    with pytest.raises(TooLarge, match=r"optimiser.s step after a batch of 25 images does not fit: no room"):
        stepper.step(first_batch(setup), Progress(0, 8, 4))


def test_batches_are_split_alike_in_every_stream() -> None:
    images = torch.arange(5.0).reshape(5, 1)
    other = Batch(images + 10, None, torch.arange(5))
    parts = Batch(images, torch.arange(5), torch.arange(5), {"photos": other}).split(2)
    assert [len(part) for part in parts] == [3, 2]
    assert parts[1].extra["photos"].images.flatten().tolist() == [13.0, 14.0]
    assert parts[1].extra["photos"].labels is None


def test_a_method_whose_stage_or_stream_is_missing_is_refused(setup: Setup) -> None:
    class Staged(Two):
        name, stages = "staged", (Stage("bank", (), lambda setup, settings, seed, folder, progress: {}),)

    class Streamed(Two):
        name, streams = "streamed", ("photos",)

    with pytest.raises(InputError, match="method staged: needs stage bank"):
        Staged(setup, DistillConfig())
    with pytest.raises(InputError, match="method streamed: needs stream photos"):
        Streamed(setup, DistillConfig())
    made = Staged(dataclasses.replace(setup, stages={"bank": {"rows": 3}}), DistillConfig())
    assert made.stage("bank") == {"rows": 3}
