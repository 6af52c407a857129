"""The teacher's part behind a block: its answers, its graph, and what it does not compute."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainables.blocks.blocks import Block, find_blocks
from trainables.config import DataConfig
from trainables.data.dataset import ImageData
from trainables.data.load import load_data
from trainables.methods.signals.tails import Tails
from trainables.methods.signals.teacher_signals import Supervisor
from trainables.network.architectures import build_model
from trainables.network.reset import recalibrate_batchnorm
from trainables.network.surgery import frozen_copy
from trainables.runtime.runtime import Runtime
from trainables.runtime.seeds import seeded


class PreActivation(nn.Module):
    """A block that begins with an activation in place: it changes the map before it."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(6), nn.Conv2d(6, 6, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(self.norm(F.relu(x, inplace=True)))


class InPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.blocks = nn.Sequential(*(PreActivation() for _ in range(3)))
        self.fc = nn.Linear(6, 10)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(self.blocks(self.stem(x)).mean((2, 3)))
        return out


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, 4)
        self.layers = nn.Sequential(
            *(nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True, norm_first=True) for _ in range(3))
        )
        self.fc = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        out: Tensor = self.fc(self.layers(tokens).mean(1))
        return out


class Bypassed(nn.Module):
    """The first block's map is also read by the head, beside the blocks after it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.blocks = nn.ModuleList(PreActivation() for _ in range(3))
        self.fc = nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        first = self.blocks[0](self.stem(x))
        last = self.blocks[2](self.blocks[1](first.clone()))
        out: Tensor = self.fc(torch.cat([first.mean((2, 3)), last.mean((2, 3)) * first.mean((2, 3))], 1))
        return out


MODELS = ("cifar_resnet14", "torchvision:mobilenet_v2", "in place", "tokens", "bypassed")


@pytest.fixture(scope="module")
def data() -> ImageData:
    return load_data(DataConfig(name="digits", train_limit=60, size=16, augment="crop-flip"))


def teacher_of(name: str, data: ImageData, runtime: Runtime) -> nn.Module:
    kinds = {"in place": InPlace, "tokens": Tokens, "bypassed": Bypassed}
    with seeded(0):
        model = kinds[name]() if name in kinds else build_model(name, 10, data.image_shape)
    recalibrate_batchnorm(model, data.eval_batches("train", runtime), runtime)
    return model.eval()


@pytest.fixture(params=MODELS)
def made(
    request: pytest.FixtureRequest, data: ImageData, runtime: Runtime
) -> tuple[Supervisor, tuple[Block, ...]]:
    teacher = teacher_of(str(request.param), data, runtime)
    blocks = find_blocks(teacher, data.image_shape)
    return Supervisor(teacher, blocks, data, runtime), blocks


def signals_of(supervisor: Supervisor, tails: Tails, point: str) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    images, _, index = next(supervisor.data.train_steps(8, 0, 0, supervisor.runtime))
    with supervisor.teaching(tails.reads([point]), logits=True) as teach:
        signals = teach(images, index)
    assert signals.logits is not None
    return images, signals.logits, dict(signals.maps)


def test_the_answer_to_the_teachers_own_map_is_its_logits(made: tuple[Supervisor, tuple[Block, ...]]) -> None:
    supervisor, blocks = made
    tails = Tails(supervisor, blocks)
    assert len(blocks) > 1
    for block in blocks:
        point = block.members[-1]
        images, logits, maps = signals_of(supervisor, tails, point)
        assert list(maps) and set(maps) == set(tails.reads([point]))
        before = maps[point].clone()
        answer = tails.answer(images, maps, point, before.clone().requires_grad_() * 1)
        torch.testing.assert_close(answer.detach(), logits.clone(), rtol=1e-4, atol=1e-5)
        assert torch.equal(maps[point], before)  # also where the teacher writes into it


def test_the_answer_to_another_map_is_that_of_the_teacher_with_a_hook(
    made: tuple[Supervisor, tuple[Block, ...]],
) -> None:
    supervisor, blocks = made
    tails = Tails(supervisor, blocks)
    point = blocks[len(blocks) // 2].members[-1]
    images, logits, maps = signals_of(supervisor, tails, point)
    changed = maps[point] + torch.randn(maps[point].shape, generator=torch.Generator().manual_seed(0))
    hook = supervisor.teacher.get_submodule(point).register_forward_hook(lambda *_: changed.clone())
    with torch.no_grad():
        expected = supervisor.teacher(images)
    hook.remove()
    assert not torch.allclose(expected, logits, rtol=0.1)
    answer = tails.answer(images, maps, point, changed.clone())
    torch.testing.assert_close(answer, expected, rtol=1e-3, atol=1e-4)


def test_gradients_reach_the_changed_map_alone(made: tuple[Supervisor, tuple[Block, ...]]) -> None:
    supervisor, blocks = made
    tails = Tails(supervisor, blocks)
    point = blocks[0].members[-1]
    images, _, maps = signals_of(supervisor, tails, point)
    changed = maps[point].clone().requires_grad_()
    images.requires_grad_()
    answer = tails.answer(images, maps, point, changed * 1)
    given, before = torch.autograd.grad(answer.square().sum(), [changed, images], allow_unused=True)
    assert given.abs().sum() > 0
    assert before is None  # nothing before the point is in the graph
    assert all(p.grad is None and p.requires_grad for p in supervisor.teacher.parameters())


def test_blocks_up_to_the_point_are_not_computed(data: ImageData, runtime: Runtime) -> None:
    teacher = teacher_of("cifar_resnet14", data, runtime)
    blocks = find_blocks(teacher, data.image_shape)
    supervisor = Supervisor(teacher, blocks, data, runtime)
    calls: list[str] = []
    for name, module in supervisor.quick.named_modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda *_, name=name: calls.append(name))
    tails = Tails(supervisor, blocks)  # its copy has these hooks
    point = blocks[3].members[-1]
    images, _, maps = signals_of(supervisor, tails, point)
    everything = list(dict.fromkeys(calls))
    calls.clear()
    tails.answer(images, maps, point, maps[point])
    done = [name for name in everything if name.startswith(tuple(block.name for block in blocks[:4]))]
    assert done and set(calls) == set(everything) - set(done)


def test_hooks_on_the_supervisors_network_do_not_see_the_tail(data: ImageData, runtime: Runtime) -> None:
    teacher = teacher_of("cifar_resnet14", data, runtime)
    blocks = find_blocks(teacher, data.image_shape)
    supervisor = Supervisor(teacher, blocks, data, runtime)
    tails, point = Tails(supervisor, blocks), blocks[1].members[-1]
    images, _, index = next(data.train_steps(8, 0, 0, runtime))
    # A pass that reads maps alone ends after the last of them; the tail goes on to the logits.
    with supervisor.teaching(tails.reads([point]), logits=False) as teach:
        maps = teach(images, index).maps
        assert tails.answer(images, maps, point, maps[point]).shape == (8, 10)


def test_a_frozen_copy_shares_weights_and_needs_no_gradient() -> None:
    model = build_model("cifar_resnet8", 10, (3, 8, 8)).eval()
    copied = frozen_copy(model)
    ours, theirs = copied.state_dict(keep_vars=True), model.state_dict(keep_vars=True)
    assert list(ours) == list(theirs)
    assert all(ours[name].data_ptr() == theirs[name].data_ptr() for name in ours)
    assert not any(p.requires_grad for p in copied.parameters())
    assert all(p.requires_grad for p in model.parameters())
    images = torch.rand(2, 3, 8, 8)
    assert torch.equal(copied(images), model(images))
