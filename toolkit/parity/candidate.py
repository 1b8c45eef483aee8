"""A GGUF file under judgement, seen as llama.cpp sees it: its own metadata, vocabulary, logits and greedy text.

llama.cpp is called through llama-cpp-python's plain C functions: its `Llama` class keeps a row of logits for every
position of the prompt, evaluates one sequence at a time, and cuts metadata values short.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import numpy.typing as npt

from toolkit.errors import DataError, ExternalToolError
from toolkit.models.gguf_file import read_gguf
from toolkit.models.gguf_metadata import vocabulary_alone
from toolkit.parity.encodings import Encodings
from toolkit.parity.seeing import Placed, SeenPrompt, Sight
from toolkit.run.artifacts import file_sha256
from toolkit.run.processes import busy_share

Logits = npt.NDArray[np.float32]

F32 = 0  # GGML_TYPE_F32: an F16 cache alone moves the logits by 0.05
LARGEST_BATCH = 512

_log: list[str] = []
_ends_by_name: dict[str, frozenset[int]] = {}
"""SHA-256 of a vocabulary's file → where llama.cpp ends in it."""


@llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
def _collect(level: int, text: bytes, _data: ctypes.c_void_p) -> None:
    if level in (3, 4):  # warnings and errors: GGML_LOG_LEVEL_WARN = 3, _ERROR = 4
        _log.append(text.decode(errors="replace").strip())
        del _log[:-20]


class Candidate:
    """An open GGUF file. Use as a context manager; `vocab_only` reads no weights.

    Raises:
        DataError: the file is no GGUF file that the pinned llama.cpp can load.
    """

    def __init__(self, path: Path, vocab_only: bool = False) -> None:
        self.path = path
        self._closing = contextlib.ExitStack()
        llama_cpp.llama_backend_init()
        llama_cpp.llama_log_set(_collect, ctypes.c_void_p(0))
        parameters = llama_cpp.llama_model_default_params()
        parameters.vocab_only = vocab_only
        parameters.n_gpu_layers = 0
        _log.clear()
        if not path.is_file():
            raise DataError(f"{path} is missing", "Run the convert and quantize stages again.")
        self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), parameters)
        if not self._model:
            why = "; ".join(_log[-3:]) or "no reason given"
            raise DataError(
                f"{path} cannot be loaded by llama.cpp: {why}", "Convert it again; the file may be cut short."
            )
        self._closing.callback(llama_cpp.llama_model_free, self._model)
        self._vocab = llama_cpp.llama_model_get_vocab(self._model)
        self.vocabulary: int = llama_cpp.llama_vocab_n_tokens(self._vocab)

    def __enter__(self) -> Candidate:
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()

    def sight(
        self, mmproj: Path, min_tokens: int | None = None, max_tokens: int | None = None,
        encodings: Encodings | None = None,
    ) -> Sight:  # fmt: skip
        """A projector on this model, without flash attention; a context manager. See `toolkit.parity.seeing.Sight`."""
        return Sight(mmproj, self._model, min_tokens, max_tokens, threads=idle_threads(), encodings=encodings)

    # Metadata ------------------------------------------------------------------------------------------------

    def metadata(self, key: str) -> str | None:
        """A scalar of the file's metadata as text; None when it is not there."""
        length = llama_cpp.llama_model_meta_val_str(self._model, key.encode(), ctypes.create_string_buffer(1), 1)
        if length < 0:
            return None
        buffer = ctypes.create_string_buffer(length + 1)
        llama_cpp.llama_model_meta_val_str(self._model, key.encode(), buffer, length + 1)
        return buffer.value.decode("utf-8", errors="replace")

    @property
    def chat_template(self) -> str | None:
        """The Jinja template in the file."""
        return self.metadata("tokenizer.chat_template")

    @property
    def bos(self) -> int:
        """Id of the beginning-of-text token; -1 without one."""
        return int(llama_cpp.llama_vocab_bos(self._vocab))

    @property
    def eos(self) -> int:
        """Id of the end token that the metadata names; -1 without one."""
        return int(llama_cpp.llama_vocab_eos(self._vocab))

    @property
    def eot(self) -> int:
        """Id of the end-of-turn token that llama.cpp found; -1 without one."""
        return int(llama_cpp.llama_vocab_eot(self._vocab))

    # Vocabulary ----------------------------------------------------------------------------------------------

    def token_text(self, token: int) -> str:
        """A token as the vocabulary spells it (byte-level for BPE); empty for no token."""
        if not 0 <= token < self.vocabulary:
            return ""
        return bytes(llama_cpp.llama_vocab_get_text(self._vocab, token)).decode("utf-8", errors="replace")

    def piece(self, token: int) -> bytes:
        """The bytes that a token stands for, control tokens spelled out; empty for no token.

        Bytes, not text: one character may be spelled with several tokens.
        """
        if not 0 <= token < self.vocabulary:
            return b""
        room = 64
        while True:
            buffer = ctypes.create_string_buffer(room)
            count = llama_cpp.llama_token_to_piece(self._vocab, token, buffer, room, 0, True)
            if count >= 0:
                return buffer.raw[:count]
            room = -count

    def ends(self, token: int) -> bool:
        """Whether llama.cpp stops generating at this token."""
        return bool(llama_cpp.llama_vocab_is_eog(self._vocab, token))

    @functools.cached_property
    def end_tokens(self) -> frozenset[int]:
        """All tokens at which llama.cpp stops generating: those that the file names, and those that it knows by their names."""
        return frozenset(token for token in range(self.vocabulary) if self.ends(token))

    def ends_by_name(self, eos: int) -> frozenset[int]:
        """Where llama.cpp ends in this vocabulary when the file names one end and no other special token: at the tokens that it
        knows by their names.

        Args:
            eos: the end that is named; without one llama.cpp takes a token that another vocabulary ends at.
        """
        header = read_gguf(self.path)
        of_vocabulary = ("general.architecture", f"{header.architecture}.", "tokenizer.")
        left_out = dict.fromkeys(
            key for key in header.metadata if key.endswith("_token_id") or not key.startswith(of_vocabulary)
        )
        with tempfile.TemporaryDirectory() as folder:
            bare = Path(folder) / "vocabulary.gguf"
            vocabulary_alone(self.path, bare, {**left_out, "tokenizer.ggml.eos_token_id": eos}, header)
            key = file_sha256(bare)  # the files of one export have one vocabulary
            if key not in _ends_by_name:
                with Candidate(bare, vocab_only=True) as unnamed:
                    _ends_by_name[key] = unnamed.end_tokens
            return _ends_by_name[key]

    def is_control(self, token: int) -> bool:
        """Whether a token is a control token, which a server never shows."""
        return bool(llama_cpp.llama_vocab_is_control(self._vocab, token))

    def tokenize(self, text: str, add_special: bool = False) -> list[int]:
        """Token ids; special tokens spelled in the text are parsed. add_special: as the metadata says (BOS, EOS)."""
        data = text.encode("utf-8", errors="surrogatepass")
        room = len(data) + 8
        tokens = (llama_cpp.llama_token * room)()
        count = llama_cpp.llama_tokenize(self._vocab, data, len(data), tokens, room, add_special, True)
        if count < 0:
            raise ExternalToolError(
                f"llama.cpp cannot tokenize {text[:40]!r} with the vocabulary of {self.path}",
                "Make the file anew: its vocabulary is damaged.",
            )
        return list(tokens[:count])

    def tokenize_as_server(self, text: str) -> list[int]:
        """Token ids of a rendered prompt as llama.cpp's server makes them: BOS and EOS as the metadata says.

        Where the metadata asks for a BOS, one that the template wrote is taken off first (llama.cpp, `common/chat.cpp`).
        """
        if llama_cpp.llama_vocab_get_add_bos(self._vocab):
            text = text.removeprefix(self.token_text(self.bos))
        return self.tokenize(text, add_special=True)

    def text(self, tokens: Sequence[int], special: bool = False) -> str:
        """Text of tokens; special: spell control tokens out."""
        given = (llama_cpp.llama_token * len(tokens))(*tokens)
        room = 64 + 32 * len(tokens)
        buffer = ctypes.create_string_buffer(room)
        count = llama_cpp.llama_detokenize(self._vocab, given, len(tokens), buffer, room, False, special)
        if count < 0:
            room = -count
            buffer = ctypes.create_string_buffer(room)
            count = llama_cpp.llama_detokenize(self._vocab, given, len(tokens), buffer, room, False, special)
        return buffer.raw[: max(count, 0)].decode("utf-8", errors="replace")

    # Logits --------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def slots(self, sequences: int, length: int) -> Iterator[Slots]:
        """A context for so many sequences of at most so many tokens each. F32 cache, no flash attention.

        Raises:
            ExternalToolError: llama.cpp cannot make the context.
        """
        parameters = llama_cpp.llama_context_default_params()
        parameters.n_seq_max = sequences
        # llama.cpp divides the context among the sequences, in steps of 256.
        parameters.n_ctx = sequences * ((length + 255) // 256 * 256)
        parameters.n_batch = parameters.n_ubatch = min(LARGEST_BATCH, parameters.n_ctx)
        parameters.type_k = parameters.type_v = F32
        parameters.flash_attn_type = 0
        parameters.n_threads = parameters.n_threads_batch = idle_threads()
        context = llama_cpp.llama_init_from_model(self._model, parameters)
        if not context:
            raise ExternalToolError(
                f"llama.cpp cannot evaluate {self.path}: {'; '.join(_log[-3:])}", "Try: tune2ollama doctor"
            )
        try:
            yield Slots(self, context, parameters.n_batch)
        finally:
            llama_cpp.llama_free(context)


def idle_threads() -> int:
    """`OMP_NUM_THREADS`, or as many threads as there are idle cores.

    llama.cpp's threads wait for each other after every operation: on a core that another process holds, two of them were
    measured to be more than ten times slower than one.
    """
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    if wanted.isdigit() and int(wanted) > 0:
        return int(wanted)
    return max(1, round(len(os.sched_getaffinity(0)) * (1 - busy_share())))


class Slots:
    """Evaluates sequences, each in a slot of its own, whose cache stays until it is shortened or used again."""

    def __init__(self, candidate: Candidate, context: Any, batch: int) -> None:
        self._candidate, self._context, self._size = candidate, context, batch
        self._memory = llama_cpp.llama_get_memory(context)
        self._held: dict[int, list[int]] = {}
        """Slot → tokens that its cache holds."""
        self.behind: dict[int, int] = {}
        """Slot → position behind the prompt with pictures that it holds; fewer than the tokens, which share positions."""

    def logits(self, slot: int, ids: Sequence[int], first: int) -> Logits:
        """Teacher-forced logits, float32 [len(ids) - first, vocabulary]: row i predicts ids[first + i].

        The last token is not evaluated: nothing follows it.
        """
        self._clear(slot)
        return self._forced(slot, ids, first, 0)

    def logits_after(self, slot: int, ids: Sequence[int], first: int) -> Logits:
        """The same of a sequence that may begin as what the slot holds: that part is not evaluated again."""
        pairs = zip(self._held.get(slot, []), ids[: first - 1])
        alike = next((place for place, (held, wanted) in enumerate(pairs) if held != wanted), None)
        if alike is None:
            alike = min(len(self._held.get(slot, [])), first - 1)
        self.shorten(slot, alike)
        return self._forced(slot, ids, first, alike)

    def logits_behind(self, slot: int, sight: Sight, prompt: SeenPrompt, ids: Sequence[int]) -> Logits:
        """Teacher-forced logits behind a prompt with pictures, float32 [len(ids), vocabulary]: row i predicts ids[i].

        Args:
            sight: a projector on this slot's own candidate.
            ids: of the answer; the last one is not evaluated.
        """
        self._clear(slot)
        after = sight.evaluate(prompt, self._context, slot, self._size)
        self.behind[slot] = after
        first = self._row(-1).copy()[None]
        rest = self.step([(slot, after + place, token) for place, token in enumerate(ids[:-1])])
        self._held[slot] = []  # a picture is no token that could be found again
        return np.concatenate([first, rest])

    def logits_among(
        self, slot: int, sight: Sight, ids: Sequence[int], first: int, pictures: Sequence[Placed]
    ) -> Logits:
        """As `logits`, of a sequence in which pictures stand; `ids` holds their tokens. Rows behind a picture's own tokens, which
        nobody learns to predict, are zero.
        """
        self._clear(slot)
        rows: list[Logits] = []
        begins = position = 0
        for picture in pictures:
            rows.append(self._read(slot, ids[begins : picture.begins], position, first - begins))
            position = sight.put(picture, self._context, position + picture.begins - begins, slot, self._size)
            begins = picture.end
            unknown = max(0, picture.end - max(picture.begins, first - 1))
            rows.append(np.zeros((unknown, self._candidate.vocabulary), dtype=np.float32))
        rows.append(self._read(slot, ids[begins:-1], position, first - begins))
        self.behind[slot] = position + max(first - begins, 0)
        self._held[slot] = []  # a picture is no token that could be found again
        return np.concatenate(rows)

    def _read(self, slot: int, ids: Sequence[int], position: int, first: int) -> Logits:
        """Tokens behind what the slot holds; logits from the one before ids[first] on."""
        found = [np.empty((0, self._candidate.vocabulary), dtype=np.float32)]
        for start in range(0, len(ids), self._size):
            chunk = enumerate(ids[start : start + self._size], start)
            found.append(self._decode([(slot, position + place, token, place >= first - 1) for place, token in chunk]))
        return np.concatenate(found)

    def _forced(self, slot: int, ids: Sequence[int], first: int, held: int) -> Logits:
        rows = np.empty((len(ids) - first, self._candidate.vocabulary), dtype=np.float32)
        done = 0
        for start in range(held, len(ids) - 1, self._size):
            chunk = [
                (slot, position, ids[position], position >= first - 1)
                for position in range(start, min(start + self._size, len(ids) - 1))
            ]
            found = self._decode(chunk)
            rows[done : done + len(found)] = found
            done += len(found)
        return rows

    def shorten(self, slot: int, length: int) -> None:
        """Forget all but the first `length` tokens of a slot.

        Recurrent layers keep one state and cannot forget a part: there the first tokens are evaluated anew.
        """
        held = self._held.get(slot, [])[:length]
        if llama_cpp.llama_memory_seq_rm(self._memory, slot, length, -1):
            self._held[slot] = held
            return
        if slot in self.behind:
            raise ExternalToolError(
                f"{self._candidate.path}: llama.cpp cannot take back tokens behind a picture with this architecture", ""
            )
        self._clear(slot)
        for start in range(0, len(held), self._size):
            self._decode([(slot, start + i, token, False) for i, token in enumerate(held[start : start + self._size])])

    def _clear(self, slot: int) -> None:
        llama_cpp.llama_memory_seq_rm(self._memory, slot, -1, -1)  # of a whole sequence it never fails
        self._held[slot] = []
        self.behind.pop(slot, None)

    def step(self, tokens: list[tuple[int, int, int]]) -> Logits:
        """One more token for several slots at once. (slot, position, token) → logits [len(tokens), vocabulary]."""
        found = [
            self._decode([(*token, True) for token in tokens[i : i + self._size]])
            for i in range(0, len(tokens), self._size)
        ]
        return np.concatenate(found) if found else np.empty((0, self._candidate.vocabulary), dtype=np.float32)

    def _decode(self, tokens: list[tuple[int, int, int, bool]]) -> Logits:
        batch = llama_cpp.llama_batch_init(len(tokens), 0, 1)
        try:
            batch.n_tokens = len(tokens)
            for i, (slot, position, token, wanted) in enumerate(tokens):
                batch.token[i], batch.pos[i], batch.logits[i] = token, position, wanted
                batch.n_seq_id[i] = 1
                batch.seq_id[i][0] = slot
            if llama_cpp.llama_decode(self._context, batch) != 0:
                raise ExternalToolError(
                    f"llama.cpp cannot decode with {self._candidate.path}: {'; '.join(_log[-3:])}",
                    "Close other programs if memory is short; else: tune2ollama doctor",
                )
        finally:
            llama_cpp.llama_batch_free(batch)
        for slot, position, token, _ in tokens:
            self._held[slot] = [*self._held[slot][:position], token]
        outputs = [i for i, token in enumerate(tokens) if token[3]]
        rows = np.empty((len(outputs), self._candidate.vocabulary), dtype=np.float32)
        for row, i in enumerate(outputs):
            rows[row] = self._row(i)
        return rows

    def _row(self, output: int) -> Logits:
        """llama.cpp's own memory, until it decodes again."""
        pointer = llama_cpp.llama_get_logits_ith(self._context, output)
        row: Logits = np.ctypeslib.as_array(pointer, shape=(self._candidate.vocabulary,))
        return row
