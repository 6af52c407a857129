import pytest
import torch
from torch.nn import functional as F

from trainables.data.augment import Augment, EpochPlan, augment_for, gather_augmented, plan_epoch
from trainables.data.sets.data_set import DATA_SETS

FULL = Augment(pad=2, flip=True)


def random_images(n: int, size: int) -> torch.Tensor:
    return torch.randint(
        0, 256, (n, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )


def one_by_one(images: torch.Tensor, plan: EpochPlan, pad: int) -> torch.Tensor:
    """The plain way: reflect, cut out, mirror, an image at a time."""
    size = images.shape[-1]
    out = []
    for index, down, right, flip in zip(plan.order, plan.down, plan.right, plan.flip):
        padded = F.pad(images[index].float()[None], (pad,) * 4, mode="reflect")[0].to(torch.uint8)
        crop = padded[:, pad + down : pad + down + size, pad + right : pad + right + size]
        out.append(crop.flip(2) if flip else crop)
    return torch.stack(out)


@pytest.mark.parametrize("size", [5, 8, 32])
def test_crops_and_flips_equal_the_plain_way(size: int) -> None:
    images = random_images(40, size)
    plan = plan_epoch(40, FULL, seed=1, epoch=0)
    assert torch.equal(gather_augmented(images, plan, FULL), one_by_one(images, plan, FULL.pad))


@pytest.mark.parametrize("augment", [Augment(pad=3), Augment(flip=True)])
def test_crop_alone_and_flip_alone(augment: Augment) -> None:
    images = random_images(30, 8)
    plan = plan_epoch(30, augment, seed=1, epoch=0)
    assert torch.equal(gather_augmented(images, plan, augment), one_by_one(images, plan, augment.pad))


def test_no_augmentation_gives_the_images_themselves() -> None:
    images = random_images(10, 8)
    plan = plan_epoch(10, Augment(), seed=0, epoch=0)
    assert torch.equal(gather_augmented(images, plan, Augment()), images[plan.order])


def test_a_crop_larger_than_the_image_stays_inside_it() -> None:
    images = torch.full((50, 3, 1, 1), 7, dtype=torch.uint8)
    plan = plan_epoch(50, Augment(pad=1, flip=True), seed=0, epoch=0)
    assert (gather_augmented(images, plan, Augment(pad=1, flip=True)) == 7).all()


def test_images_are_only_read() -> None:
    images = random_images(20, 8)
    before = images.clone()
    out = gather_augmented(images, plan_epoch(20, FULL, 0, 0), FULL)
    out.zero_()
    assert torch.equal(images, before)


def test_plan_covers_every_image_shift_and_flip() -> None:
    plan = plan_epoch(3000, FULL, seed=0, epoch=0)
    assert sorted(plan.order.tolist()) == list(range(3000))
    assert plan.order.tolist() != list(range(3000))
    for shift in (plan.down, plan.right):
        counts = torch.bincount(shift + 2, minlength=5)
        assert len(counts) == 5 and counts.min() > 500  # uniform: 600 each, deviation 22
    assert 1400 < plan.flip.sum() < 1600
    assert not torch.equal(plan.down, plan.right)


def test_plan_is_a_function_of_seed_and_epoch_alone() -> None:
    first = plan_epoch(100, FULL, seed=3, epoch=4)
    torch.manual_seed(0)
    torch.rand(10)
    again = plan_epoch(100, FULL, seed=3, epoch=4)
    assert all(torch.equal(getattr(first, f), getattr(again, f)) for f in ("order", "down", "right", "flip"))
    for other in (plan_epoch(100, FULL, 4, 3), plan_epoch(100, FULL, 3, 5), plan_epoch(100, FULL, 2**40, 4)):
        assert not torch.equal(first.order, other.order)


@pytest.mark.parametrize(("n", "steps"), [(100, 7), (8, 8), (129, 2)])
def test_batches_differ_by_one_at_most_and_keep_the_order(n: int, steps: int) -> None:
    plan = plan_epoch(n, FULL, 0, 0)
    parts = plan.batches(steps)
    sizes = [len(part.order) for part in parts]
    assert len(parts) == steps and max(sizes) - min(sizes) <= 1
    assert torch.equal(torch.cat([part.order for part in parts]), plan.order)
    assert torch.equal(torch.cat([part.flip for part in parts]), plan.flip)


@pytest.mark.parametrize(
    ("name", "choice", "size", "expected"),
    [
        ("digits", "auto", 8, Augment()),
        ("digits", "crop", 8, Augment(pad=1)),
        ("digits", "crop", 4, Augment(pad=1)),
        ("cifar10", "auto", 32, Augment(pad=4, flip=True)),
        ("cifar100", "auto", 32, Augment(pad=4, flip=True)),
        ("imagefolder", "auto", 224, Augment(pad=28, flip=True)),
        ("svhn", "auto", 32, Augment(pad=4)),
        ("mnist", "auto", 28, Augment(pad=3)),
        ("fashion_mnist", "auto", 28, Augment(pad=3, flip=True)),
        ("cifar10", "flip", 32, Augment(flip=True)),
        ("cifar10", "none", 32, Augment()),
    ],
)
def test_which_augmentation_a_config_means(name: str, choice: str, size: int, expected: Augment) -> None:
    assert augment_for(DATA_SETS.get(name).augmentation(choice), size) == expected


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_every_device_sees_the_same_pixels() -> None:
    images = random_images(64, 32)
    plan = plan_epoch(64, FULL, 0, 0)
    device = torch.device("cuda")
    on_device = gather_augmented(images.to(device), plan.to(device), FULL)
    assert torch.equal(on_device.cpu(), gather_augmented(images, plan, FULL))
