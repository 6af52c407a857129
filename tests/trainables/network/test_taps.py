"""Maps and inputs of submodules are what the submodule gave or got, whatever later code writes into them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainables.blocks.blocks import find_blocks
from trainables.config import (
    DataConfig,
    DistillConfig,
    LibraryConfig,
    OptimConfig,
    RuntimeConfig,
    StudentSpec,
)
from trainables.data.dataset import ImageData
from trainables.data.load import load_data
from trainables.library.build import build_library
from trainables.methods.base import Setup
from trainables.network.taps import Inputs, Taps, overwritten_inputs, overwritten_outputs
from trainables.runtime.runtime import Runtime, resolve
from trainables.runtime.seeds import seeded
from trainables.training.loop import Distiller


class PreActivation(nn.Module):
    """A residual branch that begins with an in-place activation of its input."""

    def __init__(self, channels: int, inplace: bool) -> None:
        super().__init__()
        self.relu = nn.ReLU(inplace=inplace)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(self.conv(self.relu(x)))
        return out


class Net(nn.Module):
    """Three blocks; `late`: the code between them writes, not a module."""

    def __init__(self, inplace: bool, late: str = "") -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.blocks = nn.ModuleList(PreActivation(8, inplace) for _ in range(3))
        self.head, self.late = nn.Linear(8, 10), late

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        for block in self.blocks:
            x = block(x)
            if self.late == "functional":
                x = F.leaky_relu(x, 0.1, inplace=True)
            elif self.late == "arithmetic":
                x += 1.0
            elif self.late == "view":
                x.view(-1)[::2].mul_(0.5)
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


PATHS = [f"blocks.{i}" for i in range(3)]
KINDS = [(True, ""), (False, "functional"), (False, "arithmetic"), (False, "view")]


def net(inplace: bool, late: str = "") -> Net:
    with seeded(0):
        return Net(inplace, late).eval()


@pytest.fixture(scope="module")
def data() -> ImageData:
    return load_data(DataConfig(name="digits", train_limit=60))


@pytest.fixture(scope="module")
def runtime() -> Runtime:
    return resolve(RuntimeConfig(device="cpu", precision="fp32", threads=1))


def own_outputs(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """What each block returned, copied before anything else ran."""
    found: dict[str, Tensor] = {}
    handles = [
        model.get_submodule(path).register_forward_hook(
            lambda module, args, output, path=path: found.__setitem__(path, output.detach().clone())
        )
        for path in PATHS
    ]
    with torch.no_grad():
        model(images)
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize(("inplace", "late"), KINDS)
def test_overwritten_maps_are_found_and_copied(inplace: bool, late: str, data: ImageData) -> None:
    model, images = net(inplace, late), torch.randn(4, 3, 8, 8)
    copied = overwritten_outputs(model, PATHS, images)
    assert copied == set(PATHS[:2] if inplace else PATHS)
    expected = own_outputs(model, images)
    with Taps(model, PATHS, copied) as taps, torch.no_grad():
        model(images)
        assert all(torch.equal(taps.outputs[path], expected[path]) for path in PATHS)
    with Taps(model, PATHS) as taps, torch.no_grad():  # what a tap without copies sees
        model(images)
        assert not torch.equal(taps.outputs[PATHS[0]], expected[PATHS[0]])


def test_overwritten_inputs_are_found_and_copied() -> None:
    model, images = net(True), torch.randn(4, 3, 8, 8)
    copied = overwritten_inputs(model, PATHS, images)
    assert copied == set(PATHS)
    expected = own_outputs(model, images)
    with Inputs(model, PATHS, copied) as inputs, torch.no_grad():
        model(images)
        assert torch.equal(inputs.inputs[PATHS[1]], expected[PATHS[0]])


def test_nothing_is_copied_where_nothing_is_overwritten() -> None:
    model, images = net(False), torch.randn(4, 3, 8, 8)
    assert overwritten_outputs(model, PATHS, images) == overwritten_inputs(model, PATHS, images) == set()


def test_it_can_be_asked_in_inference_mode() -> None:
    with torch.inference_mode():
        assert overwritten_outputs(net(True), PATHS, torch.randn(2, 3, 8, 8)) == set(PATHS[:2])


@pytest.mark.parametrize("train", ["all", "modules"])
@pytest.mark.parametrize("augment", ["none", "flip"])
def test_a_distillation_is_the_same_with_and_without_inplace(
    train: str, augment: str, data: ImageData, runtime: Runtime
) -> None:
    """Fault 16: the maps of teacher and student are the blocks' own outputs."""
    data = load_data(DataConfig(name="digits", train_limit=60, augment=augment))  # type: ignore[arg-type]
    histories = []
    for inplace in (False, True):
        model = net(inplace)
        blocks = find_blocks(model, torch.zeros(1, *data.image_shape))
        assert [block.name for block in blocks][-3:] == PATHS
        config = DistillConfig.model_validate(
            {
                "student": StudentSpec(widths={PATHS[0]: 1.0, PATHS[2]: 0.5}),
                "optim": OptimConfig(batch_size=20),
                "train": train,
                "epochs": 2,
            }
        )
        distiller = Distiller(config, Setup.of(model, blocks, data, runtime))
        distiller.run_epoch(), distiller.run_epoch()
        histories.append([(m.losses, m.val_loss) for m in distiller.history])
    assert histories[0] == histories[1]


def test_a_library_is_the_same_with_and_without_inplace(data: ImageData, runtime: Runtime) -> None:
    found = []
    for inplace in (False, True):
        model = net(inplace)
        blocks = find_blocks(model, torch.zeros(1, *data.image_shape))
        config = LibraryConfig(epochs=1.0, student_epochs=1.0, batch_size=20)
        library = build_library(Setup.of(model, blocks, data, runtime), [0.5], True, config)
        found.append((dict(library.errors), dict(library.solo_loss)))
    # A copy adds its gradient in another order than the map itself: rounding, no more.
    for ours, theirs in zip(*found, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-4)
