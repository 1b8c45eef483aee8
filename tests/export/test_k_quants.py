"""Our rounding to K-quants gives ggml's bytes, whatever the weights; where it would not, ggml rounds."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from toolkit.export import ggml, k_quants
from toolkit.export.k_quants import KINDS, SUPER_BLOCK, Bytes, Floats, rounder
from toolkit.models.gguf_head import block_of
from toolkit.setup.bootstrap import compile_k_quants
from toolkit.setup.k_quants import library_path


@pytest.fixture
def tried_anew() -> Iterator[None]:
    """What was found of each type is forgotten, before and behind a test."""
    ggml._faster.cache_clear()
    yield
    ggml._faster.cache_clear()


def by_ggml(kind: str, values: Floats, importance: Floats | None = None) -> Bytes:
    out = np.empty((len(values), values.shape[1] // SUPER_BLOCK * block_of(kind)[1]), np.uint8)
    ggml._quantized(kind, np.ascontiguousarray(values), out, importance)
    return out


def stored(kind: str, values: Floats, importance: Floats | None = None) -> Bytes:
    return ggml.stored(values, kind, importance)


def random(*shape: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def weights() -> Iterator[tuple[str, Floats]]:
    """Rows of many kinds: of sound models, and such as nobody trained."""
    values = random(24, 1024) * np.float32(0.02)
    yield "normal", values
    yield "a row of one super-block", values[:1, :256]
    yield "an odd number of super-blocks", values[:3, :768]
    yield "positive", np.abs(values)
    yield "negative", -np.abs(values)
    yield "with an offset", values + np.float32(3)
    yield "far from zero", values - np.float32(1000)
    yield "sorted", np.sort(values, axis=1)
    yield "as float16", values.astype(np.float16).astype(np.float32)
    yield "less than float16 holds", values * np.float32(1e-9)
    yield "far less", values * np.float32(1e-36)
    yield "more than float16 holds", values * np.float32(1e30)
    yield "nothing", values * 0
    yield "nothing, of both signs", np.copysign(np.zeros_like(values), values)
    yield "all alike", np.full_like(values, -0.3)
    yield "few values", np.round(values * 100) / np.float32(4)
    yield "heavy tails", (values * np.exp(random(24, 1024, seed=1) * 4)).astype(np.float32)
    scarce = values.copy()
    scarce[random(24, 1024, seed=2) < 2] = 0
    yield "mostly zeros", scarce
    outliers = values.copy()
    outliers[:, ::97] *= 500
    yield "outliers", outliers
    uneven = values.reshape(-1, 16) * np.logspace(-7, 0, 24 * 64, dtype=np.float32)[:, None]
    yield "groups of all sizes", uneven.reshape(24, 1024)


def importances(length: int) -> Iterator[tuple[str, Floats]]:
    """What columns may be weighed with, of which an importance matrix has one for each."""
    drawn = np.exp(random(length, seed=3) * 3)
    yield "drawn", drawn
    yield "alike", np.ones(length, np.float32)
    yield "large", drawn * np.float32(1e12)
    yield "small", drawn * np.float32(1e-12)
    few = drawn.copy()
    few[random(length, seed=4) < 1.5] = 0
    yield "mostly none", few
    yield "none", np.zeros(length, np.float32)
    some = drawn.copy()
    some[length // 2 :] = 0
    yield "none of some groups", some


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("values", [pytest.param(values, id=name) for name, values in weights()])
def test_bytes_are_ggml_s(kind: str, values: Floats) -> None:
    assert rounder(kind, functools.partial(ggml._quantized, kind)) is not None, "set-up compiled it, and it agrees"
    np.testing.assert_array_equal(by_ggml(kind, values), stored(kind, values))
    for name, importance in importances(values.shape[1]):
        np.testing.assert_array_equal(by_ggml(kind, values, importance), stored(kind, values, importance), name)


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_of_many_random_rows_are_ggml_s(kind: str) -> None:
    for seed in range(8):
        values = random(64, 2048, seed=seed) * np.float32(10.0 ** (seed - 5))
        np.testing.assert_array_equal(by_ggml(kind, values), stored(kind, values))
        importance = random(2048, seed=seed + 100) ** 2
        np.testing.assert_array_equal(by_ggml(kind, values, importance), stored(kind, values, importance))


def test_importance_counts() -> None:
    values, importance = random(4, 512), np.abs(random(512))
    assert not np.array_equal(stored("Q4_K", values, importance), stored("Q4_K", values))
    # As it comes: not contiguous, in another type.
    wide = np.repeat(importance.astype(np.float64), 2)[::2]
    np.testing.assert_array_equal(stored("Q4_K", values, importance), stored("Q4_K", values, wide))


@pytest.mark.usefixtures("tried_anew")
@pytest.mark.parametrize("weighed_alone", [False, True])
def test_what_gives_other_bytes_is_not_used(monkeypatch: pytest.MonkeyPatch, weighed_alone: bool) -> None:
    def off_by_one(values: Floats, out: Bytes, importance: Floats | None) -> None:
        ggml._quantized("Q4_K", values, out, importance)
        out[-1, -1] ^= importance is not None or not weighed_alone

    monkeypatch.setattr(k_quants, "_ours", lambda _kind: off_by_one)
    assert rounder("Q4_K", functools.partial(ggml._quantized, "Q4_K")) is None
    values = random(4, 512)
    np.testing.assert_array_equal(by_ggml("Q4_K", values), stored("Q4_K", values))


@pytest.mark.usefixtures("tried_anew")
def test_without_the_library_ggml_rounds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(k_quants, "cache_home", lambda: tmp_path)
    assert rounder("Q4_K", functools.partial(ggml._quantized, "Q4_K")) is None
    assert rounder("Q8_0", functools.partial(ggml._quantized, "Q8_0")) is None
    values = random(4, 512)
    np.testing.assert_array_equal(by_ggml("Q4_K", values), stored("Q4_K", values))


def test_set_up_compiles_it_once_and_leaves_nothing_behind_when_it_cannot(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    compile_k_quants(tmp_path)
    monkeypatch.setenv("CC", "false")
    compile_k_quants(tmp_path)
    assert capsys.readouterr().err.count("going on with llama.cpp's own rounding") == 2
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    monkeypatch.delenv("CC")
    compile_k_quants(tmp_path)
    path = library_path(tmp_path)
    assert [*path.parent.iterdir()] == [path]
    changed = path.stat().st_mtime_ns
    compile_k_quants(tmp_path)
    assert path.stat().st_mtime_ns == changed
