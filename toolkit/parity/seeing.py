"""How llama.cpp sees: a projector on an open model, a prompt with pictures as tokens, and what the model makes of it.

Through libmtmd, as llama.cpp's own server does it: it decodes the picture's file, resizes it, encodes it, and puts the
encoding between the tokens of the text, with positions of its own (M-RoPE: a picture takes as many positions as its longer
side has patches, fewer than it takes tokens).
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import secrets
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
from llama_cpp import llama_cpp, mtmd_cpp

from toolkit.errors import DataError, ExternalToolError
from toolkit.parity.encodings import Encodings, Values
from toolkit.parity.shown import Pixels, Shown

_WITHOUT_FLASH, _IF_IT_CAN = 0, -1  # LLAMA_FLASH_ATTN_TYPE_DISABLED, _AUTO

_log: list[str] = []


@llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
def _collect(level: int, text: bytes, _data: ctypes.c_void_p) -> None:
    if level in (3, 4):  # warnings and errors
        _log.append(text.decode(errors="replace").strip())
        del _log[:-20]


@dataclass(frozen=True)
class Piece:
    """A part of a prompt, as llama.cpp reads it."""

    tokens: tuple[int, ...]
    """Of a text; of a picture none."""
    picture: int
    """Tokens of a picture; 0: it is text."""
    positions: int
    """That it takes."""


class Look(NamedTuple):
    """A picture as llama.cpp shows it to the vision tower, and what comes out of the projector."""

    pixels: Pixels
    """Normalised, float32 [3, height, width]."""
    values: Values
    """[tokens, width of the language model]."""


class Placed(NamedTuple):
    """An encoded picture in a sequence of tokens."""

    begins: int
    end: int
    """Behind its last token."""
    chunk: Any
    """libmtmd's own."""
    values: Values
    """What the projector makes of it, [tokens, width of the language model]."""


class SeenPrompt:
    """A prompt with its pictures, ready to be evaluated. Use as a context manager; `Sight.read` makes it."""

    def __init__(self, chunks: Any) -> None:
        self._chunks = chunks
        self.pieces = tuple(map(_piece, self.chunks()))
        self.keys = _keys([chunk for _, chunk in self.shown()])
        """Of each picture: what file it is, and its number among those of the same file. Some models cut one in several."""

    def __enter__(self) -> SeenPrompt:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        mtmd_cpp.mtmd_input_chunks_free(self._chunks)

    def chunks(self) -> list[Any]:
        """libmtmd's own, one a piece."""
        size = mtmd_cpp.mtmd_input_chunks_size(self._chunks)
        return [mtmd_cpp.mtmd_input_chunks_get(self._chunks, at) for at in range(size)]

    def shown(self) -> list[tuple[Piece, Any]]:
        """The pictures, and libmtmd's own of each."""
        return [(piece, chunk) for piece, chunk in zip(self.pieces, self.chunks()) if piece.picture]

    @property
    def pictures(self) -> list[int]:
        """Tokens of each picture."""
        return [piece.picture for piece in self.pieces if piece.picture]

    @property
    def tokens(self) -> int:
        """Of all of it."""
        return sum(piece.picture or len(piece.tokens) for piece in self.pieces)

    def ids(self, image_token: int) -> list[int]:
        """Token ids, a picture's as many times `image_token`: as the model's processor writes them."""
        return [i for piece in self.pieces for i in piece.tokens or [image_token] * piece.picture]


def _piece(chunk: Any) -> Piece:
    positions = int(mtmd_cpp.mtmd_input_chunk_get_n_pos(chunk))
    if mtmd_cpp.mtmd_input_chunk_get_type(chunk) == mtmd_cpp.MTMD_INPUT_CHUNK_TYPE_TEXT:
        count = ctypes.c_size_t()
        tokens = mtmd_cpp.mtmd_input_chunk_get_tokens_text(chunk, ctypes.byref(count))
        return Piece(tuple(int(i) for i in tokens[: count.value]), 0, positions)
    return Piece((), int(mtmd_cpp.mtmd_input_chunk_get_n_tokens(chunk)), positions)


def _keys(pictures: list[Any]) -> list[str]:
    seen: Counter[str] = Counter()
    found = []
    for chunk in pictures:
        content = (mtmd_cpp.mtmd_input_chunk_get_id(chunk) or b"").decode()
        found.append(f"{content}-{seen[content]}")
        seen[content] += 1
    return found


class Sight:
    """A projector, on a model that llama.cpp has open. Use as a context manager, or `close` it, before the model.

    Args:
        mmproj: the projector's GGUF file.
        model: llama.cpp's pointer to the language model.
        min_tokens, max_tokens: limits of a picture's tokens, where the server sets some; None: as the file says.
        flash: whether flash attention may be used, as servers do; it moves the results.
        threads: for encoding pictures.
        encodings: what the same file made of pictures on another language model, under the same limits and with the same `flash`;
            what it makes of further ones is added.

    Raises:
        DataError: llama.cpp cannot load it, it sees nothing, or it belongs to another model.
    """

    def __init__(
        self, mmproj: Path, model: Any, min_tokens: int | None = None, max_tokens: int | None = None,
        flash: bool = False, threads: int = 1, encodings: Encodings | None = None,
    ) -> None:  # fmt: skip
        self._encodings = Encodings() if encodings is None else encodings
        if not mmproj.is_file():
            raise DataError(f"{mmproj} is missing", "Run the convert stage again.")
        mtmd_cpp.mtmd_log_set(_collect, ctypes.c_void_p(0))
        mtmd_cpp.mtmd_helper_log_set(_collect, ctypes.c_void_p(0))
        _log.clear()
        # Of its own, since a user may write the usual one.
        self._marker = f"<__media_{secrets.token_hex(8)}__>"
        self._named = self._marker.encode()
        self._width = int(llama_cpp.llama_model_n_embd_inp(model))
        parameters = mtmd_cpp.mtmd_context_params_default()
        parameters.use_gpu = parameters.print_timings = parameters.warmup = False
        parameters.n_threads = threads
        parameters.media_marker = self._named
        parameters.flash_attn_type = _IF_IT_CAN if flash else _WITHOUT_FLASH
        parameters.image_min_tokens = -1 if min_tokens is None else min_tokens
        parameters.image_max_tokens = -1 if max_tokens is None else max_tokens
        self._shown = Shown()
        parameters.cb_eval = self._shown.callback
        self._context = mtmd_cpp.mtmd_init_from_file(str(mmproj).encode(), model, parameters)
        if not self._context:
            why = _log[-1] if _log else "no reason given"  # before it stand hints
            raise DataError(
                f"{mmproj.name} cannot be loaded by llama.cpp on this language model: {why}",
                "Convert both files from the same merged model.",
            )
        if not mtmd_cpp.mtmd_support_vision(self._context):
            self.close()
            raise DataError(f"{mmproj} sees no pictures", "Name the model's own projector (mmproj).")

    def __enter__(self) -> Sight:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the memory back."""
        mtmd_cpp.mtmd_free(self._context)

    def read(self, text: str, block: str, pictures: Sequence[bytes]) -> SeenPrompt:
        """Make tokens of a prompt as llama.cpp's server does: special tokens are parsed, BOS as the metadata says.

        Args:
            text: as the chat template writes it, without a BOS that the tokenizer puts there by itself.
            block: what the template writes for one picture; see `toolkit.models.picture_block.picture_block`.
            pictures: the bytes of the files, in the order of the blocks.

        Raises:
            DataError: there are more or fewer pictures than blocks, or a file is no picture that llama.cpp reads.
        """
        if (marks := text.count(block)) != len(pictures):
            raise DataError(f"the prompt has {marks} places for {len(pictures)} pictures: {text[:80]!r}", "")
        with contextlib.ExitStack() as closing:
            bitmaps = (ctypes.c_void_p * len(pictures))()
            for at, picture in enumerate(pictures):
                bitmaps[at] = self._decoded(picture, at)
                closing.callback(mtmd_cpp.mtmd_bitmap_free, bitmaps[at])
            data = text.replace(block, self._marker).encode("utf-8", errors="surrogatepass")
            given = mtmd_cpp.mtmd_input_text(data, len(data), True, True)
            chunks = mtmd_cpp.mtmd_input_chunks_init()
            failed = mtmd_cpp.mtmd_tokenize(self._context, chunks, ctypes.byref(given), bitmaps, len(pictures))
            if failed:
                mtmd_cpp.mtmd_input_chunks_free(chunks)
                raise DataError(f"llama.cpp cannot prepare the pictures of {text[:80]!r}: {'; '.join(_log[-3:])}", "")
            return SeenPrompt(chunks)

    def _decoded(self, picture: bytes, at: int) -> Any:
        buffer = (ctypes.c_uint8 * len(picture)).from_buffer_copy(picture)
        bitmap = mtmd_cpp.mtmd_helper_bitmap_init_from_buf(self._context, buffer, len(picture), False)
        if not bitmap:
            raise DataError(f"picture {at + 1} of the prompt is none that llama.cpp reads", "Give it as PNG or JPEG.")
        mtmd_cpp.mtmd_bitmap_set_id(bitmap, hashlib.sha256(picture).hexdigest().encode())
        return bitmap

    def encoded(self, prompt: SeenPrompt) -> list[Values]:
        """What the projector makes of each picture, [tokens, width of the language model]."""
        found = []
        for key, (piece, chunk) in zip(prompt.keys, prompt.shown()):
            values = self._encodings.get(key)
            if values is None:
                values = self._encoded(key, piece, chunk)
            found.append(values)
        return found

    def looks(self, prompt: SeenPrompt) -> list[Look]:
        """Each picture as it is shown to the vision tower, and what the projector makes of it; encoded anew."""
        found = []
        for key, (piece, chunk) in zip(prompt.keys, prompt.shown()):
            self._shown.clear()
            values = self._encoded(key, piece, chunk)
            found.append(Look(self._shown.pictures[0], values))
        return found

    def _encoded(self, key: str, piece: Piece, chunk: Any) -> Values:
        if mtmd_cpp.mtmd_encode_chunk(self._context, chunk):
            raise ExternalToolError(f"llama.cpp cannot encode a picture: {'; '.join(_log[-3:])}", "")
        made = mtmd_cpp.mtmd_get_output_embd(self._context)
        values: Values = np.ctypeslib.as_array(made, shape=(piece.picture, self._width)).copy()
        self._encodings.put(key, values)
        return values

    def evaluate(self, prompt: SeenPrompt, context: Any, sequence: int = 0, batch: int = 512) -> int:
        """Have the model read a whole prompt into an empty sequence; gives the position that comes next.

        `llama_get_logits_ith(context, -1)` then tells of the token behind it.

        Args:
            context: llama.cpp's pointer to a context of the model.
            batch: tokens at once; at most the context's own.
        """
        llama_cpp.llama_memory_seq_rm(llama_cpp.llama_get_memory(context), sequence, -1, -1)
        after, encoded = llama_cpp.llama_pos(0), self.encoded(prompt)
        if self._evaluated(prompt, context, sequence, batch, encoded, after):
            raise ExternalToolError(
                f"llama.cpp cannot read a prompt with pictures: {'; '.join(_log[-3:])}",
                "The context may be too small: a picture of Qwen's takes 1024 tokens and more.",
            )
        return int(after.value)

    def _evaluated(
        self, prompt: SeenPrompt, context: Any, sequence: int, batch: int, encoded: list[Values], after: Any
    ) -> int:
        chunks = prompt.chunks()
        for number, (piece, chunk) in enumerate(zip(prompt.pieces, chunks)):
            at = after.value
            if piece.picture:
                failed = self._put(chunk, encoded.pop(0), context, at, sequence, batch, after)
            else:
                last = number == len(chunks) - 1
                failed = mtmd_cpp.mtmd_helper_eval_chunk_single(
                    self._context, context, chunk, at, sequence, batch, last, ctypes.byref(after)
                )
            if failed:
                return int(failed)
        return 0

    def put(self, picture: Placed, context: Any, position: int, sequence: int, batch: int) -> int:
        """Have the model read a picture behind what a sequence holds; gives the position that comes next.

        Args:
            context, batch: as for `evaluate`.
        """
        after = llama_cpp.llama_pos(position)
        if self._put(picture.chunk, picture.values, context, position, sequence, batch, after):
            raise ExternalToolError(f"llama.cpp cannot read a picture: {'; '.join(_log[-3:])}", "")
        return int(after.value)

    def _put(
        self, chunk: Any, values: Values, context: Any, position: int, sequence: int, batch: int, after: Any
    ) -> int:
        pointer = np.ascontiguousarray(values, dtype=np.float32).ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        return int(
            mtmd_cpp.mtmd_helper_decode_image_chunk(
                self._context, context, chunk, pointer, position, sequence, batch, ctypes.byref(after),
                mtmd_cpp.mtmd_helper_post_decode_callback(), None,
            )
        )  # fmt: skip
