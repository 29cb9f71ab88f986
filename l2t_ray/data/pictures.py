"""One encoded image: what it is like, and its pixels as 8 bits a channel.

A set is looked at as a whole before any image is decoded, for what one image needs depends on the others: one colour
image makes all of them colour, and deep ones (more than 8 bits) are scaled alike. What cannot be made 8 bits without a
guess is refused by its name.
"""

import contextlib
import io
import re
import stat
import warnings
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from l2t_ray.extras import needed_by
from l2t_ray.interfaces import UserError

with needed_by("a file of an image"):
    from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
    from PIL.ImageFile import ImageFile

FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
"""Of what Pillow reads: formats of still images that are recognised by their first bytes and need no other program."""
LARGEST_FILE = 1 << 30
"""Bytes. A file beyond that is no image of a training set."""
DEPTHS = (255, 1023, 4095, 16383, 65535)
"""Largest values of images with 8, 10, 12, 14 and 16 bits."""


class Picture(NamedTuple):
    """An encoded image, and where it comes from in words."""

    content: Path | bytes
    where: str


class Look(NamedTuple):
    """What of an image decides how the set is read. `low` and `high` are the values of those that are not 8 bit."""

    where: str
    is_colour: bool
    kind: Literal["8 bit", "integers", "floats", "upper 8 bits"]
    low: float = 0
    high: float = 0
    size: tuple[int, int] = (0, 0)
    """Height and width as stored."""


class Reading(NamedTuple):
    """How all images of a set are read: Pillow's mode, and the values that become 255."""

    mode: Literal["L", "RGB"]
    integers: int = 255
    floats: int = 255


def shown(path: Path) -> str:
    """The path on one line, whatever its name is made of."""
    text = str(path)
    return text if text.isprintable() else repr(text)[1:-1]


def look_at(picture: Picture) -> Look:
    """Reads the header; the pixels of deep images alone.

    Raises:
        UserError: if the image cannot be read, has several frames, or values that are not clear.
    """
    with _opened(picture) as image:
        if (frames := _num_frames(image)) > 1:
            raise UserError(f"{picture.where} holds {frames} images; save the one that is meant as a file of its own.")
        is_colour = image.mode not in ("1", "L", "LA", "La", "F") and not image.mode.startswith("I")
        size = (image.height, image.width)
        if image.mode.startswith("I") or image.mode == "F":
            return _look_at_values(picture, image)._replace(size=size)
        if any(";16" in str(tile.args) for tile in image.tile):  # Pillow drops the lower 8 bits of colours
            colours = np.asarray(image)[..., : 1 if image.mode in ("L", "LA") else 3]
            return Look(picture.where, is_colour, "upper 8 bits", high=float(colours.max()), size=size)
        return Look(picture.where, is_colour, "8 bit", size=size)


def agree(looks: Sequence[Look]) -> tuple[Reading, list[str]]:
    """How a set of such images is read, and a sentence for each thing that is converted.

    Raises:
        UserError: if they cannot be read alike.
    """
    notes, total = [], len(looks)
    colour = sum(look.is_colour for look in looks)
    if 0 < colour < total:
        notes.append(f"{total - colour} of {total} images converted from grey to colour, like the others")
    reading = Reading("RGB" if colour else "L")
    if deep := [look for look in looks if look.kind == "integers"]:
        highest = max(look.high for look in deep)
        reading = reading._replace(integers=next(depth for depth in DEPTHS if highest <= depth))
        notes.append(
            f"{len(deep)} of {total} images converted from 16 or 32 bit: 0..{reading.integers} "
            f"({reading.integers.bit_length()} bit; the largest value is {highest:.0f}) became 0..255"
        )
    if floats := [look for look in looks if look.kind == "floats"]:
        reading = reading._replace(floats=_unit(floats))
        notes.append(
            f"{len(floats)} of {total} images converted from floating-point numbers: 0..{reading.floats} (the largest "
            f"is {max(look.high for look in floats):.6g}) became 0..255"
        )
    if halved := [look for look in looks if look.kind == "upper 8 bits"]:
        if max(look.high for look in halved) < 16:
            raise UserError(
                f"{halved[0].where} has 16 bits a channel, but no image of the set uses more than the lower 12, of "
                "which 4 would be left; scale the values and save them with 8 bits a channel."
            )
        notes.append(f"{len(halved)} of {total} images converted from 16 bit a channel: the upper 8 were read")
    return reading, notes


def pixels_of(
    picture: Picture, reading: Reading, image_size: int | None
) -> tuple[UInt8[np.ndarray, "c h w"], frozenset[str]]:
    """The pixels, and what was done to get at them, in words that follow "n images".

    Args:
        picture: one that `look_at` was content with.
        reading: from `agree`.
        image_size: scale to cover a square of this size, by averaging, and crop the middle; None: as it is.

    Raises:
        UserError: if the image cannot be read, or nothing can be seen on it for its transparency.
    """
    with _opened(picture, verify=True) as image:
        upright, is_turned = _upright(image)
        flat, is_laid_on_white = _laid_on_white(upright, picture.where)
        done = {"laid on white, being partly transparent"} if is_laid_on_white else set()
        if is_turned:
            done.add("turned as their EXIF data says")
        if flat.mode.startswith("I") or flat.mode == "F":
            largest = reading.floats if flat.mode == "F" else reading.integers
            flat = Image.fromarray(np.rint(_values(flat) * (255 / largest)).clip(0, 255).astype(np.uint8))
        elif flat.mode not in ("1", "L", "P", "LA", "PA", "RGB", "RGBA", "RGBX"):
            done.add(f"converted from {flat.mode}")
        eight_bit = flat.convert(reading.mode)
        if image_size is not None:
            eight_bit = ImageOps.fit(eight_bit, (image_size, image_size), Image.Resampling.BOX)
        array = np.asarray(eight_bit).reshape(eight_bit.height, eight_bit.width, -1).transpose(2, 0, 1)
    return array, frozenset(done)


class Stored(NamedTuple):
    """What a file holds, with nothing converted: numbers `[h, w]`, or colours uint8 `[h, w, 3]`; and where the numbers
    stand for colours, those, uint8 `[k, 3]`."""

    values: np.ndarray
    palette: UInt8[np.ndarray, "k 3"] | None


def stored_values(picture: Picture) -> Stored:
    """The numbers or colours that an image is made of, for those in which each means something.

    Raises:
        UserError: if the image cannot be read, or is of a kind that does not keep numbers as they are.
    """
    with _opened(picture, verify=True) as image:
        if image.format in ("JPEG", "MPO", "WEBP", "AVIF", "JPEG2000"):
            raise UserError(f"{picture.where} is {image.format}, which changes numbers to save room; save it as PNG.")
        if (frames := _num_frames(image)) > 1:
            raise UserError(f"{picture.where} holds {frames} images; save the one that is meant as a file of its own.")
        if image.mode == "P":
            palette = np.array(image.getpalette("RGB"), dtype=np.uint8).reshape(-1, 3)
            return Stored(np.asarray(image), palette)
        if image.mode in ("RGBA", "LA", "PA") and np.asarray(image.getchannel("A")).min() < 255:
            raise UserError(f"{picture.where} is transparent in parts; save it without transparency.")
        if image.mode in ("1", "L", "LA"):
            return Stored(np.asarray(image.convert("L") if image.mode == "LA" else image).astype(np.uint8), None)
        if image.mode.startswith("I"):
            return Stored(np.asarray(image).astype(np.int64), None)
        if image.mode in ("RGB", "RGBA", "RGBX"):
            return Stored(np.asarray(image.convert("RGB")), None)
        raise UserError(f"{picture.where} is of mode {image.mode}; save it as PNG with a number or a colour a pixel.")


def is_readable(picture: Picture) -> bool:
    """Whether the first bytes are those of an image."""
    try:
        with _opened(picture):
            return True
    except UserError:
        return False


@contextlib.contextmanager
def _opened(picture: Picture, *, verify: bool = False) -> Iterator[ImageFile]:
    """The image, before its pixels are read. What goes wrong in the block is said of `picture.where`.

    With `verify` the checksums of a PNG are compared, which Pillow does not do of itself.
    """
    try:
        content = picture.content if isinstance(picture.content, bytes) else _read(picture.content)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on metadata that nobody needs here
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            if verify and content.startswith(b"\x89PNG"):
                Image.open(io.BytesIO(content), formats=("PNG",)).verify()
            # From memory: Pillow maps some files, and one that is cut short meanwhile would end the process.
            with Image.open(io.BytesIO(content), formats=_formats()) as image:
                yield image
    except UserError:
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        pixels = re.search(r"\d+", str(error))
        raise UserError(
            f"{picture.where} has {int(pixels[0]) if pixels else 0:,} pixels, more than an image of a training set can "
            "have; scale it down or take it out."
        ) from None
    except Exception as error:  # A damaged file can raise nearly anything.
        raise UserError(f"{picture.where} is no readable image ({_reason(error)}); mend it or take it out.") from error


@cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _read(path: Path) -> bytes:
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise OSError("it is no regular file")
    if status.st_size > LARGEST_FILE:
        raise OSError(f"it has {status.st_size:,} bytes")
    return path.read_bytes()


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "its content is of no format that is known"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__


def _num_frames(image: Image.Image) -> int:
    """Frames of an animation or pages; neither smaller copies of the same page nor what a camera adds count."""
    if image.format == "MPO" or not getattr(image, "is_animated", False):
        return 1
    frames = getattr(image, "n_frames", 1)
    if image.format == "TIFF":
        frames = sum(not _is_reduced(image, page) for page in range(frames))
        image.seek(0)
    return frames


def _is_reduced(image: Image.Image, page: int) -> bool:
    image.seek(page)
    kind = image.tag_v2.get(_NEW_SUBFILE_TYPE, 0)  # pyright: ignore[reportAttributeAccessIssue]
    return bool(kind & 0b101)  # a smaller copy, or a mask


_NEW_SUBFILE_TYPE = 254


def _look_at_values(picture: Picture, image: Image.Image) -> Look:
    values = _values(image)
    low, high = float(values.min()), float(values.max())
    is_float = image.mode == "F"
    allowed = 255 if is_float else DEPTHS[-1]
    if not (low >= 0 and high <= allowed):  # nor any NaN
        kind = "floating-point numbers" if is_float else "whole numbers"
        ranges = "0..1 or 0..255" if is_float else "0..65535"
        raise UserError(
            f"{picture.where} holds {kind} from {low:.6g} to {high:.6g}, where {ranges} are understood; scale them and "
            "save them with 8 bits."
        )
    return Look(picture.where, False, "floats" if is_float else "integers", low, high)


def _values(image: Image.Image) -> Float[np.ndarray, "h w"]:
    return np.asarray(image).astype(np.float64)


def _unit(floats: Sequence[Look]) -> int:
    """1 or 255, whichever the images agree on."""
    small = next((look for look in floats if 0 < look.high <= 1), None)
    large = next((look for look in floats if look.high > 1), None)
    if small and large:
        raise UserError(
            f"{small.where} holds floating-point numbers up to {small.high:.6g}, {large.where} up to "
            f"{large.high:.6g}; scale all of them to 0..1, or all to 0..255."
        )
    return 255 if large else 1


def _upright(image: Image.Image) -> tuple[Image.Image, bool]:
    """The image as its camera was held, and whether it was turned for that."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # What cannot be read of EXIF says nothing of the pixels.
        orientation = 1
    is_turned = orientation in range(2, 9)
    return (ImageOps.exif_transpose(image) if is_turned else image), is_turned


def _laid_on_white(image: Image.Image, where: str) -> tuple[Image.Image, bool]:
    """The image without transparency, and whether it had any."""
    if not image.has_transparency_data:
        return image, False
    if image.mode.startswith("I") or image.mode == "F":
        raise UserError(f"{where} has a transparent value among more than 256; save it without.")
    with_alpha = image.convert("RGBA")
    alpha = np.asarray(with_alpha.getchannel("A"))
    if alpha.min() == 255:
        return image, False
    if alpha.max() == 0:
        raise UserError(f"{where} is transparent all over; mend it or take it out.")
    white = Image.new("RGBA", image.size, "white")
    flat = Image.alpha_composite(white, with_alpha).convert("RGB")
    if np.asarray(flat).min() == 255:
        raise UserError(f"{where} is white on transparency, of which nothing is seen on white; give it a background.")
    return flat, True
