"""The synthetic digits, their teacher, and the bank of its logits."""

from __future__ import annotations

import math

import pytest
import torch

from trainables.data.sets.digits import read_digits
from trainables.methods.synthetic_digits import LeNet5, make_bank, synthetic_digits

CPU = torch.device("cpu")


def digits_of(held_out: bool) -> dict[int, set[bytes]]:
    """The digit images (8, 8) of a seed's pool by their value."""
    source = read_digits(0, test=True)
    assert source.test is not None
    images, values = source.test if held_out else (source.images, source.labels)
    found: dict[int, set[bytes]] = {value: set() for value in range(10)}
    for image, value in zip(images[:], values, strict=True):
        found[int(value)].add(image[0].tobytes())
    return found


@pytest.mark.parametrize(("classes", "digits"), [(2, 1), (10, 1), (11, 2), (100, 2), (101, 3)])
def test_a_class_is_a_number_of_handwritten_digits(classes: int, digits: int) -> None:
    images, labels = synthetic_digits(classes, 3, seed=0, shift=0)
    assert images.shape == (3 * classes, 8 * digits, 8 * digits) and images.dtype == torch.uint8
    assert labels.tolist() == [label for label in range(classes) for _ in range(3)]
    pool, top = digits_of(held_out=False), 4 * digits - 4
    for image, label in zip(images, labels.tolist(), strict=True):
        for place, value in enumerate(f"{label:0{digits}d}"):
            piece = image[top : top + 8, 8 * place : 8 * place + 8].contiguous()
            assert piece.numpy().tobytes() in pool[int(value)]
        assert image[:top].sum() == image[top + 8 :].sum() == 0


def test_shifts_move_whole_images_by_a_pixel_at_most() -> None:
    images, _ = synthetic_digits(100, 4, seed=0, shift=1)
    assert images.shape == (400, 18, 18)
    pools = digits_of(held_out=False)
    pool = set.union(*pools.values())
    offsets = set()
    for image in images:
        fits = [
            (dy, dx)
            for dy in range(3)
            for dx in range(3)
            if image[4 + dy : 12 + dy, dx : dx + 8].contiguous().numpy().tobytes() in pool
            and image[4 + dy : 12 + dy, dx + 8 : dx + 16].contiguous().numpy().tobytes() in pool
        ]
        assert len(fits) == 1
        offsets.add(fits[0])
    assert len(offsets) == 9


def test_images_depend_on_seed_and_classes_alone() -> None:
    first, again = synthetic_digits(10, 20, seed=1)[0], synthetic_digits(10, 20, seed=1)[0]
    assert torch.equal(first, again)
    assert not torch.equal(first, synthetic_digits(10, 20, seed=2)[0])
    for label in range(10):  # not one image again and again
        assert len({image.numpy().tobytes() for image in first[20 * label : 20 * label + 20]}) > 15


def test_held_out_images_are_made_of_other_digits() -> None:
    images, labels = synthetic_digits(10, 30, seed=0, shift=0, held_out=True)
    theirs, ours = digits_of(held_out=True), set.union(*digits_of(held_out=False).values())
    for image, label in zip(images, labels.tolist(), strict=True):
        assert image.numpy().tobytes() in theirs[label] and image.numpy().tobytes() not in ours


def test_lenet_has_the_parameters_of_the_paper() -> None:
    # With every map of the first pooling connected to the second convolution.
    expected = 6 * 26 + 16 * (6 * 25 + 1) + 120 * 401 + 84 * 121 + 10 * 85
    assert sum(parameter.numel() for parameter in LeNet5(10).parameters()) == expected == 61_706


@pytest.fixture(scope="module")
def bank() -> tuple[torch.Tensor, float]:
    return make_bank(10, 300, epochs=5, shift=1, seed=0, device=CPU)


def test_rows_of_the_bank_are_of_their_class_and_differ(bank: tuple[torch.Tensor, float]) -> None:
    logits, accuracy = bank
    assert logits.shape == (10, 300, 10) and logits.dtype == torch.float32 and not logits.requires_grad
    right = logits.argmax(2) == torch.arange(10)[:, None]
    assert right.float().mean() > 0.95 and right.float().mean(1).min() > 0.85
    assert 0.9 < accuracy <= 1.0
    assert (logits.std(1) > 0.1).all()  # the target varies by sample


def test_the_same_seed_makes_the_same_bank() -> None:
    make = [make_bank(3, 40, 2, 1, seed, CPU)[0] for seed in (5, 5, 6)]
    assert torch.equal(make[0], make[1]) and not torch.equal(make[0], make[2])


def test_a_teacher_trained_longer_is_less_soft() -> None:
    def entropy(epochs: int) -> float:
        log = make_bank(10, 100, epochs, 1, 0, CPU)[0].log_softmax(2)
        return float(-(log.exp() * log).sum(2).mean())

    short, long = entropy(1), entropy(6)
    assert long < 0.5 * short < 0.5 * math.log(10)


def test_progress_is_told_every_epoch() -> None:
    told: list[tuple[str, int, int]] = []
    make_bank(2, 10, 3, 1, 0, CPU, lambda *what: told.append(what))
    assert [(done, total) for _, done, total in told] == [(1, 3), (2, 3), (3, 3)]
