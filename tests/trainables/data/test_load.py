import pickle
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from trainables.config import DataConfig
from trainables.data.augment import Augment
from trainables.data.dataset import ImageData
from trainables.data.load import load_data
from trainables.data.split import split_of
from trainables.errors import InputError
from trainables.runtime.runtime import Runtime

CPU = Runtime(torch.device("cpu"), "fp32", channels_last=False, threads=1)
DIGITS = DataConfig(name="digits")
AUGMENTED = DataConfig(name="digits", augment="crop-flip", train_limit=300)


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return load_data(DIGITS, test=True)


def rows(images: torch.Tensor) -> set[bytes]:
    return {image.numpy().tobytes() for image in images}


def train_epoch(data: ImageData, batch_size: int, seed: int, epoch: int) -> tuple[torch.Tensor, torch.Tensor]:
    images, labels = zip(*data.train_batches(batch_size, seed, epoch, CPU))
    return torch.cat(images), torch.cat(labels)


def test_digits_splits(digits: ImageData) -> None:
    assert digits.test is not None
    assert [len(s) for s in (digits.train, digits.val, digits.test)] == [1294, 144, 359]
    assert digits.num_classes == 10 and digits.image_shape == (3, 8, 8) and digits.augment == Augment()
    for split in (digits.train, digits.val, digits.test):
        assert split.images.dtype == torch.uint8 and split.labels.dtype == torch.int64
        counts = torch.bincount(split.labels, minlength=10)
        assert counts.max() - counts.min() <= 0.07 * len(split)
    everything = torch.cat([digits.train.images, digits.val.images, digits.test.images])
    assert everything[:, 0].sum() == np.rint(load_digits().images * 255 / 16).sum()


def test_test_images_are_there_only_on_request(digits: ImageData) -> None:
    without = load_data(DIGITS)
    assert without.test is None and without.hash == digits.hash
    assert torch.equal(without.train.images, digits.train.images)
    with pytest.raises(InputError, match="test images were not loaded"):
        next(without.eval_batches("test", CPU))
    with pytest.raises(InputError, match="split: expected train, val, test, got 'tets'"):
        next(without.eval_batches("tets", CPU))


def test_the_name_of_a_data_set_means_its_defaults() -> None:
    assert load_data("digits").hash == load_data(DataConfig(name="digits")).hash


def test_computed_normalisation_is_of_the_training_images(digits: ImageData) -> None:
    values = digits.train.images.double() / 255
    assert digits.mean == pytest.approx([values.mean().item()] * 3, abs=6e-5)
    assert digits.std == pytest.approx([values.std(correction=0).item()] * 3, abs=6e-5)
    normalised, _ = train_epoch(digits, 512, 0, 0)
    assert abs(normalised.mean()) < 1e-3 and abs(normalised.std() - 1) < 1e-3


def test_train_limit_samples_the_training_images_alone(digits: ImageData) -> None:
    limited = load_data(DIGITS.model_copy(update={"train_limit": 200}), test=True)
    assert len(limited.train) == 200
    assert torch.bincount(limited.train.labels).tolist() == pytest.approx([20] * 10, abs=1)
    assert rows(limited.train.images) <= rows(digits.train.images)
    assert torch.equal(limited.val.images, digits.val.images)
    assert torch.equal(limited.test.images, digits.test.images)  # type: ignore[union-attr]
    assert (limited.mean, limited.std) == (digits.mean, digits.std)
    assert limited.hash != digits.hash
    with pytest.raises(InputError, match=r"data\.train_limit: 5000 is more than the 1294"):
        load_data(DIGITS.model_copy(update={"train_limit": 5000}))


def test_split_seed_and_val_fraction_shape_the_split_and_the_hash(digits: ImageData) -> None:
    reseeded = load_data(DataConfig(name="digits", split_seed=1))
    assert not torch.equal(reseeded.val.images, digits.val.images)
    larger = load_data(DataConfig(name="digits", val_fraction=0.3), test=True)
    assert len(larger.val) == round(0.3 * 1438)
    assert torch.equal(larger.test.images, digits.test.images)  # type: ignore[union-attr]
    assert len({digits.hash, reseeded.hash, larger.hash}) == 3
    assert len(digits.hash) == 16


def test_official_test_images_do_not_depend_on_the_seed(image_folder: Path) -> None:
    config = DataConfig(
        name="imagefolder", root=str(image_folder), cache=str(image_folder / "cache"), val_fraction=0.5
    )
    first, second = (load_data(config.model_copy(update={"split_seed": s}), test=True) for s in (0, 1))
    assert torch.equal(first.test.images, second.test.images)  # type: ignore[union-attr]
    assert not torch.equal(first.train.images, second.train.images)


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for split, n in (("train", 20), ("test", 4)):
        for name in ("ant", "bee"):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            for i in range(n):
                pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return tmp_path


def test_an_image_folder_from_files_to_batches(image_folder: Path) -> None:
    (image_folder / "train" / "ant" / "3.png").write_text("broken")
    config = DataConfig(
        name="imagefolder", root=str(image_folder), cache=str(image_folder / "cache"), skip_unreadable=True
    )
    data = load_data(config, test=True)
    assert (data.classes, data.skipped, data.augment) == (("ant", "bee"), 1, Augment(pad=1, flip=True))
    assert len(data.train) == 35 and len(data.val) == 4 and data.test is not None and len(data.test) == 8
    images, labels = next(data.eval_batches("test", CPU))
    first = np.asarray(Image.open(image_folder / "test" / "ant" / "0.png")).transpose(2, 0, 1)
    expected = (first / 255 - np.reshape(data.mean, (3, 1, 1))) / np.reshape(data.std, (3, 1, 1))
    np.testing.assert_allclose(images[0].numpy(), expected, atol=1e-5)
    assert labels.tolist() == [0] * 4 + [1] * 4
    assert len(list(data.train_batches(8, 0, 0, CPU))) == data.steps_per_epoch(8) == 5


def test_size_resizes_every_split() -> None:
    data = load_data(DataConfig(name="digits", size=16), test=True)
    assert data.image_shape == (3, 16, 16)
    assert data.val.images.shape[2:] == data.test.images.shape[2:] == (16, 16)  # type: ignore[union-attr]


def test_given_normalisation_is_used() -> None:
    data = load_data(DataConfig(name="digits", mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 4.0)))
    assert data.mean == (0.1, 0.2, 0.3) and data.std == (1.0, 2.0, 4.0)
    images, _ = next(data.eval_batches("val", CPU))
    raw = data.val.images[0].float() / 255
    torch.testing.assert_close(images[0, 2], (raw[2] - 0.3) / 4)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mean": (0.5, 0.5, 0.5)}, r"data\.std: data\.mean is given"),
        ({"std": (0.5, 0.5, 0.5)}, r"data\.mean: data\.std is given"),
        (
            {"mean": (0.5,) * 3, "std": (0.5, 0.0, 0.5)},
            r"data\.std: expected values above 0, got \[0\.5, 0\.0",
        ),
        ({"name": "imagefolder"}, r"data\.root: imagefolder needs the folder"),
        ({"name": "imagefolder", "root": "/nowhere/at/all"}, r"data\.root: no such folder: /nowhere/at/all"),
    ],
)
def test_impossible_configs(fields: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_data(DataConfig(**{"name": "digits", **fields}))  # type: ignore[arg-type]


def test_a_torchvision_set_has_its_own_normalisation_and_augmentation(tmp_path: Path) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        images = np.zeros((40, 28, 28), dtype=np.uint8)
        sizes = b"".join(n.to_bytes(4, "big") for n in images.shape)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(bytes([0, 0, 8, 3]) + sizes + images.tobytes())
        labels = bytes(range(10)) * 4
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(bytes([0, 0, 8, 1]) + sizes[:4] + labels)
    data = load_data(DataConfig(name="mnist", root=str(tmp_path), size=32, val_fraction=0.25))
    assert (data.mean, data.std) == ((0.1307,) * 3, (0.3081,) * 3)
    assert data.augment == Augment(pad=4) and data.image_shape == (3, 32, 32)
    assert (len(data.train), len(data.val), data.test) == (30, 10, None)


def test_torchvision_sets_lie_below_the_cache_unless_root_says_otherwise(tmp_path: Path) -> None:
    for config, folder in [
        (DataConfig(name="cifar10", cache=str(tmp_path / "c")), tmp_path / "c" / "torchvision"),
        (DataConfig(name="cifar10", root=str(tmp_path / "r")), tmp_path / "r"),
    ]:
        with pytest.raises(InputError, match=f"in {folder}; download it with -o data.download=true"):
            load_data(config)


def test_train_batches_are_near_equal_and_cover_the_epoch(digits: ImageData) -> None:
    batches = list(digits.train_batches(100, 0, 0, CPU))
    sizes = [len(labels) for _, labels in batches]
    assert len(batches) == digits.steps_per_epoch(100) == 13
    assert max(sizes) - min(sizes) <= 1 and max(sizes) <= 100 and sum(sizes) == 1294
    images = torch.cat([images for images, _ in batches])
    evaluated = torch.cat([images for images, _ in digits.eval_batches("train", CPU)])
    assert images.dtype == torch.float32 and rows(images) == rows(evaluated)
    assert not torch.equal(images, evaluated)


def test_epochs_are_a_function_of_seed_and_epoch_alone() -> None:
    data = load_data(AUGMENTED)
    first = train_epoch(data, 64, seed=1, epoch=5)
    torch.manual_seed(0)
    train_epoch(data, 64, seed=1, epoch=4)
    again = train_epoch(data, 64, seed=1, epoch=5)
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    for seed, epoch in ((1, 6), (2, 5), (5, 1)):
        assert not torch.equal(train_epoch(data, 64, seed, epoch)[0], first[0])
    other_size = train_epoch(data, 32, seed=1, epoch=5)
    assert torch.equal(other_size[0], first[0])


def test_labels_stay_with_their_images(digits: ImageData) -> None:
    label_of = {}
    for images, labels in digits.eval_batches("train", CPU):
        label_of.update({image.numpy().tobytes(): int(label) for image, label in zip(images, labels)})
    images, labels = train_epoch(digits, 77, 0, 3)
    assert all(label_of[image.numpy().tobytes()] == int(label) for image, label in zip(images, labels))


def test_eval_batches_come_in_order_without_augmentation() -> None:
    data = load_data(AUGMENTED)
    batches = list(data.eval_batches("train", CPU, batch_size=128))
    assert [len(labels) for _, labels in batches] == [128, 128, 44]
    assert torch.equal(torch.cat([labels for _, labels in batches]), data.train.labels)
    images = torch.cat([images for images, _ in batches])
    back = (images * torch.tensor(data.std).view(3, 1, 1) + torch.tensor(data.mean).view(3, 1, 1)) * 255
    assert torch.equal(back.round().to(torch.uint8), data.train.images)


def test_memory_layout_follows_the_runtime(digits: ImageData) -> None:
    runtime = Runtime(torch.device("cpu"), "fp32", channels_last=True, threads=1)
    for batches in (digits.train_batches(64, 0, 0, runtime), digits.eval_batches("val", runtime)):
        images, _ = next(iter(batches))
        assert images.is_contiguous(memory_format=torch.channels_last)


def test_arrays_round_trip_without_copies(digits: ImageData) -> None:
    arrays = digits.to_arrays()
    back = ImageData.from_arrays(arrays)
    assert back.train.images.data_ptr() == digits.train.images.data_ptr()
    for key in ("name", "classes", "mean", "std", "augment", "hash", "skipped"):
        assert getattr(back, key) == getattr(digits, key)
    for name in ("train", "val", "test"):
        assert torch.equal(getattr(back, name).images, getattr(digits, name).images)
        assert torch.equal(getattr(back, name).labels, getattr(digits, name).labels)
    assert ImageData.from_arrays(load_data(DIGITS).to_arrays()).test is None


def test_read_only_shared_arrays_are_used_silently_and_never_written() -> None:
    data = load_data(AUGMENTED)
    arrays = data.to_arrays()
    frozen = {k: v.copy() if isinstance(v, np.ndarray) else v for k, v in arrays.items()}
    for value in frozen.values():
        if isinstance(value, np.ndarray):
            value.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        shared = ImageData.from_arrays(frozen)
        images, labels = train_epoch(shared, 64, 0, 0)
        list(shared.eval_batches("val", CPU))
    assert torch.equal(images, train_epoch(data, 64, 0, 0)[0])
    images.zero_()  # batches are the caller's to change
    labels.zero_()
    assert all(np.array_equal(frozen[k], v) for k, v in arrays.items() if isinstance(v, np.ndarray))


def test_other_warnings_are_not_silenced() -> None:
    images, labels = np.zeros((2, 3, 4, 4), dtype=np.uint8), np.zeros(2, dtype=np.int64)
    split_of(images, labels)
    with pytest.warns(UserWarning, match="something else"):
        warnings.warn("something else", UserWarning, stacklevel=1)


def test_device_copies_made_in_inference_mode_can_be_trained_on(digits: ImageData) -> None:
    meta = Runtime(torch.device("meta"), "fp32", channels_last=False, threads=1)  # a copy, as on a GPU
    data = ImageData.from_arrays(digits.to_arrays())
    with torch.inference_mode():
        list(data.eval_batches("train", meta))
    for images, labels in data.eval_batches("train", meta):
        assert images.device.type == "meta" and not images.is_inference() and not labels.is_inference()


def test_the_device_copy_is_made_once(digits: ImageData) -> None:
    first, second = (next(digits.eval_batches("val", CPU))[1] for _ in range(2))
    assert first.data_ptr() == second.data_ptr() == digits.val.labels.data_ptr()


def test_pickling_leaves_device_copies_behind(digits: ImageData) -> None:
    before = len(pickle.dumps(load_data(DIGITS)))
    data = load_data(DIGITS)
    list(data.train_batches(512, 0, 0, CPU))
    assert len(pickle.dumps(data)) == before
    assert torch.equal(pickle.loads(pickle.dumps(data)).train.images, data.train.images)


def test_the_hash_is_the_same_in_every_process(digits: ImageData) -> None:
    code = "from trainables.data.load import *; print(load_data(DataConfig(name='digits')).hash)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == digits.hash


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_every_device_sees_the_same_epoch() -> None:
    data = load_data(AUGMENTED)
    cuda = Runtime(torch.device("cuda"), "fp32", channels_last=True, threads=1)
    here, there = data.train_batches(64, 0, 0, CPU), data.train_batches(64, 0, 0, cuda)
    for (images, labels), (cuda_images, cuda_labels) in zip(here, there):
        torch.testing.assert_close(cuda_images.cpu(), images)
        assert torch.equal(cuda_labels.cpu(), labels)
