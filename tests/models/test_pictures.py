"""What a server shows a model of a picture: against libmtmd, transformers' processor, and pictures of every awkward size."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.ollama.seeing import seeing_ggufs
from toolkit.errors import DataError, UsageError
from toolkit.models.pictures import (
    OLLAMA_MIN_TOKENS,
    PictureRules,
    as_served,
    in_served_order,
    pixels_of,
    read_rules,
    rules_of,
)

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
QWEN = PictureRules(
    kind="dynamic", patch=28, min_tokens=1024, max_tokens=4096, mean=CLIP_MEAN, std=CLIP_STD, image_token="<|image_pad|>",
    image_token_id=151_655,
)  # fmt: skip
PLAIN = QWEN.model_copy(update={"min_tokens": 8})
"""As llama.cpp's own server, whom nobody asks for more tokens."""


def drawn(width: int, height: int, seed: int = 1) -> Image.Image:
    """A picture with edges, slopes and noise, so that another resampling shows everywhere."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    planes = [(x * 255 // max(width - 1, 1)), (y * 255 // max(height - 1, 1)), ((x // 7 + y // 5) % 2) * 255]
    noisy = np.stack(planes, axis=-1) + random.integers(-20, 21, (height, width, 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


class Seer:
    """libmtmd on the small model, asked for what its tower makes of pixels."""

    def __init__(self, rules: PictureRules) -> None:
        from llama_cpp import llama_cpp, mtmd_cpp

        model, mmproj = seeing_ggufs()
        self._lib = mtmd_cpp
        parameters = llama_cpp.llama_model_default_params()
        parameters.n_gpu_layers = 0
        self._model = llama_cpp.llama_model_load_from_file(str(model).encode(), parameters)
        told = mtmd_cpp.mtmd_context_params_default()
        told.use_gpu = told.print_timings = told.warmup = False
        told.n_threads, told.flash_attn_type = 1, 0
        told.image_min_tokens, told.image_max_tokens = rules.min_tokens, rules.max_tokens
        self._context = mtmd_cpp.mtmd_init_from_file(str(mmproj).encode(), self._model, told)
        self._width = llama_cpp.llama_model_n_embd_inp(self._model)
        assert self._context

    def __call__(self, image: Image.Image) -> Any:
        """[tokens, width] of the tower and the projector."""
        lib = self._lib
        data = np.ascontiguousarray(np.asarray(image, dtype=np.uint8))
        pointer = data.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        bitmaps = (ctypes.c_void_p * 1)(lib.mtmd_bitmap_init(image.width, image.height, pointer))
        marker = lib.mtmd_default_marker()
        chunks = lib.mtmd_input_chunks_init()
        given = lib.mtmd_input_text(marker, len(marker), False, True)
        assert lib.mtmd_tokenize(self._context, chunks, ctypes.byref(given), bitmaps, 1) == 0
        found = [lib.mtmd_input_chunks_get(chunks, at) for at in range(lib.mtmd_input_chunks_size(chunks))]
        [chunk] = [c for c in found if lib.mtmd_input_chunk_get_type(c) == lib.MTMD_INPUT_CHUNK_TYPE_IMAGE]
        assert lib.mtmd_encode_chunk(self._context, chunk) == 0
        tokens = int(lib.mtmd_input_chunk_get_n_tokens(chunk))
        out = np.ctypeslib.as_array(lib.mtmd_get_output_embd(self._context), shape=(tokens, self._width)).copy()
        lib.mtmd_input_chunks_free(chunks)
        lib.mtmd_bitmap_free(bitmaps[0])
        return out

    def close(self) -> None:
        from llama_cpp import llama_cpp

        self._lib.mtmd_free(self._context)
        llama_cpp.llama_model_free(self._model)


@pytest.fixture(scope="module")
def plain() -> Iterator[Seer]:
    seer = Seer(PLAIN)
    yield seer
    seer.close()


def same_to_libmtmd(image: Image.Image, rules: PictureRules, seer: Seer) -> bool:
    """Bit by bit: a pixel that differs by one step moves the tower's output."""
    of_image, of_shown = seer(image), seer(as_served(image, rules))
    assert len(of_image) == rules.tokens(*image.size) == len(of_shown)
    return np.array_equal(of_image, of_shown)


@pytest.mark.parametrize(
    ("width", "height"),
    [(280, 140), (294, 294), (14, 14), (300, 200), (201, 333), (1000, 31), (29, 900), (1, 1)],
    ids=["multiples", "half steps", "half a patch", "odd", "portrait", "wide", "tall", "a pixel"],
)
def test_libmtmd_sees_the_same_in_a_picture_and_in_what_is_shown_of_it(plain: Seer, width: int, height: int) -> None:
    assert same_to_libmtmd(drawn(width, height), PLAIN, plain)


@pytest.mark.parametrize("size", [(2600, 1900), (310, 1703)], ids=["large", "large and tall"])
def test_it_does_where_the_picture_is_too_large(size: tuple[int, int]) -> None:
    rules = PLAIN.model_copy(update={"max_tokens": 64})
    seer = Seer(rules)
    assert same_to_libmtmd(drawn(*size), rules, seer)
    seer.close()


def test_it_does_with_as_many_tokens_as_ollama_asks_for() -> None:
    seer = Seer(QWEN)
    assert same_to_libmtmd(drawn(300, 200), QWEN, seer)
    seer.close()


def test_a_pixel_that_differs_by_one_step_would_show(plain: Seer) -> None:
    shown = as_served(drawn(300, 200), PLAIN)
    other = shown.copy()
    red, green, blue = other.getpixel((50, 50))  # type: ignore[misc]
    other.putpixel((50, 50), (red, green, (int(blue) + 1) % 256))
    assert not np.array_equal(plain(shown), plain(other))


@pytest.mark.parametrize("size", [(224, 140), (640, 480), (33, 900), (3000, 2000), (1, 1), (1120, 1120)])
def test_pixel_values_are_those_of_the_processor_which_resizes_nothing(size: tuple[int, int]) -> None:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    # With its own resizing on: it leaves alone what is of the server's size.
    limits = {"shortest_edge": 56 * 56, "longest_edge": 4096 * 28 * 28}
    processor = Qwen2VLImageProcessorPil(size=limits, image_mean=list(CLIP_MEAN), image_std=list(CLIP_STD))
    image = drawn(*size)
    values, grid = pixels_of(image, QWEN)
    theirs = processor(images=[as_served(image, QWEN)], return_tensors="np")
    assert grid == tuple(theirs["image_grid_thw"][0])
    assert values.dtype == np.float32 and np.abs(values - theirs["pixel_values"]).max() <= 1e-6


def test_pictures_are_letterboxed_with_black_in_the_middle() -> None:
    white = Image.new("RGB", (300, 100), (255, 255, 255))
    shown = np.asarray(as_served(white, PLAIN))
    assert shown.shape == (112, 308, 3)
    bright = (shown == 255).all(axis=-1)
    rows, columns = bright.any(axis=1), bright.any(axis=0)
    assert columns.all() and rows.sum() == 103  # 100 · 308 / 300, rounded up
    assert not rows[:4].any() and rows[4] and not shown[~bright].any()


def test_sizes_are_as_measured_of_ollama() -> None:
    assert QWEN.tokens(224, 140) == 1066
    assert PLAIN.size(14, 42) == (56, 140)
    for width, height in [(1, 1), (50, 4000), (9000, 7000), (896, 896)]:
        assert QWEN.size(*QWEN.size(width, height)) == QWEN.size(width, height)


def test_the_order_of_parts_is_that_of_the_server() -> None:
    picture = {"type": "image", "image": "images/a.png"}
    parts = [picture, {"type": "text", "text": "What "}, picture, {"type": "text", "text": "is it?"}]
    assert in_served_order(parts, QWEN) == [{"type": "text", "text": "What is it?"}, picture, picture]
    assert in_served_order([picture], QWEN) == [picture]
    assert in_served_order([{"type": "text", "text": "Hello"}], QWEN) == [{"type": "text", "text": "Hello"}]


def test_a_picture_that_is_not_rgb_is_refused() -> None:
    with pytest.raises(ValueError, match="mode L"):
        as_served(Image.new("L", (30, 30)), QWEN)


def put_base(folder: Path, config: dict[str, Any], processor: dict[str, Any] | None) -> Path:
    from tests.small_models import put_tokenizer

    put_tokenizer(folder, "qwen2")
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    if processor is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(processor), encoding="utf-8")
    return folder


PROCESSOR = {
    "image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.5, 0.5], "patch_size": 16, "merge_size": 2, "temporal_patch_size": 2,
    "min_pixels": 4, "max_pixels": 9,
}  # fmt: skip


def test_the_rules_are_the_servers_with_the_bases_own_grid_and_normalisation(tmp_path: Path) -> None:
    config = {"model_type": "qwen3_vl", "vision_config": {}, "image_token_id": 151_644}
    rules = rules_of(put_base(tmp_path, config, PROCESSOR))
    assert rules is not None
    assert (rules.kind, rules.patch, rules.min_tokens, rules.max_tokens) == ("dynamic", 32, OLLAMA_MIN_TOKENS, 4096)
    assert rules.std == (0.25, 0.5, 0.5) and rules.image_token == "<|im_start|>"
    rules.write(tmp_path)
    assert read_rules(tmp_path) == rules and read_rules(tmp_path / "elsewhere") is None


def test_gemma_3_shows_every_picture_in_one_square(tmp_path: Path) -> None:
    config = {
        "model_type": "gemma3", "vision_config": {"image_size": 896, "patch_size": 14}, "mm_tokens_per_image": 256,
        "image_token_index": 151_644,
    }  # fmt: skip
    rules = rules_of(put_base(tmp_path, config, PROCESSOR))
    assert rules is not None and rules.kind == "fixed" and rules.merge == 4 and rules.patch == 56
    values, grid = pixels_of(drawn(300, 200), rules)
    assert values.shape == (3, 896, 896) and grid == (1, 16, 16) and rules.tokens(300, 200) == 256


def test_what_is_no_such_base_is_said(tmp_path: Path) -> None:
    assert rules_of(put_base(tmp_path / "text", {"model_type": "qwen2"}, None)) is None
    with pytest.raises(UsageError, match="pictures of a idefics3 model"):
        rules_of(put_base(tmp_path / "other", {"model_type": "idefics3", "vision_config": {}}, PROCESSOR))
    known = {"model_type": "qwen2_5_vl", "vision_config": {}, "image_token_id": 151_644}
    with pytest.raises(DataError, match=r"no preprocessor_config\.json"):
        rules_of(put_base(tmp_path / "bare", known, None))
    with pytest.raises(DataError, match="patch_size is missing"):
        rules_of(put_base(tmp_path / "half", known, {"image_mean": [0, 0, 0], "image_std": [1, 1, 1], "merge_size": 2}))
    with pytest.raises(DataError, match="has no token 999999"):
        rules_of(put_base(tmp_path / "mixed", {**known, "image_token_id": 999_999}, PROCESSOR))


def test_damaged_rules_are_named(tmp_path: Path) -> None:
    (tmp_path / "pictures.json").write_text("{}", encoding="utf-8")
    with pytest.raises(DataError, match=r"pictures\.json does not hold rules"):
        read_rules(tmp_path)
