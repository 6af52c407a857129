import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat
from sklearn.datasets import load_digits
from torchvision import datasets

from trainables.data.sets.digits import read_digits
from trainables.data.sets.from_torchvision import read_torchvision
from trainables.data.sources import hash_arrays
from trainables.errors import InputError


def write_idx(path: Path, values: np.ndarray) -> None:
    """MNIST's file format: magic number with type (8 = uint8) and dimensions, sizes, bytes."""
    header = bytes([0, 0, 8, values.ndim]) + b"".join(n.to_bytes(4, "big") for n in values.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(header + values.astype(np.uint8).tobytes())


def write_mnist(raw: Path, n_train: int = 30, n_test: int = 20) -> np.ndarray:
    images = np.random.default_rng(0).integers(0, 256, (n_train, 28, 28))
    write_idx(raw / "train-images-idx3-ubyte", images)
    write_idx(raw / "train-labels-idx1-ubyte", np.arange(n_train) % 10)
    write_idx(raw / "t10k-images-idx3-ubyte", np.full((n_test, 28, 28), 9))
    write_idx(raw / "t10k-labels-idx1-ubyte", np.arange(n_test) % 10)
    return images


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def test_digits_are_scaled_to_bytes_and_split() -> None:
    source = read_digits(0, test=True)
    assert source.test is not None
    images = np.concatenate([source.images, source.test[0]])
    assert images.shape == (1797, 3, 8, 8) and images.dtype == np.uint8
    assert len(source.test[1]) == round(0.2 * 1797)
    original = load_digits().images
    assert images.sum(dtype=np.int64) == 3 * np.rint(original * 255 / 16).sum()
    assert images.min() == 0 and images.max() == 255
    assert (images[:, 0] == images[:, 2]).all()
    assert source.classes == tuple("0123456789")


def test_digits_test_images_follow_the_seed_and_are_left_out_unless_asked_for() -> None:
    with_test, without = read_digits(1, test=True), read_digits(1, test=False)
    assert without.test is None and with_test.hash == without.hash
    other = read_digits(2, test=True)
    assert other.hash != with_test.hash
    assert other.test is not None and with_test.test is not None
    assert not np.array_equal(other.test[0], with_test.test[0])


@pytest.mark.parametrize(("name", "folder"), [("mnist", "MNIST"), ("fashion_mnist", "FashionMNIST")])
def test_mnist_and_its_kin(tmp_path: Path, name: str, folder: str) -> None:
    grey = write_mnist(tmp_path / folder / "raw")
    source = read_torchvision(name, tmp_path, download=False, test=True)
    assert source.images.shape == (30, 3, 28, 28)
    assert all(np.array_equal(source.images[:, channel], grey) for channel in range(3))
    assert source.labels.tolist() == [i % 10 for i in range(30)] and source.labels.dtype == np.int64
    assert source.test is not None and source.test[0].shape == (20, 3, 28, 28) and (source.test[0] == 9).all()
    assert len(source.classes) == 10 and source.classes[0] == {"mnist": "0", "fashion_mnist": "t-shirt"}[name]


def test_test_files_are_not_read_unless_asked_for(tmp_path: Path) -> None:
    raw = tmp_path / "MNIST" / "raw"
    write_mnist(raw)
    complete = read_torchvision("mnist", tmp_path, download=False, test=True)
    for name in ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"):
        (raw / name).write_bytes(b"")
    source = read_torchvision("mnist", tmp_path, download=False, test=False)
    assert source.test is None and source.hash == complete.hash
    with pytest.raises(InputError, match=r"data\.root: mnist is missing or damaged"):
        read_torchvision("mnist", tmp_path, download=False, test=True)


@pytest.mark.parametrize(
    ("kind", "name", "label_key", "meta_key"),
    [
        (datasets.CIFAR10, "cifar10", "labels", "label_names"),
        (datasets.CIFAR100, "cifar100", "fine_labels", "fine_label_names"),
    ],
)
def test_cifar(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type, name: str, label_key: str, meta_key: str
) -> None:
    folder = tmp_path / kind.base_folder
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (4, 3072), dtype=np.uint8)
    checksums = {}
    for file, _ in [*kind.train_list, *kind.test_list]:
        (folder / file).write_bytes(pickle.dumps({"data": pixels, label_key: [0, 1, 2, 3]}))
        checksums[file] = md5(folder / file)
    meta_file = kind.meta["filename"]
    (folder / meta_file).write_bytes(pickle.dumps({meta_key: ["ant", "bee", "cow", "dog"]}))
    for attribute in ("train_list", "test_list"):
        monkeypatch.setattr(kind, attribute, [[f, checksums[f]] for f, _ in getattr(kind, attribute)])
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": md5(folder / meta_file)})

    source = read_torchvision(name, tmp_path, download=False, test=True)
    assert source.images.shape == (4 * len(kind.train_list), 3, 32, 32)
    assert np.array_equal(source.images[:4].reshape(4, -1), pixels)
    assert source.labels[:4].tolist() == [0, 1, 2, 3]
    assert source.classes == ("ant", "bee", "cow", "dog")
    assert source.test is not None and source.test[0].shape == (4, 3, 32, 32)


def test_svhn_where_ten_means_zero(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3, 5), dtype=np.uint8)
    path = tmp_path / "train_32x32.mat"
    savemat(path, {"X": pixels, "y": np.array([[1], [2], [10], [9], [10]])})
    split_list = {**datasets.SVHN.split_list, "train": ["", path.name, md5(path)]}
    monkeypatch.setattr(datasets.SVHN, "split_list", split_list)
    source = read_torchvision("svhn", tmp_path, download=False, test=False)
    assert source.labels.tolist() == [1, 2, 0, 9, 0]
    assert np.array_equal(source.images[3], pixels[:, :, :, 3].transpose(2, 0, 1))
    assert source.images.flags.c_contiguous


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "svhn", "fashion_mnist", "mnist"])
def test_missing_files_name_the_folder_and_the_option(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError) as caught:
        read_torchvision(name, tmp_path / "nowhere", download=False, test=False)
    assert name in str(caught.value) and str(tmp_path / "nowhere") in str(caught.value)
    assert "-o data.download=true" in str(caught.value)


def test_a_download_that_fails_names_the_folder(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("a file where a folder should be")
    with pytest.raises(InputError, match=rf"data\.download: cifar10 could not be downloaded into {blocked}"):
        read_torchvision("cifar10", blocked, download=True, test=False)


def test_hash_of_arrays_sees_values_shapes_and_types() -> None:
    base = np.arange(6, dtype=np.int64)
    others = [base[::-1], base.reshape(2, 3), base.astype(np.int32)]
    assert hash_arrays(base) == hash_arrays(base.copy())
    assert len({hash_arrays(array) for array in [base, *others]}) == 4
