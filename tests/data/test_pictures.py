"""Images of every kind that Pillow writes, read as a set: right, or refused by name."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from l2t_ray.data.pictures import Picture, agree, look_at, pixels_of
from l2t_ray.interfaces import UserError

RANDOM = np.random.default_rng(0)
GREY = RANDOM.integers(0, 256, (5, 7), dtype=np.uint8)
COLOUR = RANDOM.integers(0, 256, (5, 7, 3), dtype=np.uint8)
WHITE = 255


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png(bits, colour_type, samples):
    """A PNG as Pillow cannot write it; samples are [h, w * channels]."""

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    channels = {0: 1, 2: 3, 4: 2, 6: 4}[colour_type]
    header = struct.pack(">IIBBBBB", samples.shape[1] // channels, samples.shape[0], bits, colour_type, 0, 0, 0)
    rows = b"".join(b"\0" + row.tobytes() for row in samples.astype(">u2"))
    head = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    return head + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def read(*contents, image_size=None):
    """The pixels of each image of a set, channels last, and what is said of the set."""
    pictures = [Picture(content, f"image {number}") for number, content in enumerate(contents)]
    reading, notes = agree([look_at(picture) for picture in pictures])
    read = [pixels_of(picture, reading, image_size) for picture in pictures]
    said = [*notes, *(change for _, changes in read for change in changes)]
    return [pixels.transpose(1, 2, 0) for pixels, _ in read], said


def image(array, mode=None):
    return Image.fromarray(array) if mode is None else Image.fromarray(array).convert(mode)


def deep(highest, dtype):
    return np.linspace(0, highest, 35).reshape(5, 7).astype(dtype)


def with_alpha(array, alpha):
    return Image.fromarray(np.dstack([array, np.full(array.shape[:2], alpha, dtype=np.uint8)]))


EIGHT_BIT = {
    "PNG": "1 L P RGB",
    "TIFF": "1 L P RGB CMYK YCbCr",
    "BMP": "1 L P RGB",
    "PPM": "1 L RGB",
    "GIF": "1 L P RGB",
    "WEBP": "L P RGB CMYK YCbCr",
    "JPEG": "1 L RGB CMYK YCbCr",
    "JPEG2000": "L RGB CMYK YCbCr",
    "AVIF": "1 L P RGB",
}


@pytest.mark.parametrize("kind, mode", [(kind, mode) for kind, modes in EIGHT_BIT.items() for mode in modes.split()])
def test_eight_bit_images_are_what_pillow_says(kind, mode):
    content = encoded(image(COLOUR, mode), kind)
    with Image.open(io.BytesIO(content)) as opened:
        expected = np.asarray(opened.convert("L" if opened.mode in ("1", "L") else "RGB"))
    (pixels,), said = read(content)
    np.testing.assert_array_equal(pixels, expected.reshape(pixels.shape))
    assert said == ([f"converted from {mode}"] if opened.mode in ("CMYK", "YCbCr") else [])


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["1", "L", "P", "RGB"]),
    st.integers(1, 9),
    st.integers(1, 9),
    st.integers(0, 2**32 - 1),
    st.sampled_from(["PNG", "TIFF", "BMP", "GIF", "JPEG", "WEBP"]),
)
def test_any_eight_bit_image_in_a_colour_set_is_pillows_rgb(mode, height, width, seed, kind):
    array = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    content = encoded(image(array, "L" if (mode, kind) == ("P", "JPEG") else mode), kind)  # JPEG has no palettes
    (pixels, _), _ = read(content, encoded(image(COLOUR)))
    np.testing.assert_array_equal(pixels, np.asarray(Image.open(io.BytesIO(content)).convert("RGB")))


@pytest.mark.parametrize(
    "kind, array, largest",
    [
        ("PNG", deep(65535, np.uint16), 65535),
        ("TIFF", deep(65535, np.uint16), 65535),
        ("PNG", deep(20000, np.uint16), 65535),
        ("PNG", deep(16383, np.uint16), 16383),
        ("PNG", deep(4095, np.uint16), 4095),
        ("TIFF", deep(4000, np.int32), 4095),
        ("PNG", deep(1000, np.uint16), 1023),
        ("PNG", deep(255, np.uint16), 255),
        ("TIFF", deep(65535, np.int32), 65535),
        ("TIFF", deep(1, np.float32), 1),
        ("TIFF", deep(255, np.float32), 255),
        ("TIFF", deep(0.3, np.float32), 1),
        ("TIFF", deep(2, np.float32), 255),
    ],
)
def test_deep_images_are_scaled_by_the_range_of_the_set(kind, array, largest):
    (pixels, brightest), said = read(encoded(image(array), kind), encoded(image(GREY)))
    np.testing.assert_array_equal(pixels[:, :, 0], np.rint(array.astype(np.float64) * (255 / largest)))
    np.testing.assert_array_equal(brightest[:, :, 0], GREY)  # eight bits stay what they are
    assert len(said) == 1 and said[0].startswith("1 of 2 images converted from ") and f"0..{largest}" in said[0]


def test_all_deep_images_of_a_set_are_scaled_alike():
    dark, bright = deep(900, np.uint16), deep(60000, np.uint16)
    (pixels, _), _ = read(encoded(image(dark)), encoded(image(bright)))
    assert pixels.max() == 4  # not 225, as it would be by itself


@pytest.mark.parametrize("colour_type, channels", [(2, 3), (4, 2), (6, 4)])
def test_of_sixteen_bits_a_channel_the_upper_eight_are_read(colour_type, channels):
    samples = RANDOM.integers(0, 65536, (4, 6 * channels))
    if channels in (2, 4):
        samples.reshape(4, 6, channels)[..., -1] = 65535
    (pixels,), said = read(png(16, colour_type, samples))
    colours = samples.reshape(4, 6, channels)[..., : channels - (channels in (2, 4))] >> 8
    np.testing.assert_array_equal(pixels, np.broadcast_to(colours, pixels.shape))
    assert "the upper 8 were read" in said[0]


def palette_with_transparency():
    paletted = image(COLOUR, "P")
    content = encoded(paletted, transparency=paletted.getpixel((2, 1)))
    expected = np.asarray(paletted.convert("RGB")).copy()
    expected[np.asarray(paletted) == paletted.getpixel((2, 1))] = WHITE
    return content, expected


def black_drawing():
    alpha = np.zeros((5, 7), dtype=np.uint8)
    alpha[2, 1:4] = 255
    content = encoded(Image.fromarray(np.dstack([np.zeros((5, 7, 3), dtype=np.uint8), alpha])))
    return content, np.where(alpha[..., None] == 255, 0, WHITE).repeat(3, axis=2)


def half_grey():
    content = encoded(Image.fromarray(np.dstack([GREY, np.full_like(GREY, 51)]), "LA"))
    return content, np.rint((GREY[..., None] * 51.0 + 255 * 204) / 255)


@pytest.mark.parametrize("make", [palette_with_transparency, black_drawing, half_grey])
def test_transparent_images_are_laid_on_white(make):
    content, expected = make()
    (pixels,), said = read(content)
    assert np.abs(pixels.astype(int) - expected).max() <= 1
    assert said == ["laid on white, being partly transparent"]


def test_opaque_images_with_an_alpha_channel_are_as_without():
    (colour,), said = read(encoded(with_alpha(COLOUR, 255)))
    np.testing.assert_array_equal(colour, COLOUR)
    (grey,), said_too = read(encoded(with_alpha(GREY, 255)))
    np.testing.assert_array_equal(grey[:, :, 0], GREY)
    assert grey.shape[2] == 1 and said == said_too == []


def test_one_colour_image_makes_all_of_them_colour():
    (first, second), said = read(encoded(image(GREY)), encoded(image(COLOUR)))
    np.testing.assert_array_equal(first, GREY[..., None].repeat(3, axis=2))
    np.testing.assert_array_equal(second, COLOUR)
    assert said == ["1 of 2 images converted from grey to colour, like the others"]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_as_the_camera_was_held(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(image(COLOUR), kind, exif=exif)
    (plain,), _ = read(encoded(image(COLOUR), kind))
    turned = [
        *(plain, plain[:, ::-1], plain[::-1, ::-1], plain[::-1]),
        *(plain.swapaxes(0, 1), np.rot90(plain, -1), np.rot90(plain, 2).swapaxes(0, 1), np.rot90(plain)),
    ]
    (pixels,), said = read(content)
    np.testing.assert_array_equal(pixels, turned[orientation - 1])
    assert said == (["turned as their EXIF data says"] if orientation > 1 else [])


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (2, 3)])
def test_images_of_any_size_are_scaled(size):
    (pixels,), _ = read(encoded(Image.new("RGB", size, (9, 8, 7))), image_size=4)
    assert pixels.shape == (4, 4, 3) and (pixels == (9, 8, 7)).all()


def frames(kind):
    return encoded(image(GREY), kind, save_all=True, append_images=[image(255 - GREY), image(GREY ^ 90)])


def test_what_a_camera_adds_to_its_photograph_is_passed_over():
    (pixels,), _ = read(frames("MPO"))
    assert np.abs(pixels[:, :, 0].astype(int) - GREY).mean() < 20


def test_a_smaller_copy_in_the_same_file_is_passed_over():
    smaller = image(GREY[::2, ::2])
    smaller.encoderinfo = {"tiffinfo": {254: 1}}
    (pixels,), _ = read(encoded(image(GREY), "TIFF", save_all=True, append_images=[smaller]))
    np.testing.assert_array_equal(pixels[:, :, 0], GREY)


def not_finite():
    array = deep(1, np.float32)
    array[2, 2] = np.nan
    return array


PNG_FILE = encoded(image(COLOUR))
REFUSED = {
    "negative": (encoded(image(deep(9, np.int32) - 5), "TIFF"), r"whole numbers from -5 to 4"),
    "beyond 16 bits": (encoded(image(deep(70000, np.int32)), "TIFF"), r"from 0 to 70000, where 0\.\.65535"),
    "floats below 0": (encoded(image(deep(1, np.float32) - 0.5), "TIFF"), r"floating-point numbers from -0\.5 to 0\.5"),
    "floats beyond 255": (encoded(image(deep(1000, np.float32)), "TIFF"), r"from 0 to 1000, where 0\.\.1 or 0\.\.255"),
    "not a number": (encoded(image(not_finite()), "TIFF"), r"floating-point numbers from nan"),
    "12 bits a channel": (png(16, 2, RANDOM.integers(0, 4096, (4, 9))), r"more than the lower 12"),
    "animated GIF": (frames("GIF"), r"holds 3 images"),
    "animated PNG": (frames("PNG"), r"holds 3 images"),
    "animated WebP": (frames("WEBP"), r"holds 3 images"),
    "TIFF of pages": (frames("TIFF"), r"holds 3 images"),
    "white on transparency": (
        encoded(with_alpha(np.full((5, 7, 3), WHITE, dtype=np.uint8), 60)),
        r"white on transparency",
    ),
    "nothing to see": (encoded(with_alpha(COLOUR, 0)), r"transparent all over"),
    "empty": (b"", r"no readable image \(its content is of no format that is known\)"),
    "text": (b"hello", r"no readable image"),
    "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", r"no readable image"),
    "cut PNG": (PNG_FILE[:-30], r"no readable image"),
    "PNG without its end": (PNG_FILE[:-12], r"no readable image"),
    "changed PNG": (PNG_FILE[:60] + bytes([PNG_FILE[60] ^ 4]) + PNG_FILE[61:], r"no readable image"),
    "cut JPEG": (encoded(image(COLOUR.repeat(9, 0)), "JPEG")[:-200], r"no readable image"),
    "cut TIFF": (encoded(image(COLOUR), "TIFF")[:-60], r"no readable image"),
    "cut BMP": (encoded(image(COLOUR), "BMP")[:-20], r"no readable image"),
}


@pytest.mark.parametrize("content, message", REFUSED.values(), ids=REFUSED.keys())
def test_what_is_not_clear_is_refused_by_name(content, message):
    with pytest.raises(UserError, match=rf"^image 0 .*{message}"):
        read(content)


def test_floats_that_do_not_agree_are_refused():
    with pytest.raises(UserError, match=r"image 0 holds .* up to 0\.9, image 1 up to 200; scale all"):
        read(encoded(image(deep(0.9, np.float32)), "TIFF"), encoded(image(deep(200, np.float32)), "TIFF"))


def test_a_decompression_bomb_is_refused_before_it_goes_off(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 30)
    for size, count in (((7, 5), "35"), ((900, 900), "810,000")):
        with pytest.raises(UserError, match=rf"image 0 has {count} pixels, more than"):
            read(encoded(Image.new("L", size)))
