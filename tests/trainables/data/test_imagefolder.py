import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trainables.data.image_files.imagefolder import read_imagefolder
from trainables.data.sources import Source
from trainables.errors import InputError

COLOURS = {"ant": (250, 0, 0), "bee": (0, 250, 0)}


def make_folder(root: Path, splits: dict[str, int], size: int = 6) -> Path:
    """PNG files `<split>/<class>/<i>.png` whose blue channel is i."""
    for split, n in splits.items():
        for name, (red, green, _) in COLOURS.items():
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(n):
                Image.new("RGB", (size, size), (red, green, i % 256)).save(folder / f"{i:03d}.png")
    return root


def read(root: Path, **options: object) -> Source:
    defaults = {
        "size": None,
        "cache": root.parent / "cache",
        "skip_unreadable": False,
        "test": False,
        "progress": None,
    }
    return read_imagefolder(root, **{**defaults, **options})  # type: ignore[arg-type]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "images", {"train": 5, "test": 3})


def test_images_labels_and_classes(root: Path) -> None:
    source = read(root, test=True)
    assert source.classes == ("ant", "bee") and source.skipped == 0
    assert source.labels.tolist() == [0] * 5 + [1] * 5
    assert source.images.shape == (10, 3, 6, 6)
    assert source.images[:, :, 0, 0].tolist() == [[250, 0, i] for i in range(5)] + [
        [0, 250, i] for i in range(5)
    ]
    assert source.test is not None
    images, labels = source.test
    assert images.shape == (6, 3, 6, 6) and labels.tolist() == [0, 0, 0, 1, 1, 1]


def test_the_second_reading_comes_from_the_cache_read_only(root: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    first = read(root, test=True, progress=lambda *step: seen.append(step))
    assert seen == [("decoding train images", 10, 10), ("decoding test images", 6, 6)]
    again = read(root, test=True, progress=lambda *step: seen.append(step))
    assert len(seen) == 2
    assert isinstance(again.images, np.memmap) and not again.images.flags.writeable
    assert np.array_equal(first.images, again.images) and first.hash == again.hash
    assert not [p for p in (root.parent / "cache").iterdir() if p.name.startswith(".")]


def test_a_changed_file_is_decoded_again_and_changes_the_hash(root: Path) -> None:
    before = read(root)
    path = root / "train" / "bee" / "002.png"
    Image.new("RGB", (6, 6), (9, 9, 9)).save(path)
    os.utime(path, (1, 1))
    after = read(root)
    assert after.images[7, 0, 0, 0] == 9
    assert after.hash != before.hash


def test_the_hash_is_of_contents_not_of_times_or_places(root: Path, tmp_path: Path) -> None:
    copy = make_folder(tmp_path / "elsewhere" / "images", {"train": 5, "val": 2})
    os.utime(copy / "train" / "ant" / "000.png", (5, 5))
    assert read(copy).hash == read(root).hash
    (copy / "train" / "ant" / "000.png").rename(copy / "train" / "ant" / "0000.png")
    assert read(copy).hash != read(root).hash


def test_a_damaged_cache_is_made_anew(root: Path) -> None:
    before = read(root).images.copy()
    (place,) = (root.parent / "cache").iterdir()
    (place / "images.npy").write_bytes(b"half a file")
    assert np.array_equal(read(root).images, before)
    (place / "meta.json").write_text('{"format": 999}')
    assert np.array_equal(read(root).images, before)


def test_another_process_that_was_first_does_no_harm(root: Path) -> None:
    inner: list[Source] = []
    outer = read(root, progress=lambda *_: inner.append(read(root)))
    assert len(inner) == 1
    assert np.array_equal(outer.images, inner[0].images) and outer.hash == inner[0].hash
    assert len(list((root.parent / "cache").iterdir())) == 1


def test_test_images_are_not_decoded_unless_asked_for(root: Path) -> None:
    for path in (root / "test").rglob("*.png"):
        path.write_text("broken")
    assert read(root).test is None
    with pytest.raises(InputError, match="cannot be decoded"):
        read(root, test=True)


def test_val_is_the_test_split_only_where_there_is_no_test(tmp_path: Path) -> None:
    both = make_folder(tmp_path / "both", {"train": 2, "test": 3, "val": 4})
    only_val = make_folder(tmp_path / "only_val", {"train": 2, "val": 4})
    assert read(both, test=True).test[1].shape == (6,)  # type: ignore[index]
    assert read(only_val, test=True).test[1].shape == (8,)  # type: ignore[index]


def test_many_images_are_decoded_by_several_processes(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "images", {"train": 300}, size=2)
    steps: list[int] = []
    source = read(root, progress=lambda _what, done, _total: steps.append(done))
    assert source.images[:300, 2, 0, 0].tolist() == [i % 256 for i in range(300)]
    assert (source.images[300:, 1] == 250).all()
    assert steps == sorted(steps) and steps[-1] == 600 and len(steps) > 2


def test_images_of_any_size_are_brought_to_the_size_asked_for(root: Path) -> None:
    Image.new("RGB", (40, 20), (250, 0, 77)).save(root / "train" / "ant" / "000.png")
    images = read(root, size=12).images
    assert images.shape == (10, 3, 12, 12)
    assert (images[0, 2] == 77).all()
    assert read(root, size=4).images.shape == (10, 3, 4, 4)


def test_several_sizes_without_data_size_are_refused_even_after_caching(root: Path) -> None:
    Image.new("RGB", (6, 7)).save(root / "train" / "bee" / "001.png")
    read(root, size=6)
    with pytest.raises(InputError, match=r"data\.size: .*bee.001\.png is 6x7, the first image 6x6"):
        read(root)


def test_a_first_image_that_is_not_square_asks_for_the_size(root: Path) -> None:
    Image.new("RGB", (6, 7)).save(root / "train" / "ant" / "000.png")
    with pytest.raises(InputError, match=r"data\.size: .*000\.png is 6x7, not square"):
        read(root)


def test_an_unreadable_image_is_named_with_the_way_out(root: Path) -> None:
    for name in ("ant/000.png", "bee/003.png"):
        path = root / "train" / name
        original = path.read_bytes()
        path.write_bytes(original[:40])
        with pytest.raises(InputError, match=re.escape(str(path))) as caught:
            read(root)
        assert "data.skip_unreadable" in str(caught.value)
        path.write_bytes(original)


def test_unreadable_images_can_be_skipped_and_are_counted(root: Path) -> None:
    (root / "train" / "ant" / "001.png").write_text("broken")
    (root / "test" / "bee" / "001.png").write_text("broken")
    for _ in range(2):  # decoded, then cached
        source = read(root, skip_unreadable=True, test=True)
        assert source.skipped == 2
        assert source.labels.tolist() == [0] * 4 + [1] * 5
        assert source.images[:, 2, 0, 0].tolist() == [0, 2, 3, 4, 0, 1, 2, 3, 4]
        assert source.test is not None and source.test[0].shape == (5, 3, 6, 6)
    assert read(root, skip_unreadable=True).skipped == 1
    with pytest.raises(InputError, match=r"ant.001\.png"):
        read(root)  # the cache does not hide the fault


def test_nothing_readable_at_all(root: Path) -> None:
    for path in (root / "train").rglob("*.png"):
        path.write_text("broken")
    for size in (None, 6):
        with pytest.raises(InputError, match=r"none of the 10 images in .*train can be decoded"):
            read(root, skip_unreadable=True, size=size)


def test_other_files_hidden_folders_and_depth_do_not_matter(root: Path) -> None:
    (root / "train" / "README.txt").write_text("hello")
    (root / "train" / "ant" / ".DS_Store").write_text("?")
    (root / "train" / ".ipynb_checkpoints").mkdir()
    deep = root / "train" / "bee" / "more" / "deeper"
    deep.mkdir(parents=True)
    Image.new("RGB", (6, 6), (0, 250, 99)).save(deep / "X.PNG")
    source = read(root)
    assert source.classes == ("ant", "bee") and len(source.labels) == 11
    assert 99 in source.images[5:, 2, 0, 0]


def test_missing_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"data\.root: no such folder: .*nowhere"):
        read(tmp_path / "nowhere")
    (tmp_path / "odd" / "pictures").mkdir(parents=True)
    with pytest.raises(InputError, match=r"no folder train/ \(expected train/<class>/\*, found pictures\)"):
        read(tmp_path / "odd")
    only_train = make_folder(tmp_path / "only_train", {"train": 2})
    assert read(only_train).test is None
    with pytest.raises(InputError, match="neither test/ nor val/"):
        read(only_train, test=True)


def test_class_folders_that_cannot_be_used(root: Path) -> None:
    (root / "train" / "cow").mkdir()
    (root / "test" / "cow").mkdir()
    with pytest.raises(InputError, match=r"class folder .*cow has no images"):
        read(root)
    for split in ("train", "test"):
        (root / split / "cow").rmdir()
    (root / "test" / "bee").rename(root / "test" / "wasp")
    with pytest.raises(InputError, match=r"missing: bee; not in train/: wasp"):
        read(root)


def test_one_class_is_not_enough(tmp_path: Path) -> None:
    (tmp_path / "images" / "train" / "ant").mkdir(parents=True)
    with pytest.raises(InputError, match="at least 2 class folders, found 1"):
        read(tmp_path / "images")


def test_a_cache_that_cannot_be_written(root: Path, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("a file where a folder should be")
    with pytest.raises(InputError, match=r"data\.cache: .*cannot be written to"):
        read(root, cache=blocked)


def test_a_disk_that_is_too_small(root: Path) -> None:
    with pytest.raises(InputError, match=r"data\.cache: the decoded images need [\d.]+ GB, but"):
        read(root, size=2_000_000)
    assert list((root.parent / "cache").iterdir()) == []
