"""From a picture's file to what is learnt from: one frame, upright, RGB of 8 bits, of sides that models can use.

Colour profiles are not applied, and 16 bits become 8 by their upper half: so do the libraries of the servers that the model
will be shown pictures by.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from toolkit.data.images.kinds import BEGINNING, other_kind
from toolkit.data.images.refused import Refused
from toolkit.errors import UsageError

if TYPE_CHECKING:
    from PIL.Image import Image

LONGEST_SIDE = 2048
"""Pixels; larger pictures are reduced. Servers show a Qwen-VL at most 4,096 tokens of 28² pixels, 1,792² in all."""
SHORTEST_SIDE = 8
SLIMMEST = 100
"""Times that a side may be as long as the other."""
MOST_PIXELS = 100_000_000
"""Of a file; decoded it takes four bytes each."""

EMPTY = "a picture's file that is empty"
OTHER_KIND = "a picture's file of a kind that is not read"
NOT_A_PICTURE = "a file that is no picture"
TRUNCATED = "a picture that is cut off or damaged"
SEVERAL = "an animated picture, or one of several pages"
HUGE = f"a picture of more than {MOST_PIXELS // 10**6} million pixels"
SMALL = f"a picture with a side under {SHORTEST_SIDE} pixels, or {SLIMMEST} times as long as the other"
NO_COLOURS = "a picture of measurements, not of colours"

TURNED = "pictures turned upright, as their EXIF says"
ON_WHITE = "pictures with transparent parts laid on white"
EIGHT_BITS = "pictures of 16 bits a colour reduced to 8"
FROM_CMYK = "pictures of printing colours (CMYK) made RGB"
REDUCED = f"pictures reduced to {LONGEST_SIDE:,} pixels on the longer side"

_READ = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "DIB", "TIFF")
_MPO = "MPO"
"""What Pillow calls JPEG files of telephones: a photo, and behind it a preview or a depth map."""
_ORIENTATION = 0x0112
_LYING = (5, 6, 7, 8)
"""Orientations that exchange width and height."""


class Upright(NamedTuple):
    """A picture that can be learnt from."""

    image: Image
    """RGB."""
    repairs: tuple[str, ...]
    """What was done to it, in words that are counted."""


def upright(raw: bytes) -> Upright:
    """A picture's file as it is learnt from.

    Raises:
        Refused: it is no picture, is damaged, animated, too large or too small, or of a kind that is not read.
        UsageError: Pillow is not installed.
    """
    with _opened(io.BytesIO(raw)) as image:
        sixteen = _has_sixteen_bits(image, raw)
        large = max(image.size) > LONGEST_SIDE
        image.draft("RGB", (LONGEST_SIDE, LONGEST_SIDE))  # a large JPEG is decoded at half its size, or a quarter
        image.load()
        return _made(image, sixteen, large)


def size_upright(stream: IO[bytes]) -> tuple[int, int]:
    """Width and height of what `upright` makes of a file, told from its header alone: to the pixel, but that a side of a picture
    that is reduced may be off by one.

    Args:
        stream: at its beginning; see `toolkit.data.images.sources.opened`.

    Raises:
        as `upright`, as far as the header shows it.
    """
    with _opened(stream) as image:
        size = image.size[::-1] if _turn_of(image) in _LYING else image.size
        shrink = min(1.0, LONGEST_SIDE / max(size))
        return max(1, round(size[0] * shrink)), max(1, round(size[1] * shrink))


@contextlib.contextmanager
def _opened(stream: IO[bytes]) -> Iterator[Image]:
    """A picture whose header is read and checked; what goes wrong with it raises Refused."""
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise UsageError("pictures need Pillow, which is not installed", "Install it: pip install pillow") from error
    head = stream.read(BEGINNING)
    stream.seek(0)
    if not head:
        raise Refused(EMPTY)
    if kind := other_kind(head):
        raise Refused(f"{OTHER_KIND}: {kind}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's of large pictures and odd tags; `_check` has a limit of its own
        try:
            Image.init()  # `open` looks at kinds that it was told of only where they are known already
            with Image.open(stream, formats=_READ) as image:
                _check(image)
                yield image
        except UnidentifiedImageError as error:
            raise Refused(NOT_A_PICTURE) from error
        except Image.DecompressionBombError as error:
            raise Refused(HUGE) from error
        except (Refused, MemoryError):
            raise
        except Exception as error:  # decoders raise a dozen kinds at damaged files
            raise Refused(TRUNCATED, " ".join(str(error).split())[:100]) from error


def _check(image: Image) -> None:
    width, height = image.size
    if width * height > MOST_PIXELS:
        raise Refused(HUGE, f"{width:,} × {height:,}")
    if min(width, height) < SHORTEST_SIDE or max(width, height) > SLIMMEST * min(width, height):
        raise Refused(SMALL, f"{width:,} × {height:,}")
    if image.format != _MPO and getattr(image, "n_frames", 1) > 1:
        raise Refused(SEVERAL, f"{getattr(image, 'n_frames', 1)} frames")
    if image.mode in ("I", "F"):
        raise Refused(NO_COLOURS, f"32 bits a pixel ({image.mode})")


def _has_sixteen_bits(image: Image, raw: bytes) -> bool:
    return image.mode.startswith("I;16") or (image.format == "PNG" and raw[24:25] == b"\x10")


def _made(image: Image, sixteen: bool, large: bool) -> Upright:
    from PIL import Image as Images
    from PIL import ImageOps

    repairs = [EIGHT_BITS] if sixteen else []
    if _turn_of(image) not in (0, 1):
        image = ImageOps.exif_transpose(image)
        repairs.append(TURNED)
    if image.mode.startswith("I;16"):
        import numpy

        image = Images.fromarray((numpy.asarray(image) >> 8).astype(numpy.uint8))
    if image.mode == "CMYK":
        repairs.append(FROM_CMYK)
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        if layer.getchannel("A").getextrema()[0] != 255:
            repairs.append(ON_WHITE)
        image = Images.alpha_composite(Images.new("RGBA", layer.size, "white"), layer)
    image = image.convert("RGB")
    if large:
        image.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Images.Resampling.LANCZOS)
        repairs.append(REDUCED)
    image.info.clear()  # a profile would be written with it
    return Upright(image, tuple(repairs))


def _turn_of(image: Any) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # damaged EXIF says nothing
        return 1
