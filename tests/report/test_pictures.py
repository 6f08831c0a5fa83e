"""Pictures of samples, read again by pillow; axes and numbers as they are written."""

import base64
from io import BytesIO

import numpy as np
import pytest
import torch

from mixbit.report.pictures import LONGEST, pictures_of, png
from mixbit.report.scales import linear, logarithmic
from mixbit.report.words import breakable, in_unit, nats, size, tick, unit_of

Image = pytest.importorskip("PIL.Image")


def pixels_of(address):
    assert address.startswith("data:image/png;base64,")
    return np.asarray(Image.open(BytesIO(base64.b64decode(address.partition(",")[2]))))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_png_file_holds_the_pixels(channels):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, channels), dtype=np.uint8)
    with Image.open(BytesIO(png(pixels))) as image:
        assert image.size == (7, 5)
        np.testing.assert_array_equal(np.asarray(image).reshape(5, 7, channels), pixels)


def test_normalisation_is_undone():
    pixels = torch.randint(0, 256, (6, 3, 8, 10), generator=torch.Generator().manual_seed(0))
    pixels[2, :, 0, 0], pixels[4, :, 0, 0] = 0, 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    images = (pixels / 255 - mean) / std
    for given in (images, images.movedim(1, -1)):
        shown = pictures_of(given, [4, 1])
        for address, row in zip(shown, (4, 1), strict=True):
            np.testing.assert_array_equal(pixels_of(address), pixels[row].movedim(0, -1).numpy())


def test_large_pictures_are_thinned_and_what_is_no_image_has_none():
    (address,) = pictures_of(torch.rand(2, 1, 300, 200), [0])
    assert max(pixels_of(address).shape) <= LONGEST
    for shape in ((4, 16), (4, 16, 3), (4, 7, 9, 9), (4, 3, 2, 2)):
        assert pictures_of(torch.rand(shape), [0]) == []
    assert len(pictures_of(torch.full((2, 1, 8, 8), float("nan")), [0, 1])) == 2


def test_axes_hold_their_values_and_ticks():
    for axis in (linear([3.0, 8.0]), linear([5.0]), logarithmic([1e-5, 1e-2, 1.0]), logarithmic([2.0, 3.0])):
        assert axis.at(axis.low) == 0
        assert axis.at(axis.high) == 100
        assert axis.at(axis.high + 1) == 100
        assert all(axis.low <= value <= axis.high for value in axis.ticks)
        assert len(axis.ticks) >= 2
    assert logarithmic([1e-4, 1.0]).at(1e-2) == pytest.approx(50, abs=0.01)
    assert not logarithmic([-1.0, -2.0, 3.0]).logarithmic


def test_numbers_are_written_to_three_digits():
    assert [nats(value) for value in (0.0024041, 0, -0.5, 3.85e-7, 12345.6, None)] == [
        "0.00240", "0", "\N{MINUS SIGN}0.500", "3.85 · 10⁻⁷", "12,346", "\N{EN DASH}",
    ]  # fmt: skip
    assert [tick(value) for value in (0.001, 1e-5, 3e-5, 20_000)] == ["0.001", "10⁻⁵", "3 · 10⁻⁵", "20,000"]
    assert [size(value) for value in (21_997, 999, 1_073_344)] == ["22.0 kB", "999 B", "1.07 MB"]
    assert (unit_of(1.1e-4), unit_of(3.0), unit_of(0.0)) == (1e-6, 1.0, 1e-9)
    assert (in_unit(1.134e-4, 1e-6), in_unit(3.85e-7, 1e-6), in_unit(1e-9, 1e-6)) == ("113", "0.385", "0.001")
    assert breakable("a<b.c") == "a&lt;b.<wbr>c"
