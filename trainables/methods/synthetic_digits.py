"""The synthetic data set of `lwkd`, its teacher, and the bank of the teacher's logits.

Class c of C is the number c, written in ceil(log10 C) handwritten digits of scikit-learn side by side. A
LeNet-5 learns to read them. Its logits for the synthetic images, grouped by class, are soft targets for any
data set of C classes, whatever its images show. The idea is of Liu, Zhang and Wang 2020 (arXiv:2005.09163).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainables.data.sets.digits import read_digits
from trainables.runtime.seeds import generator, seeded, stream

DIGIT = 8  # side of scikit-learn's digits in pixels
SIDE = 32  # side of LeNet-5's input in pixels
LR, BATCH = 2e-3, 32  # of LeNet-5's training with Adam
MEAN, STD = 0.3, 0.35  # of the digits' pixels in 0..1
HELD_OUT = 20  # images a class on which LeNet-5 is scored

Progress = Callable[[str, int, int], None]  # what, epochs done, epochs


def synthetic_digits(
    classes: int, images_per_class: int, seed: int, shift: int = 1, held_out: bool = False
) -> tuple[Tensor, Tensor]:
    """Write every number below `classes` in handwritten digits, `images_per_class` times each.

    The images depend on the arguments alone. Every digit is one of scikit-learn's 1,797 images of its value.

    Args:
        classes: C; a number has ceil(log10 C) digits, at least one.
        images_per_class: n.
        seed: of the choice of digits and of the shifts.
        shift: each image is moved by up to this many pixels in either direction.
        held_out: take the digits that no other image is made of (20 % of them), to score a network.

    Returns:
        Grey images, uint8 (n C, H, H) with H = 8 digits + 2 shift, and labels, int64 (n C,), sorted.

    Example:
        images, labels = synthetic_digits(classes=100, images_per_class=2, seed=0)
        print(images.shape, labels[:4].tolist())
    """
    source = read_digits(seed, test=True)
    assert source.test is not None
    images, values = source.test if held_out else (source.images, source.labels)
    order = np.argsort(values, kind="stable")
    grey = np.asarray(images)[order, 0]  # (digits, 8, 8), sorted by value
    counts = np.bincount(values, minlength=10)
    starts = np.cumsum(counts) - counts
    draw = np.random.default_rng([seed, classes, held_out])
    labels = np.repeat(np.arange(classes), images_per_class)
    digits = len(str(classes - 1))
    side = DIGIT * digits + 2 * shift
    canvas = np.zeros((len(labels), side, side), np.uint8)
    moves = draw.integers(-shift, shift + 1, (2, len(labels)))
    top = (side - DIGIT) // 2 + moves[0]
    rows = top[:, None] + np.arange(DIGIT)  # (images, 8)
    for place in range(digits):
        value = labels // 10 ** (digits - 1 - place) % 10
        chosen = starts[value] + (draw.random(len(labels)) * counts[value]).astype(np.int64)
        columns = (shift + place * DIGIT + moves[1])[:, None] + np.arange(DIGIT)
        canvas[np.arange(len(labels))[:, None, None], rows[:, :, None], columns[:, None]] = grey[chosen]
    return torch.from_numpy(canvas), torch.from_numpy(labels)


class LeNet5(nn.Sequential):
    """LeNet-5 (LeCun et al. 1998) with ReLU and maximum pooling: grey (B, 1, 32, 32) to (B, classes)."""

    def __init__(self, classes: int) -> None:
        super().__init__(
            nn.Conv2d(1, 6, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 16, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(16 * 5 * 5, 120),
            nn.ReLU(),
            nn.Linear(120, 84),
            nn.ReLU(),
            nn.Linear(84, classes),
        )


def train_lenet(
    images: Tensor,
    labels: Tensor,
    classes: int,
    epochs: int,
    seed: int,
    device: torch.device,
    progress: Progress | None = None,
) -> LeNet5:
    """Train a LeNet-5 on synthetic images with Adam and cross-entropy; return it in eval mode.

    Args:
        images: uint8 (N, H, H).
        labels: int64 (N,).
        classes: length of the logits.
        epochs: passes over the images; more of them make the logits less soft.
        seed: of the initial weights and of the order of the images.
        device: where to train.
        progress: called after each epoch.
    """
    with seeded(stream("lenet", seed)):
        net = LeNet5(classes)
    net.to(device).train()
    optimizer = torch.optim.Adam(net.parameters(), lr=LR)
    for epoch in range(epochs):
        order = torch.randperm(len(images), generator=generator("order", seed, epoch))
        for chosen in torch.split(order, BATCH):
            loss = F.cross_entropy(net(_input(images[chosen], device)), labels[chosen].to(device))
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        if progress is not None:
            progress("training the teacher of synthetic digits", epoch + 1, epochs)
    return net.eval()


def make_bank(
    classes: int,
    images_per_class: int,
    epochs: int,
    shift: int,
    seed: int,
    device: torch.device,
    progress: Progress | None = None,
) -> tuple[Tensor, float]:
    """Make the bank of soft targets: the logits of a LeNet-5 for the synthetic images it was trained on.

    Args:
        classes: C, of the data set to distil for.
        images_per_class: n, rows of the bank a class.
        epochs: of the LeNet-5.
        shift: of the synthetic images, in pixels.
        seed: of all that is drawn.
        device: where to train the LeNet-5.
        progress: called after each epoch.

    Returns:
        The logits, fp32 (C, n, C) on the CPU: row [c, j] is of the j-th image of class c. And the accuracy of
        the LeNet-5 on held-out synthetic images, 0..1.

    Example:
        bank, accuracy = make_bank(10, 50, epochs=1, shift=1, seed=0, device=torch.device("cpu"))
        print(bank.shape, accuracy)
    """
    images, labels = synthetic_digits(classes, images_per_class, seed, shift)
    net = train_lenet(images, labels, classes, epochs, seed, device, progress)
    unseen, theirs = synthetic_digits(classes, HELD_OUT, seed, shift, held_out=True)
    right = torch.cat(list(_logits(net, unseen, device))).argmax(1) == theirs
    bank = torch.cat(list(_logits(net, images, device)))
    return bank.view(classes, images_per_class, classes), float(right.float().mean())


def _input(images: Tensor, device: torch.device) -> Tensor:
    """Normalise uint8 images (B, H, H) and resize them to fp32 (B, 1, 32, 32) on the device."""
    scaled = (images[:, None].to(device).float() / 255 - MEAN) / STD
    return F.interpolate(scaled, (SIDE, SIDE), mode="bilinear", align_corners=False)


@torch.no_grad()
def _logits(net: LeNet5, images: Tensor, device: torch.device) -> Iterator[Tensor]:
    for some in torch.split(images, 1024):
        yield net(_input(some, device)).float().cpu()
