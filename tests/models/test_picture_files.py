"""Pictures as people have them, from their file to what llama.cpp shows the vision part: every pixel, to the bit."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data.test_pictures import packed
from tests.models.test_pictures import PLAIN, drawn
from tests.ollama.seeing import seeing_ggufs
from toolkit.data.images import Album, Refused
from toolkit.data.images.checking import SMALL
from toolkit.models.pictures import open_picture, pixels_of
from toolkit.parity.candidate import Candidate
from toolkit.parity.seeing import Sight

RULES = PLAIN.model_copy(update={"max_tokens": 64})
"""Few tokens, so that large pictures are made smaller, and are soon encoded."""
_BLOCK = "\u2603"


@pytest.fixture(scope="module")
def sight() -> Iterator[Sight]:
    model, mmproj = seeing_ggufs()
    with Candidate(model) as candidate, candidate.sight(mmproj, RULES.min_tokens, RULES.max_tokens) as made:
        yield made


def steps(planes: np.ndarray) -> np.ndarray:
    """Normalised values [3, height, width] as the 8 bits that they were made of; asserts that they were made of such."""
    mean, std = (np.array(values, np.float64)[:, None, None] for values in (RULES.mean, RULES.std))
    exact = (planes.astype(np.float64) * std + mean) * 255
    found = exact.round()
    assert np.abs(exact - found).max() < 1e-3
    return found.astype(np.uint8)


def seen_by_llama_cpp(sight: Sight, raw: bytes) -> np.ndarray:
    with sight.read(_BLOCK, _BLOCK, [raw]) as prompt:
        (look,) = sight.looks(prompt)
        assert prompt.pictures == [look.values.shape[0]]
    return look.pixels


def seen_in_training(path: Path) -> np.ndarray:
    """Values [3, height, width], put together from the patches that a model is given."""
    values, (_, down, across) = pixels_of(open_picture(path), RULES)
    side, merge = RULES.patch // RULES.merge, RULES.merge
    parts = values.reshape(down // merge, across // merge, merge, merge, 3, RULES.frames, side, side)
    assert (parts[..., 0, :, :] == parts[..., -1, :, :]).all()
    planes = parts[..., 0, :, :].transpose(4, 0, 2, 5, 1, 3, 6)
    return planes.reshape(3, down * side, across * side)


def gray_with_alpha(size: tuple[int, int]) -> Image.Image:
    return Image.merge("LA", (drawn(*size).convert("L"), drawn(*size, seed=2).convert("L")))


def with_alpha(size: tuple[int, int], opaque: bool = False) -> Image.Image:
    image = drawn(*size).convert("RGBA")
    if not opaque:
        image.putalpha(drawn(*size, seed=3).convert("L"))
    return image


def sixteen_bits(size: tuple[int, int]) -> Image.Image:
    width, height = size
    return Image.fromarray(np.random.default_rng(5).integers(0, 2**16, (height, width), dtype=np.uint16))


def turned(size: tuple[int, int], orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return packed(drawn(*size), "PNG", exif=exif)


FILES: dict[str, Callable[[], bytes]] = {
    "RGB": lambda: packed(drawn(201, 133), "PNG"),
    "gray": lambda: packed(drawn(201, 133).convert("L"), "PNG"),
    "black and white": lambda: packed(drawn(201, 133).convert("1"), "PNG"),
    "gray with alpha": lambda: packed(gray_with_alpha((150, 90)), "PNG"),
    "RGBA": lambda: packed(with_alpha((150, 90)), "PNG"),
    "RGBA without transparent parts": lambda: packed(with_alpha((150, 90), opaque=True), "PNG"),
    "palette": lambda: packed(drawn(201, 133).quantize(40), "PNG"),
    "palette with a transparent colour": lambda: packed(drawn(201, 133).quantize(40), "PNG", transparency=3),
    "GIF": lambda: packed(drawn(201, 133).quantize(200), "GIF"),
    "16 bits": lambda: packed(sixteen_bits((120, 170)), "PNG"),
    "16 bits, TIFF": lambda: packed(sixteen_bits((120, 170)), "TIFF"),
    "CMYK": lambda: packed(drawn(201, 133).convert("CMYK"), "JPEG", quality=95),
    "CMYK, TIFF": lambda: packed(drawn(201, 133).convert("CMYK"), "TIFF"),
    "JPEG": lambda: packed(drawn(201, 133), "JPEG"),
    "WebP": lambda: packed(drawn(201, 133), "WEBP"),
    **{f"turned {n}": functools.partial(turned, (180, 97), n) for n in range(2, 9)},
    "8 pixels across": lambda: packed(drawn(8, 300), "PNG"),
    "8 × 8": lambda: packed(drawn(8, 8), "PNG"),
    "a hundred times as long": lambda: packed(drawn(900, 9), "PNG"),
    "very large": lambda: packed(drawn(4200, 2100), "PNG"),
    "very large and tall": lambda: packed(drawn(1203, 4801), "JPEG"),
    "of the grid": lambda: packed(drawn(280, 140), "PNG"),
    "half steps": lambda: packed(drawn(294, 154), "PNG"),
}  # fmt: skip


@pytest.mark.parametrize("kind", FILES)
def test_llama_cpp_is_shown_what_was_trained(kind: str, sight: Sight, tmp_path: Path) -> None:
    """The prepared file, as the goldens send it."""
    path = tmp_path / Album(tmp_path).add(FILES[kind]()).name
    trained, served = seen_in_training(path), seen_by_llama_cpp(sight, path.read_bytes())
    assert trained.shape == served.shape and np.abs(trained - served).max() <= 1e-6
    assert np.array_equal(steps(trained), steps(served))


@pytest.mark.parametrize(
    "kind",
    ["RGB", "gray", "black and white", "RGBA without transparent parts", "palette", "16 bits", "GIF", "of the grid"],
)  # fmt: skip
def test_a_users_own_file_shows_the_same_where_nothing_had_to_be_repaired(
    kind: str, sight: Sight, tmp_path: Path
) -> None:
    """As an app sends it, that prepares nothing: 16 bits are cut to 8 in the same way, by their upper half."""
    raw = FILES[kind]()
    path = tmp_path / Album(tmp_path).add(raw).name
    assert np.array_equal(steps(seen_in_training(path)), steps(seen_by_llama_cpp(sight, raw)))


@pytest.mark.parametrize("kind", ["turned 6", "RGBA", "gray with alpha", "palette with a transparent colour"])
def test_a_users_own_file_shows_something_else_where_docs_vision_says_so(
    kind: str, sight: Sight, tmp_path: Path
) -> None:
    """Servers follow no EXIF, and show the colour that lies under what is transparent."""
    raw = FILES[kind]()
    path = tmp_path / Album(tmp_path).add(raw).name
    trained, served = seen_in_training(path), seen_by_llama_cpp(sight, raw)
    assert trained.shape != served.shape or not np.array_equal(steps(trained), steps(served))


@pytest.mark.parametrize("size", [(1, 1), (5, 300), (300, 5), (7, 7)])
def test_what_is_too_small_is_not_learnt_from_and_would_still_be_shown_alike(
    size: tuple[int, int], sight: Sight, tmp_path: Path
) -> None:
    raw = packed(drawn(*size), "PNG")
    with pytest.raises(Refused) as raised:
        Album(tmp_path).add(raw)
    assert raised.value.reason == SMALL
    (path := tmp_path / "small.png").write_bytes(raw)
    assert np.array_equal(steps(seen_in_training(path)), steps(seen_by_llama_cpp(sight, raw)))
