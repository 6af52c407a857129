from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trainables.data.image_files.decoding import Failure, Job, decode_job, image_size, to_array, to_rgb

RED, GREEN, BLUE = (200, 30, 20), (20, 200, 30), (30, 20, 200)


def reopened(image: Image.Image, path: Path, **options: object) -> Image.Image:
    image.save(path, **options)
    return Image.open(path)


def only_colour(image: Image.Image) -> tuple[int, ...]:
    colours = image.getcolors()
    assert image.mode == "RGB" and colours is not None and len(colours) == 1
    return colours[0][1]


def test_grey_and_bilevel(tmp_path: Path) -> None:
    assert only_colour(to_rgb(reopened(Image.new("L", (4, 4), 77), tmp_path / "a.png"))) == (77, 77, 77)
    assert only_colour(to_rgb(reopened(Image.new("1", (4, 4), 1), tmp_path / "b.png"))) == (255, 255, 255)


def test_transparent_pixels_turn_white_and_opaque_ones_stay(tmp_path: Path) -> None:
    for mode, clear, solid in [("RGBA", (*RED, 0), (*RED, 255)), ("LA", (90, 0), (90, 255))]:
        assert only_colour(to_rgb(reopened(Image.new(mode, (4, 4), clear), tmp_path / "a.png"))) == (255,) * 3
        expected = RED if mode == "RGBA" else (90,) * 3
        assert only_colour(to_rgb(reopened(Image.new(mode, (4, 4), solid), tmp_path / "b.png"))) == expected
    half = to_rgb(Image.new("RGBA", (4, 4), (0, 0, 0, 128)))
    assert only_colour(half) == pytest.approx((127,) * 3, abs=1)


def test_palette_with_and_without_transparency(tmp_path: Path) -> None:
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([*RED, *GREEN, *BLUE])
    assert only_colour(to_rgb(reopened(palette, tmp_path / "a.png"))) == GREEN
    assert only_colour(to_rgb(reopened(palette, tmp_path / "b.png", transparency=1))) == (255,) * 3
    assert only_colour(to_rgb(reopened(palette, tmp_path / "c.png", transparency=2))) == GREEN


def test_cmyk(tmp_path: Path) -> None:
    image = reopened(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), tmp_path / "a.jpg", quality=95)
    assert image.mode == "CMYK"
    assert only_colour(to_rgb(image)) == pytest.approx((255, 0, 0), abs=3)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path: Path, suffix: str) -> None:
    ramp = np.array([[0, 256, 0x7FFF, 0xFFFF]], dtype=np.uint16)
    image = reopened(Image.fromarray(ramp), tmp_path / f"a.{suffix}")
    assert image.mode.startswith("I")
    assert np.asarray(to_rgb(image))[0, :, 0].tolist() == [0, 1, 127, 255]


def test_float_grey_in_either_range(tmp_path: Path) -> None:
    unit = Image.fromarray(np.array([[0, 0.5, 1, np.nan]], dtype=np.float32))
    assert np.asarray(to_rgb(reopened(unit, tmp_path / "a.tif")))[0, :, 0].tolist() == [0, 128, 255, 0]
    bytes_ = Image.fromarray(np.array([[-3, 20, 255, 300]], dtype=np.float32))
    assert np.asarray(to_rgb(reopened(bytes_, tmp_path / "b.tif")))[0, :, 2].tolist() == [0, 20, 255, 255]


def test_an_image_of_the_right_size_keeps_its_pixels() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    assert np.array_equal(to_array(Image.fromarray(pixels), 9), pixels.transpose(2, 0, 1))


@pytest.mark.parametrize("upright", [False, True])
def test_the_centre_square_is_taken(upright: bool) -> None:
    pixels = np.zeros((10, 30, 3), dtype=np.uint8)
    pixels[:, :10], pixels[:, 10:20], pixels[:, 20:] = RED, GREEN, BLUE
    image = Image.fromarray(pixels.transpose(1, 0, 2).copy() if upright else pixels)
    for side in (10, 5):
        array = to_array(image, side)
        assert array.shape == (3, side, side) and array.dtype == np.uint8
        middle = array[:, 1:-1, 1:-1].reshape(3, -1)
        assert (middle == np.array(GREEN)[:, None]).all()


def test_small_images_grow_and_extreme_shapes_work() -> None:
    assert (to_array(Image.new("RGB", (2, 3), RED), 16) == np.array(RED)[:, None, None]).all()
    assert (to_array(Image.new("RGB", (4000, 1), BLUE), 8) == np.array(BLUE)[:, None, None]).all()


def test_a_large_jpeg_is_decoded_small_but_right(tmp_path: Path) -> None:
    ramp = np.linspace(0, 255, 1024).astype(np.uint8)
    pixels = np.broadcast_to(ramp[None, :, None], (1024, 1024, 3))
    array = to_array(reopened(Image.fromarray(np.ascontiguousarray(pixels)), tmp_path / "a.jpg"), 32)
    np.testing.assert_allclose(array[0, 5], ramp.reshape(32, 32).mean(1), atol=4)


def test_a_job_fills_its_rows_and_says_what_failed(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4), RED).save(tmp_path / "good.png")
    Image.new("RGB", (6, 4), RED).save(tmp_path / "wide.png")
    (tmp_path / "text.png").write_text("not an image")
    whole = (tmp_path / "good.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    array = tmp_path / "images.npy"
    np.save(array, np.full((7, 3, 4, 4), 5, dtype=np.uint8))
    files = ("good.png", "wide.png", "text.png", "cut.png", "gone.png")
    good, wide, text, cut, gone = decode_job(Job(tmp_path, files, array, start=1, side=4, exact=True))
    assert isinstance(good, str) and len(good) == 64
    assert wide == Failure("6x4", other_size=True)
    assert text == Failure("no image format that Pillow knows")
    assert isinstance(cut, Failure) and not cut.other_size
    assert isinstance(gone, Failure) and "No such file" in gone.reason
    rows = np.load(array)
    assert (rows[1] == np.array(RED)[:, None, None]).all()
    assert (rows[[0, 6]] == 5).all()


def test_image_size_reads_the_header(tmp_path: Path) -> None:
    Image.new("L", (7, 5)).save(tmp_path / "a.png")
    assert image_size(tmp_path / "a.png") == (7, 5)
    assert isinstance(image_size(tmp_path / "none.png"), Failure)
