import numpy as np
import pytest
import torch

from trainables.data.pixels import (
    channel_statistics,
    normalisation_constants,
    normalise,
    resize,
)
from trainables.data.sets.data_set import DATA_SETS

CPU = torch.device("cpu")


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_normalise_is_the_textbook_formula(layout: torch.memory_format) -> None:
    mean, std = (0.1, 0.5, 0.9), (0.2, 0.3, 0.4)
    images = torch.randint(0, 256, (4, 3, 6, 6), dtype=torch.uint8)
    before = images.clone()
    out = normalise(images, normalisation_constants(mean, std, CPU), layout)
    expected = (images.double() / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    torch.testing.assert_close(out.double(), expected, atol=1e-5, rtol=1e-5)
    assert out.dtype == torch.float32 and out.is_contiguous(memory_format=layout)
    assert torch.equal(images, before)


def test_statistics_equal_numpys_on_the_chosen_images() -> None:
    images = np.random.default_rng(0).integers(0, 256, (3000, 3, 4, 4), dtype=np.uint8)
    images[:, 1] //= 2
    indices = np.arange(0, 3000, 2)
    mean, std = channel_statistics(images, indices, 4)
    values = images[indices].transpose(1, 0, 2, 3).reshape(3, -1) / 255
    np.testing.assert_allclose(mean, values.mean(1), atol=6e-5)
    np.testing.assert_allclose(std, values.std(1), atol=6e-5)


def test_statistics_are_those_of_the_resized_images() -> None:
    checkers = np.zeros((2, 3, 8, 8), dtype=np.uint8)
    checkers[:, :, ::2, ::2] = checkers[:, :, 1::2, 1::2] = 255
    indices = np.arange(2)
    assert channel_statistics(checkers, indices, 8) == ((0.5,) * 3, (0.5,) * 3)
    mean, std = channel_statistics(checkers, indices, 2)  # averaged, the squares turn grey
    assert mean == pytest.approx((0.5,) * 3, abs=0.01) and max(std) < 0.05


def test_a_constant_channel_has_a_usable_deviation() -> None:
    mean, std = channel_statistics(np.full((3, 3, 2, 2), 51, dtype=np.uint8), np.arange(3), 2)
    assert mean == (0.2, 0.2, 0.2) and min(std) > 0


def test_resize_keeps_what_fits_and_flat_colours() -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 3, 8, 8), dtype=np.uint8)
    assert resize(images, 8) is images
    flat = np.broadcast_to(images[:, :, :1, :1], (5, 3, 8, 8))
    for size in (3, 20):
        assert (resize(flat, size) == images[:, :, :1, :1]).all()
        assert resize(flat, size).shape == (5, 3, size, size)


def test_resize_handles_more_images_than_one_chunk() -> None:
    images = np.arange(2500 * 3 * 4, dtype=np.uint8).reshape(2500, 3, 2, 2)
    resized = resize(images, 4)
    assert np.array_equal(resized[2400:], resize(images[2400:], 4))


def test_known_constants_are_plausible() -> None:
    sets = [DATA_SETS.get(name) for name in DATA_SETS.names()]
    known = [(each.mean, each.std) for each in sets if each.mean is not None]
    assert len(known) == 5
    for mean, std in known:
        assert all(0 < m < 1 for m in mean) and all(0.1 < s < 0.5 for s in std)
