"""Wirings of ama: what each module reads, what it learns, and that the student knows nothing of it."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trainables.blocks.blocks import find_blocks
from trainables.config import DistillConfig, OptimConfig, StudentSpec
from trainables.data.dataset import ImageData
from trainables.errors import InputError
from trainables.loss_config import LossConfig
from trainables.methods.ama import Ama, DistillationLoss
from trainables.methods.base import Batch, Progress, Setup
from trainables.methods.terms.maps import relative_error
from trainables.network.architectures import build_model
from trainables.network.reset import recalibrate_batchnorm
from trainables.network.taps import Inputs, Taps
from trainables.runtime.runtime import Runtime
from trainables.runtime.seeds import seeded
from trainables.student.build import build_span, build_student
from trainables.student.spans import spans_of
from trainables.training.loop import Distiller

WIRINGS = ("chained", "forced", "scheduled", "reachable", "grafted")
START = Progress(0, 40, 4)


def spec_of(setup: Setup) -> StudentSpec:
    return StudentSpec(widths={setup.blocks[i].name: 0.5 for i in (1, 2, 4)}, fuse=False)


@pytest.fixture(scope="module")
def setup(data: ImageData, runtime: Runtime) -> Setup:
    """A teacher of two blocks a stage, and a library whose modules differ from fresh ones."""
    with seeded(0):
        teacher = build_model("cifar_resnet14", 10, data.image_shape)
    recalibrate_batchnorm(teacher, data.eval_batches("train", runtime), runtime)
    bare = Setup.of(teacher.eval(), find_blocks(teacher, data.image_shape), data, runtime)
    spans = spans_of(bare.blocks, spec_of(bare))
    return dataclasses.replace(bare, modules={span.key: build_span(span, 7).state_dict() for span in spans})


def config_of(setup: Setup, **fields: Any) -> DistillConfig:
    loss = fields.pop("loss", {})
    given = {"epochs": 2, "optim": OptimConfig(batch_size=25), "student": spec_of(setup), **fields}
    return DistillConfig.model_validate({**given, "loss": LossConfig(**loss)})


def method_of(setup: Setup, **loss: Any) -> Ama:
    return Ama(setup, config_of(setup, loss=loss))


def first_batch(setup: Setup) -> Batch:
    return Batch(*next(setup.data.train_steps(25, 0, 0, setup.runtime)))


def parts_of(method: Ama, progress: Progress = START, learn: str = "") -> dict[str, Tensor]:
    """The parts of a step, and the gradients of one of them or of `all`."""
    with method.reading():
        parts = method.losses(first_batch(method.setup), progress, "student")
        if learn:
            (torch.stack(list(parts.values())).sum() if learn == "all" else parts[learn]).backward()
        return parts


def teacher_maps(setup: Setup, spans: Any) -> tuple[list[Tensor], list[Tensor]]:
    """The teacher's maps before and after every span."""
    before, after = [span.first for span in spans], [span.last for span in spans]
    with torch.no_grad(), Inputs(setup.teacher, before) as inputs, Taps(setup.teacher, after) as taps:
        setup.teacher(first_batch(setup).images)
        found = dict(inputs.inputs), dict(taps.outputs)
    return [found[0][path] for path in before], [found[1][path] for path in after]


def fresh_student(setup: Setup) -> nn.Module:
    return build_student(setup.teacher, setup.blocks, spec_of(setup)).train()


def test_forced_modules_read_the_teachers_maps_and_logits_are_chained(setup: Setup) -> None:
    method = method_of(setup, wiring="forced", alpha=0.4, beta=2.0)
    student, (before, after) = fresh_student(setup), teacher_maps(setup, method.spans)
    chained = parts_of(method_of(setup, alpha=0.4, beta=2.0))
    parts = parts_of(method)
    modules = [student.get_submodule(span.first) for span in method.spans]
    errors = [relative_error(m(x), f) for m, x, f in zip(modules, before, after, strict=True)]
    assert parts["feature"].item() == pytest.approx(2 * sum(errors).item(), rel=1e-4)
    assert parts["kl"].item() == pytest.approx(chained["kl"].item(), rel=1e-4)
    # The first module reads the same map either way; later ones do not.
    assert parts["feature"].item() != pytest.approx(chained["feature"].item(), rel=1e-3)


def test_forced_errors_of_a_span_teach_its_module_alone(setup: Setup) -> None:
    method = method_of(setup, wiring="forced", alpha=0.0)
    parts_of(method, learn="feature")
    graded = {name for name, p in method.student.named_parameters() if p.grad is not None}
    modules = tuple(span.first for span in method.spans)
    assert graded == {name for name, _ in method.student.named_parameters() if name.startswith(modules)}


def test_scheduled_modules_read_the_teachers_maps_in_the_students_pass(setup: Setup) -> None:
    method = method_of(setup, wiring="scheduled", p0=1.0, q=0.5)
    parts, forced = parts_of(method), parts_of(method_of(setup, wiring="forced"))
    assert parts["feature"].item() == pytest.approx(forced["feature"].item(), rel=1e-4)
    assert parts["kl"].item() != pytest.approx(forced["kl"].item(), rel=1e-3)  # behind the last module alone
    late, chained = parts_of(method, Progress(20, 40, 4)), parts_of(method_of(setup))
    assert {name: p.item() for name, p in late.items()} == {
        name: pytest.approx(p.item(), rel=1e-4) for name, p in chained.items()
    }


def test_the_share_falls_linearly_and_draws_depend_on_seed_and_step(setup: Setup) -> None:
    wiring = method_of(setup, wiring="scheduled", p0=0.8, q=0.5).wiring
    assert [wiring.share(done) for done in (0.0, 0.25, 0.5, 1.0)] == pytest.approx([0.8, 0.4, 0.0, 0.0])
    steps = [Progress(step, 10**6, 10) for step in range(2000)]
    drawn = [wiring.connected(step) for step in steps]
    assert drawn == [wiring.connected(step) for step in steps]
    assert sum(map(sum, drawn)) / (3 * len(drawn)) == pytest.approx(0.8, abs=0.03)
    other = Ama(setup, config_of(setup, seed=1, loss={"wiring": "scheduled", "p0": 0.8, "q": 0.5})).wiring
    assert drawn != [other.connected(step) for step in steps]
    grafted = method_of(setup, wiring="grafted", r0=0.3, q=0.5).wiring
    assert [1 - grafted.share(done) for done in (0.0, 0.25, 0.5, 1.0)] == pytest.approx([0.3, 0.65, 1.0, 1.0])
    for kind in ("scheduled", "grafted"):
        assert method_of(setup, wiring=kind, q=0.0).wiring.share(0.0) == 0.0


@pytest.mark.parametrize("m", [0.0, 0.25, 1.0])
def test_reachable_targets_are_mixed_with_the_librarys_maps(setup: Setup, m: float) -> None:
    method = method_of(setup, wiring="reachable", m=m, beta=2.0)
    student, (before, after) = fresh_student(setup), teacher_maps(setup, method.spans)
    paths = [span.first for span in method.spans]
    with Taps(student, paths) as taps:
        student(first_batch(setup).images)
        shown = [taps.outputs[path] for path in paths]
    expected = 0.0
    for span, x, f, ours in zip(method.spans, before, after, shown, strict=True):
        module = build_span(span, 7).eval()
        with torch.no_grad():
            target = (1 - m) * f + m * module(x)
        expected += 2 * relative_error(ours, target).item()
    assert parts_of(method)["feature"].item() == pytest.approx(expected, rel=1e-4)


def test_reachable_modules_of_the_library_stay_as_they_are(setup: Setup) -> None:
    distiller = Distiller(config_of(setup, loss={"wiring": "reachable"}), setup)
    method = distiller.method
    assert isinstance(method, Ama)
    before = [{k: v.clone() for k, v in module.state_dict().items()} for module in method.wiring._library]
    distiller.run_epoch()
    for module, state in zip(method.wiring._library, before, strict=True):
        assert not module.training and all(torch.equal(v, state[k]) for k, v in module.state_dict().items())
        assert all(p.grad is None for p in module.parameters())


def test_a_wiring_that_needs_a_library_is_refused_without_it(setup: Setup) -> None:
    key = spans_of(setup.blocks, spec_of(setup))[0].key
    some = {name: state for name, state in (setup.modules or {}).items() if name != key}
    for modules in (None, some):
        bare = dataclasses.replace(setup, modules=modules)
        with pytest.raises(InputError, match=r"reachable needs .*layer1.1@0.5.*set warm_start to library"):
            method_of(bare, wiring="reachable")
        # Where no map is compared, or nothing is replaced, none is needed.
        method_of(bare, wiring="reachable", beta=0.0)
        Ama(bare, config_of(bare, student=StudentSpec(), loss={"wiring": "reachable"}))


def test_grafted_spans_are_the_teachers_blocks_or_modules(setup: Setup) -> None:
    teacher_alone = method_of(setup, wiring="grafted", r0=0.0, q=1.0)
    parts = parts_of(teacher_alone)
    assert parts["feature"].item() == 0.0 and not parts["feature"].requires_grad
    whole, chained = parts_of(method_of(setup, wiring="grafted", r0=1.0)), parts_of(method_of(setup))
    assert {k: p.item() for k, p in whole.items()} == {
        k: pytest.approx(p.item(), rel=1e-5) for k, p in chained.items()
    }
    method = method_of(setup, wiring="grafted", r0=0.5, q=1.0, alpha=0.5)
    step = next(p for n in range(50) if sum(method.wiring.connected(p := Progress(n, 1000, 10))) == 1)
    grafted = method.wiring.connected(step).index(True)
    parts_of(method, step, learn="all")
    for index, span in enumerate(method.spans):
        module = method.student.get_submodule(span.first)
        graded = {p.grad is not None for p in module.parameters()}
        assert graded == {index != grafted}
    assert all(p.grad is None for p in setup.teacher.parameters())


def test_grafted_blocks_run_in_eval_mode_inside_a_training_student(setup: Setup) -> None:
    method, batch = method_of(setup, wiring="grafted", r0=0.0, q=1.0), first_batch(setup)
    before = {name: value.clone() for name, value in setup.teacher.state_dict().items()}
    with method.reading(), method.wiring.applied(method.student, {}, START) as used:
        assert used == [False] * 3
        for span in method.spans:
            block = method.student.get_submodule(span.first)
            assert not block.training and type(block) is type(setup.teacher.get_submodule(span.first))
        assert method.student.training
        method.logits(batch.images)
    assert all(torch.equal(value, before[name]) for name, value in setup.teacher.state_dict().items())
    kinds = {type(method.student.get_submodule(span.first)) for span in method.spans}
    assert {kind.__name__ for kind in kinds} == {"MapAdaptation"}


@pytest.mark.parametrize("train", ["all", "modules"])
@pytest.mark.parametrize("wiring", WIRINGS)
def test_the_student_has_its_own_statistics_after_every_epoch(
    setup: Setup, wiring: str, train: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss = {"wiring": wiring, "q": 0.6, "r0": 0.2}
    distiller = Distiller(config_of(setup, loss=loss, epochs=2, train=train), setup)
    kept = {
        name: value.clone()
        for name, value in distiller.student.state_dict().items()
        if not name.startswith(tuple(span.first for span in spans_of(setup.blocks, spec_of(setup))))
    }
    import trainables.methods.ama as ama

    calls: list[int] = []
    original = ama.re_estimate
    monkeypatch.setattr(ama, "re_estimate", lambda *a: (calls.append(distiller.epoch), original(*a)))
    distiller.run_epoch()
    distiller.run_epoch()
    assert calls == {"forced": [0, 1], "scheduled": [0, 1], "grafted": [0, 1]}.get(wiring, [])
    if train == "modules":
        state = distiller.student.state_dict()
        assert all(torch.equal(state[name], value) for name, value in kept.items())


def test_statistics_are_not_estimated_again_once_modules_read_the_student_alone(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    import trainables.methods.ama as ama

    calls: list[int] = []
    for wiring in ("scheduled", "grafted"):
        distiller = Distiller(config_of(setup, loss={"wiring": wiring, "q": 0.25}, epochs=4), setup)
        monkeypatch.setattr(ama, "re_estimate", lambda *a: calls.append(1))
        while not distiller.finished:
            distiller.run_epoch()
    assert len(calls) == 2


@pytest.mark.parametrize("supervision", ["uniform", "adaptive", "depth"])
@pytest.mark.parametrize("wiring", WIRINGS)
def test_parts_have_the_same_names_at_every_step(setup: Setup, wiring: str, supervision: str) -> None:
    method = method_of(setup, wiring=wiring, supervision=supervision, r0=0.3, q=1.0, p0=0.7)
    names = {tuple(parts_of(method, Progress(step, 12, 4))) for step in range(0, 12, 2)}
    expected = (
        ("ce", "kl", "feature", "regulariser") if supervision == "adaptive" else ("ce", "kl", "feature")
    )
    assert names == {expected}


def test_weights_by_depth_are_powers_with_mean_one() -> None:
    loss = DistillationLoss(LossConfig(supervision="depth", depth_factor=0.5, alpha=0.0), [1, 1, 1])
    assert loss.weights().tolist() == pytest.approx([3 / 7, 6 / 7, 12 / 7])
    ones, labels = torch.ones(2, 4), torch.zeros(2).long()
    maps: list[Tensor] = [ones * 2, ones, ones]
    parts = loss(torch.zeros(2, 3), None, labels, maps, [[ones]] * 3)
    assert parts["feature"].item() == pytest.approx(3 / 7)
    equal = DistillationLoss(LossConfig(supervision="depth", depth_factor=1.0), [1, 1])
    assert equal.weights().tolist() == [1.0, 1.0]
    assert DistillationLoss(LossConfig(supervision="depth")).weights().tolist() == []


def test_a_span_that_is_left_out_has_no_error() -> None:
    ones, labels = torch.ones(2, 4), torch.zeros(2).long()
    for supervision in ("uniform", "adaptive"):
        loss = DistillationLoss(LossConfig(supervision=supervision, alpha=0.0), [1, 1])
        parts = loss(torch.zeros(2, 3), None, labels, [None, 2 * ones], [[ones], [ones]])
        assert parts["feature"].item() == pytest.approx(1.0)
        none = loss(torch.zeros(2, 3), None, labels, [None, None], [[ones], [ones]])
        assert none["feature"].item() == 0.0


def test_settings_without_effect_are_named() -> None:
    rest = {"entropy_weight", "depth_factor", "p0", "q", "m", "r0", "gamma"}
    assert LossConfig().unused() == rest
    assert LossConfig(wiring="scheduled", supervision="depth").unused() == rest - {"p0", "q", "depth_factor"}
    assert LossConfig(wiring="grafted").unused() == rest - {"r0", "q"}
    assert LossConfig(wiring="reachable", supervision="adaptive").unused() == rest - {"m", "entropy_weight"}
