"""The GGUF that Ollama serves, in this process: what its prompts and answers are compared with."""

from __future__ import annotations

import ctypes
import functools
import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import llama_cpp
import numpy as np
import numpy.typing as npt
import psutil

from toolkit.errors import DataError
from toolkit.parity.candidate import idle_threads
from toolkit.parity.seeing import SeenPrompt, Sight

Row = npt.NDArray[np.float64]


@llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
def _say_nothing(_level: int, _text: bytes, _data: ctypes.c_void_p) -> None:
    pass


def begun(text: bytes) -> int:
    """How many bytes at the end of a text are the beginning of a character: a server waits there for the rest.

    llama.cpp, tools/server/server-common.cpp, `validate_utf8`: what stands before these bytes is not looked at.
    """
    for back in range(1, min(4, len(text)) + 1):
        first = text[-back]
        needed = 2 if first & 0xE0 == 0xC0 else 3 if first & 0xF0 == 0xE0 else 4 if first & 0xF8 == 0xF0 else 1
        if back < needed:
            return back
    return 0


def as_shown(text: bytes) -> str:
    """A token's bytes as a server writes them: the beginning of a character is left out, its other parts become U+FFFD.

    So many tokens look alike, also one of a half character and one without it (" " and " \\xf0\\x9f"); the field `bytes` that
    Ollama tells is made of this text, and holds no more (server/logprob.go).
    """
    return text[: len(text) - begun(text)].decode("utf-8", "replace")


class Vocabulary:
    """The served GGUF's tokens; none of its weights are read.

    Raises:
        DataError: llama.cpp cannot load it.
    """

    def __init__(self, gguf: Path) -> None:
        llama_cpp.llama_log_set(_say_nothing, ctypes.c_void_p(0))
        parameters = llama_cpp.llama_model_default_params()
        parameters.vocab_only = True
        self._vocabulary_only = llama_cpp.llama_model_load_from_file(str(gguf).encode(), parameters)
        if not self._vocabulary_only:
            raise DataError(f"{gguf} cannot be loaded by llama.cpp", "Convert it again.")
        self._read(llama_cpp.llama_model_get_vocab(self._vocabulary_only))

    def _read(self, vocab: llama_cpp.llama_vocab_p) -> None:
        self._vocab = vocab
        self.size = llama_cpp.llama_vocab_n_tokens(vocab)
        self.adds_bos = bool(llama_cpp.llama_vocab_get_add_bos(vocab))
        bos = llama_cpp.llama_vocab_bos(vocab)
        eos, eot = llama_cpp.llama_vocab_eos(vocab), llama_cpp.llama_vocab_eot(vocab)
        self.bos_text, self.eos_text, eot_text = (
            self.piece(token, special=True).decode(errors="replace") if token >= 0 else "" for token in (bos, eos, eot)
        )
        self.markers = [text for text in dict.fromkeys((self.bos_text, self.eos_text, eot_text)) if text]
        """Texts of the tokens that open and close, which a user may write too."""

    def close(self) -> None:
        """Give the memory back."""
        llama_cpp.llama_model_free(self._vocabulary_only)

    def tokenize(self, text: str) -> list[int]:
        """Token ids as the server makes them: special tokens are parsed, BOS as the metadata says."""
        return self._tokenized(text, self.adds_bos)

    def _tokenized(self, text: str, adds_special: bool) -> list[int]:
        data = text.encode("utf-8", errors="surrogatepass")
        tokens = (llama_cpp.llama_token * (len(data) + 8))()
        count = llama_cpp.llama_tokenize(self._vocab, data, len(data), tokens, len(tokens), adds_special, True)
        return [int(token) for token in tokens[: max(count, 0)]]

    def piece(self, token: int, special: bool = False) -> bytes:
        """The bytes that a token adds to a text; a control token adds none unless `special`."""
        buffer = ctypes.create_string_buffer(512)
        length = llama_cpp.llama_token_to_piece(self._vocab, token, buffer, 512, 0, special)
        return buffer.raw[: max(length, 0)]

    @functools.cached_property
    def control(self) -> list[int]:
        """Control tokens, which a server never shows."""
        return [token for token in range(self.size) if llama_cpp.llama_vocab_is_control(self._vocab, token)]

    @functools.cached_property
    def shown_as(self) -> dict[str, list[int]]:
        """Text → tokens that a server shows so: texts are all that it tells."""
        found: dict[str, list[int]] = defaultdict(list)
        for token in range(self.size):
            found[as_shown(self.piece(token))].append(token)
        return dict(found)

    @functools.cached_property
    def _written_as(self) -> dict[str, int]:
        """Text → its token; a byte that stands for a letter, where the letter has a token too, is no text's own."""
        found = {}
        for text, tokens in self.shown_as.items():
            own = [
                t
                for t in tokens
                if not llama_cpp.llama_vocab_get_attr(self._vocab, t) & llama_cpp.LLAMA_TOKEN_ATTR_BYTE
            ]
            if len(own) == 1:
                found[text] = own[0]
        return found

    def tokens_shown(self, text: str) -> list[int]:
        """Tokens that a server shows as one text: one token, or those of a character."""
        if text in self._written_as:
            return [self._written_as[text]]
        # Behind a line's end, since some tokenizers put a space before the beginning of every text.
        return self._tokenized("\n" + text, False)[len(self._tokenized("\n", False)) :]

    @functools.cached_property
    def token_of(self) -> dict[str, int]:
        """Text → token, of the texts that exactly one token is shown as."""
        return {text: tokens[0] for text, tokens in self.shown_as.items() if text and len(tokens) == 1}


def server_threads() -> int:
    """Threads that llama.cpp's server takes where nobody says: a core each (common/common.cpp, cpu_get_num_math)."""
    return psutil.cpu_count(logical=False) or 1


class OwnModel(Vocabulary):
    """The served GGUF in this process, with the settings that Ollama runs it with: F16 cache, flash attention.

    Args:
        context: tokens that a prompt and its answer take at most.
        mmproj: its projector, where it sees.
        picture_tokens: limits of a picture's tokens that the server sets, (least, most).
        threads: of the server, where prompts are long; None: any number will do, and as many as cores are idle are taken. From
            512 tokens on, flash attention on a processor shares a row out among its threads and adds up in 16 bits: another
            number of them moved single log-probabilities behind 1066 tokens of a picture by up to 0.13 in a model of random
            weights, the same one by 1e-5.

    Raises:
        DataError: llama.cpp cannot load a file, or the projector is another model's.
    """

    def __init__(
        self, gguf: Path, context: int, mmproj: Path | None = None,
        picture_tokens: tuple[int | None, int | None] = (None, None), threads: int | None = None,
    ) -> None:  # fmt: skip
        threads = threads or idle_threads()
        try:
            self._llama = llama_cpp.Llama(
                str(gguf),
                n_ctx=context,
                n_batch=512,
                n_gpu_layers=0,
                flash_attn=True,
                verbose=False,
                n_threads=threads,
                n_threads_batch=threads,
            )
        except (ValueError, RuntimeError, OSError) as error:
            raise DataError(f"{gguf} cannot be loaded by llama.cpp: {error}", "Run the convert stage again.") from error
        self._read(llama_cpp.llama_model_get_vocab(self._llama.model))
        self.end_ids = [i for i in range(self.size) if llama_cpp.llama_vocab_is_eog(self._vocab, i)]
        self._sight: Sight | None = None
        if mmproj is not None:
            self._sight = Sight(mmproj, self._llama.model, *picture_tokens, flash=True, threads=threads)

    def close(self) -> None:
        """Give the memory back."""
        if self._sight is not None:
            self._sight.close()
        self._llama.close()

    @property
    def sight(self) -> Sight:
        """DataError where it has no projector."""
        if self._sight is None:
            raise DataError("a prompt holds a picture, and the model has no projector", "Name its mmproj file too.")
        return self._sight

    def start_seeing(self, prompt: SeenPrompt) -> Row:
        """Forget everything, read a prompt with pictures; log-probabilities of the next token, [vocabulary].

        Args:
            prompt: of this model's `sight`.
        """
        self._llama.reset()
        # What llama-cpp-python counts as tokens are positions, and it goes on at the next.
        self._llama.n_tokens = self.sight.evaluate(prompt, self._llama.ctx)
        return self._next()

    def start(self, ids: Sequence[int]) -> Row:
        """Forget everything, read a prompt; log-probabilities of the next token, [vocabulary]."""
        self._llama.reset()
        return self.step(ids)

    def step(self, ids: Sequence[int]) -> Row:
        """Read more tokens; log-probabilities of the next, [vocabulary]."""
        self._llama.eval(list(ids))
        return self._next()

    def _next(self) -> Row:
        pointer = llama_cpp.llama_get_logits_ith(self._llama.ctx, -1)
        row: Row = np.ctypeslib.as_array(pointer, shape=(self.size,)).astype(np.float64)
        row = row - row.max()
        return row - math.log(float(np.exp(row).sum()))
