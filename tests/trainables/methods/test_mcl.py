"""Online distillation between peers: the formula, who learns from whom, what is shared, what is refused."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainables.blocks.blocks import find_blocks
from trainables.config import DistillConfig, StudentSpec
from trainables.errors import InputError
from trainables.methods.base import Batch, Progress, Setup
from trainables.methods.mcl import Mcl, MclConfig
from trainables.network.evaluate import evaluate
from trainables.network.taps import Inputs
from trainables.runtime.seeds import seeded
from trainables.student.build import build_student
from trainables.student.spans import spans_of
from trainables.training.loop import Distiller
from trainables.training.step import Stepper

START = Progress(0, 8, 4)


def config_of(setup: Setup, loss: dict[str, Any], **fields: Any) -> DistillConfig:
    spec = StudentSpec(widths={block.name: 0.5 for block in setup.blocks[1:]})
    given = {"method": "mcl", "student": spec, "epochs": 2, "optim": {"batch_size": 25}, "loss": loss}
    return DistillConfig.model_validate(given | fields)


def made(setup: Setup, **loss: Any) -> Mcl:
    return Mcl(setup, config_of(setup, loss))


def first_batch(setup: Setup) -> Batch:
    return Batch(*next(setup.data.train_steps(25, 0, 0, setup.runtime)))


def parts_of(method: Mcl, batch: Batch) -> dict[str, Tensor]:
    with method.reading():
        return method.losses(batch, START, "student")


def by_hand(networks: list[nn.Module], batch: Batch) -> tuple[list[Tensor], list[Tensor]]:
    """Logits and embeddings of networks, each on its own."""
    logits, embeddings = [], []
    for network in networks:
        with Inputs(network, ["fc"]) as inputs:
            logits.append(network.train()(batch.images))
            embeddings.append(inputs.inputs["fc"])
    return logits, embeddings


@pytest.mark.parametrize("peers", [2, 3, 4])
@pytest.mark.parametrize("soft", ["student", "all"])
def test_it_is_the_formula(setup: Setup, peers: int, soft: str) -> None:
    method = made(setup, peers=peers, soft=soft, alpha=0.7, tau=2.0, beta=0.05, negatives=32)
    twin, batch = copy.deepcopy(method), first_batch(setup)
    parts = parts_of(method, batch)
    assert list(parts) == ["ce", "ensemble", "contrast"]
    logits, embeddings = by_hand([twin.student, *twin.peers], batch)
    assert parts["ce"].item() == pytest.approx(sum(F.cross_entropy(z, batch.labels).item() for z in logits))
    mean = (torch.stack(logits).mean(0) / 2).softmax(1)
    divergences = [4 * F.kl_div((z / 2).log_softmax(1), mean, reduction="batchmean").item() for z in logits]
    taught = divergences[:1] if soft == "student" else divergences
    assert parts["ensemble"].item() == pytest.approx(0.7 * sum(taught), rel=1e-4)
    pairs = twin.contrast.loss(embeddings, batch.labels, batch.index, 0).item()
    count = peers * (peers - 1)
    assert parts["contrast"].item() == pytest.approx(0.05 * 12 * pairs / count, rel=1e-5)


def test_the_contrasts_weight_means_the_same_for_any_number_of_peers(setup: Setup) -> None:
    batch = first_batch(setup)
    values = [parts_of(made(setup, peers=m), batch)["contrast"].item() for m in (2, 3, 4)]
    assert max(values) < 1.1 * min(values)


def test_peers_differ_and_depend_on_the_seed_alone(setup: Setup) -> None:
    method, twin = made(setup, peers=3), made(setup, peers=3)
    networks = [method.student, *method.peers]
    flat = [torch.cat([p.flatten() for p in network.parameters()]) for network in networks]
    assert len({value.sum().item() for value in flat}) == 3
    assert all(torch.equal(a, b) for a, b in zip(method.parameters(), twin.parameters(), strict=True))
    expected = build_student(setup.teacher, setup.blocks, method.config.student, seed=1)
    ours = method.peers[0].state_dict()
    assert all(torch.equal(ours[name], value) for name, value in expected.state_dict().items())


def test_peers_of_a_student_from_the_library_start_with_random_modules(setup: Setup) -> None:
    config = config_of(setup, {}, warm_start="library")
    spans = spans_of(setup.blocks, config.student)
    student = build_student(setup.teacher, setup.blocks, config.student, seed=9)
    modules = {span.key: student.get_submodule(span.first).state_dict() for span in spans}
    method = Mcl(dataclasses.replace(setup, modules=modules), config)
    first = spans[0].first
    ours, theirs = (net.get_submodule(first).state_dict() for net in (method.student, method.peers[0]))
    weights = [name for name, value in ours.items() if value.ndim == 4]
    assert weights and all(torch.equal(ours[name], modules[spans[0].key][name]) for name in weights)
    assert not any(torch.equal(ours[name], theirs[name]) for name in weights)


@pytest.mark.parametrize(("soft", "learn"), [("student", [True, False, False]), ("all", [True, True, True])])
def test_the_mean_teaches_without_a_gradient_into_who_made_it(
    setup: Setup, soft: str, learn: list[bool]
) -> None:
    method = made(setup, peers=3, soft=soft, beta=0.0)
    parts_of(method, first_batch(setup))["ensemble"].backward()
    networks = [method.student, *method.peers]
    assert [any(p.grad is not None for p in network.parameters()) for network in networks] == learn


def test_the_contrast_reaches_every_peer(setup: Setup) -> None:
    method = made(setup, peers=3)
    parts_of(method, first_batch(setup))["contrast"].backward()
    for network in (method.student, *method.peers):
        assert network.get_submodule("conv1").weight.grad.any()


def test_without_a_view_the_teacher_is_never_run(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    method = made(setup)
    monkeypatch.setattr(setup.teacher, "forward", None)
    assert set(parts_of(method, first_batch(setup))) == {"ce", "ensemble", "contrast"}


def test_the_teacher_as_a_view_joins_the_mean_and_the_pairs(setup: Setup) -> None:
    method = made(setup, teacher="view", tau=1.0, soft="all")
    twin, batch = copy.deepcopy(method), first_batch(setup)
    parts = parts_of(method, batch)
    logits, embeddings = by_hand([twin.student, *twin.peers], batch)
    with torch.no_grad(), Inputs(setup.teacher, ["fc"]) as inputs:
        seen = setup.teacher(batch.images)
        embeddings.append(inputs.inputs["fc"])
    mean = torch.stack([*logits, seen]).mean(0).softmax(1)
    expected = sum(F.kl_div(z.log_softmax(1), mean, reduction="batchmean").item() for z in logits)
    assert parts["ensemble"].item() == pytest.approx(expected, rel=1e-4)
    pairs = twin.contrast.loss(embeddings, batch.labels, batch.index, 0).item()
    assert parts["contrast"].item() == pytest.approx(0.025 * 2 * pairs, rel=1e-4)
    torch.stack(list(parts.values())).sum().backward()
    assert all(p.grad is None for p in setup.teacher.parameters())
    assert len(method.contrast.heads) == 3 and method.contrast.heads[2].weight.grad.any()


def with_copies(method: Mcl) -> list[nn.Module]:
    """The networks of a method, each whole: peers get copies of the modules that they share."""
    peers = copy.deepcopy(method.peers)
    for peer in peers:
        for shared in method._shared:
            peer.set_submodule(shared.path, copy.deepcopy(method.student.get_submodule(shared.path)))
    return [copy.deepcopy(method.student), *peers]


@pytest.mark.parametrize("train", ["all", "modules"])
def test_a_shared_prefix_is_that_of_the_student_and_runs_once(setup: Setup, train: str) -> None:
    method = Mcl(setup, config_of(setup, {"peers": 3, "share": "prefix", "beta": 0.0}, train=train))
    networks, batch = with_copies(method), first_batch(setup)
    assert [shared.path for shared in method._shared] == ["conv1", "bn1", "relu", "layer1"]
    prefix = ("conv1.", "bn1.", "layer1.")
    assert not any(name.startswith(prefix) for peer in method.peers for name in peer.state_dict())
    if train == "modules":
        for network in networks:
            network.eval()
            for span in method._spans:
                network.get_submodule(span.first).train()
        logits = [network(batch.images) for network in networks]
    else:
        logits, _ = by_hand(networks, batch)
    with method.reading():
        found = method._all_logits(batch.images)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, logits, strict=True))
    ours, theirs = method.student.state_dict(), networks[0].state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)  # statistics moved once
    torch.stack(found).sum().backward()
    if train == "all":
        torch.stack(logits).sum().backward()
        summed = sum(network.get_submodule("conv1").weight.grad for network in networks)
        torch.testing.assert_close(method.student.conv1.weight.grad, summed, rtol=1e-3, atol=1e-4)


class InPlace(nn.Module):
    """Changes the output of its shared first block in place."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8))
        self.block = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.fc = nn.Linear(8, 10)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.stem(images).relu_()
        logits: Tensor = self.fc(self.block(maps).mean((2, 3)))
        return logits


def test_a_shared_output_that_later_code_overwrites_is_copied(setup: Setup) -> None:
    with seeded(3):
        teacher = InPlace().eval()
    blocks = find_blocks(teacher, torch.zeros(1, *setup.data.image_shape))
    own = Setup.of(teacher, blocks, setup.data, setup.runtime)
    spec = StudentSpec(widths={"block": 0.5})
    method = Mcl(own, config_of(setup, {"peers": 3, "share": "prefix"}, student=spec))
    assert [(shared.path, shared.copied) for shared in method._shared] == [("stem", True)]
    networks, batch = with_copies(method), first_batch(setup)
    logits, _ = by_hand(networks, batch)
    with method.reading():
        found = method._all_logits(batch.images)
        torch.stack(found).sum().backward()
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, logits, strict=True))


def test_a_student_without_replaced_blocks_shares_nothing(setup: Setup) -> None:
    method = Mcl(setup, config_of(setup, {"share": "prefix"}, student=StudentSpec(), warm_start="none"))
    assert method._shared == [] and set(parts_of(method, first_batch(setup))) == {
        "ce",
        "ensemble",
        "contrast",
    }


def test_a_batch_computed_again_updates_the_banks_once(setup: Setup) -> None:
    method = made(setup)
    stepper = Stepper(method, setup.runtime, 0.1, 0.9, 0.0)
    before, forward = [bank.rows.clone() for bank in method.contrast.banks], method.peers[0].forward

    def fussy(images: Tensor) -> Tensor:
        if len(images) > 20:
            raise torch.OutOfMemoryError(f"{len(images)} images")
        return forward(images)

    method.peers[0].forward = fussy  # type: ignore[method-assign]
    batch = first_batch(setup)
    seen: list[Tensor] = []
    keep = method.contrast._keep
    method.contrast._keep = lambda vectors, step: (seen.append(vectors[0].detach()), keep(vectors, step))[1]
    with method.reading():
        stepper.step(batch, START)
    assert stepper.micro_batches == 2 and [len(vectors) for vectors in seen] == [13, 12]
    rows = before[0].clone()
    rows[batch.index] = F.normalize(0.5 * rows[batch.index] + 0.5 * torch.cat(seen))
    torch.testing.assert_close(method.contrast.banks[0].rows, rows)
    untouched = torch.ones(len(rows), dtype=torch.bool)
    untouched[batch.index] = False
    for bank, old in zip(method.contrast.banks, before, strict=True):
        assert torch.equal(bank.rows[untouched], old[untouched])
        assert not torch.equal(bank.rows[~untouched], old[~untouched])


@pytest.mark.parametrize("share", ["none", "prefix"])
def test_the_accuracy_of_the_mean_is_recorded(setup: Setup, share: str) -> None:
    distiller = Distiller(config_of(setup, {"peers": 3, "share": share}), setup)
    metrics = distiller.run_epoch()
    method = distiller.method
    assert isinstance(method, Mcl)

    class Ensemble(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.networks = nn.ModuleList(with_copies(method))

        def forward(self, images: Tensor) -> Tensor:
            return torch.stack([network(images) for network in self.networks]).mean(0)

    found = evaluate(Ensemble(), setup.data, setup.runtime).accuracy
    assert metrics.metrics["ensemble_accuracy"] == found
    assert 0 < found < 1


def test_its_baseline_trains_no_peers(setup: Setup) -> None:
    method = Mcl(setup, config_of(setup, {"alpha": 0.0, "beta": 0.0}))
    assert len(method.peers) == 0 and method.contrast is None and method.metrics() == {}
    assert list(parts_of(method, first_batch(setup))) == ["ce"]


def test_settings_without_effect_are_named() -> None:
    assert MclConfig().unused() == set()
    assert MclConfig(alpha=0.0).unused() == {"tau", "soft"}
    assert MclConfig(beta=0.0).unused() == {"contrast_tau", "negatives"}
    every = set(MclConfig.model_fields) - {"alpha", "beta"}
    assert MclConfig(alpha=0.0, beta=0.0).unused() == every


class NoHead(nn.Module):
    """Ends with a convolution and a mean."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.last = nn.Conv2d(8, 10, 1)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.last(self.second(self.block(images))).mean((2, 3))
        return logits


def test_what_the_contrast_needs_is_refused_before_training(setup: Setup) -> None:
    with pytest.raises(InputError, match=r"optim.batch_size >= 2, got 1"):
        Mcl(setup, config_of(setup, {}, optim={"batch_size": 1}))
    small = dataclasses.replace(setup.data, memory_limit=1e-6)
    with pytest.raises(InputError, match=r"2 memory banks of 100 images .* data.memory_limit"):
        Mcl(dataclasses.replace(setup, data=small), config_of(setup, {}))
    with seeded(0):
        teacher = NoHead().eval()
    blocks = find_blocks(teacher, torch.zeros(1, *setup.data.image_shape))
    headless = Setup.of(teacher, blocks, setup.data, setup.runtime)
    spec = StudentSpec(widths={blocks[-1].name: 0.5})
    with pytest.raises(InputError, match="ends with a linear layer"):
        Mcl(headless, config_of(setup, {}, student=spec))
    # Nothing of this is needed without the contrast.
    Mcl(dataclasses.replace(headless, data=small), config_of(setup, {"beta": 0.0}, student=spec))
