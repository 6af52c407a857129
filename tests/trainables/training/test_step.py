"""Steps that do not fit into the device's memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trainables.blocks.blocks import Block, find_blocks
from trainables.config import DataConfig, DistillConfig, OptimConfig, RuntimeConfig, StudentSpec
from trainables.data.dataset import ImageData
from trainables.data.load import load_data
from trainables.methods.base import Batch, Progress, Setup
from trainables.network.architectures import build_model
from trainables.runtime.runtime import Runtime, resolve
from trainables.runtime.seeds import seeded
from trainables.training.loop import Distiller
from trainables.training.step import TooLarge


class Small(nn.Module):
    """A network that finds no memory for more than `most` images at a time."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.net, self.most = build_model("cifar_resnet8", 10, (3, 8, 8)), most

    def forward(self, images: Tensor) -> Tensor:
        if len(images) > self.most:
            raise torch.OutOfMemoryError(f"{len(images)} images")
        logits: Tensor = self.net(images)
        return logits


@pytest.fixture(scope="module")
def runtime() -> Runtime:
    return resolve(RuntimeConfig(device="cpu", precision="fp32", threads=1, eval_batch=64))


@pytest.fixture(scope="module")
def data() -> ImageData:
    return load_data(DataConfig(name="digits", train_limit=100, augment="flip"))


def distiller(most: int, data: ImageData, runtime: Runtime, **fields: Any) -> Distiller:
    with seeded(0):
        model = Small(most).eval()
    model.most = 10**6
    blocks: tuple[Block, ...] = find_blocks(model, torch.zeros(1, *data.image_shape))
    config = DistillConfig(
        student=StudentSpec(widths={blocks[-1].name: 0.5}),
        optim=OptimConfig(batch_size=50, lr=0.01),
        epochs=2,
        **fields,
    )
    made = Distiller(config, Setup.of(model, blocks, data, runtime))
    model.most = made.student.most = most
    return made


def test_a_batch_that_does_not_fit_is_computed_in_two_halves(data: ImageData, runtime: Runtime) -> None:
    short, whole = distiller(40, data, runtime), distiller(100, data, runtime)
    ours, theirs = short.run_epoch(), whole.run_epoch()
    assert (ours.micro_batches, theirs.micro_batches) == (2, 1)
    # The same steps but for batch norms and relative errors, which are those of a half.
    assert ours.lr == theirs.lr
    assert ours.train_loss == pytest.approx(theirs.train_loss, rel=0.1)
    assert short.run_epoch().micro_batches == 2
    assert short.state_dict()["micro_batches"] == 2
    again = distiller(40, data, runtime)
    again.load_state_dict(short.state_dict())
    assert again._stepper.micro_batches == 2


def test_gradients_of_two_halves_add_up_to_those_of_the_batch(data: ImageData, runtime: Runtime) -> None:
    # Frozen batch norms, and no relative error of the batch: the halves know nothing of each other.
    images, labels, order = next(data.train_steps(50, 0, 0, runtime))
    gradients = []
    for micro in (1, 2):
        made = distiller(100, data, runtime, loss={"alpha": 0.5, "beta": 0.0})
        made._stepper.micro_batches = micro
        with made.method.reading():
            made.student.eval()
            made._stepper.step(Batch(images, labels, order), Progress(0, 4, 2))
        gradients.append(
            torch.cat([p.grad.flatten() for p in made.student.parameters() if p.grad is not None])
        )
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-6)


def test_a_half_that_does_not_fit_either_ends_the_trial(data: ImageData, runtime: Runtime) -> None:
    with pytest.raises(TooLarge, match="half a batch of 50 images does not fit: 25 images"):
        distiller(20, data, runtime).run_epoch()


def test_validation_goes_on_in_smaller_batches(data: ImageData, runtime: Runtime) -> None:
    made = distiller(50, data, runtime)
    assert len(data.val) > 64  # batches of 64 are tried first
    expected = distiller(100, data, runtime).run_epoch()
    found = made.run_epoch()
    assert found.micro_batches == 1 and found.val_loss == pytest.approx(expected.val_loss, rel=1e-4)
    made.student.most = 10
    with pytest.raises(TooLarge, match="scoring 32 images"):
        made._evaluate()
