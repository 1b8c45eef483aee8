"""The GGUF that Ollama serves, in this process: what its answers are compared with."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from pathlib import Path

import llama_cpp
import numpy as np
import numpy.typing as npt

from toolkit.errors import DataError

Row = npt.NDArray[np.float64]


class OwnModel:
    """The served GGUF in this process, with the settings that Ollama runs it with: F16 cache, flash attention."""

    def __init__(self, gguf: Path, context: int) -> None:
        try:
            self._llama = llama_cpp.Llama(
                str(gguf), n_ctx=context, n_batch=512, n_gpu_layers=0, flash_attn=True, verbose=False
            )
        except (ValueError, RuntimeError, OSError) as error:
            raise DataError(f"{gguf} cannot be loaded by llama.cpp: {error}", "Run the convert stage again.") from error
        self._vocab = llama_cpp.llama_model_get_vocab(self._llama.model)
        self.adds_bos = bool(llama_cpp.llama_vocab_get_add_bos(self._vocab))
        bos = llama_cpp.llama_vocab_bos(self._vocab)
        eos, eot = llama_cpp.llama_vocab_eos(self._vocab), llama_cpp.llama_vocab_eot(self._vocab)
        self.bos_text, self.eos_text, eot_text = (
            self.piece(token, special=True).decode(errors="replace") if token >= 0 else "" for token in (bos, eos, eot)
        )
        self.markers = [text for text in dict.fromkeys((self.bos_text, self.eos_text, eot_text)) if text]
        """Texts of the tokens that open and close, which a user may write too."""
        self.end_ids = [i for i in range(self._llama.n_vocab()) if llama_cpp.llama_vocab_is_eog(self._vocab, i)]

    def close(self) -> None:
        """Give the memory back."""
        self._llama.close()

    def tokenize(self, text: str) -> list[int]:
        """Token ids as the server makes them: special tokens are parsed, BOS as the metadata says."""
        return [int(i) for i in self._llama.tokenize(text.encode(), add_bos=self.adds_bos, special=True)]

    def piece(self, token: int, special: bool = False) -> bytes:
        """The bytes that a token adds to a text; a control token adds none unless `special`."""
        buffer = ctypes.create_string_buffer(512)
        length = llama_cpp.llama_token_to_piece(self._vocab, token, buffer, 512, 0, special)
        return buffer.raw[: max(length, 0)]

    def start(self, ids: Sequence[int]) -> Row:
        """Forget everything, read a prompt; log-probabilities of the next token, [vocabulary]."""
        self._llama.reset()
        return self.step(ids)

    def step(self, ids: Sequence[int]) -> Row:
        """Read more tokens; log-probabilities of the next, [vocabulary]."""
        self._llama.eval(list(ids))
        pointer = llama_cpp.llama_get_logits_ith(self._llama.ctx, -1)
        row: Row = np.ctypeslib.as_array(pointer, shape=(self._llama.n_vocab(),)).astype(np.float64)
        row = row - row.max()
        return row - math.log(float(np.exp(row).sum()))
