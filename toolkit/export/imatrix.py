"""An importance matrix: how much each column of each weight matrix is used on texts like those that were trained on.

llama.cpp's quantizer weighs a column's rounding error with the mean square of what the column is multiplied with. It is measured
where it is used: llama.cpp reads training rows with the converted file, and shows every matrix product as it is made. The file
that comes out is one of llama.cpp's own kind (`tools/imatrix`), which `llama-quantize --imatrix` takes too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.errors import DataError, ExternalToolError
from toolkit.export.ggml import GraphTensor, graph_tensor, operation_number, operation_of
from toolkit.export.imatrix_file import IMATRIX_FILE, Importance, write_imatrix
from toolkit.export.llama_cpp import captured_log, library
from toolkit.models.tokenizer import load_tokenizer
from toolkit.recipe.estimates import IMATRIX_TOKENS
from toolkit.recipe.schema import Recipe
from toolkit.run.artifacts import Artifact, file_sha256, read_jsonl
from toolkit.run.bars import passing_bar
from toolkit.run.facts import AdapterFacts, DatasetFacts, GGUFFacts, ImatrixFacts
from toolkit.train.rows import tokenize

CHUNK = 512
"""Tokens that are read at once, and of which a longer row keeps the first."""
_TOGETHER = 32
_PRODUCT, _PRODUCT_OF_EXPERTS = "MUL_MAT", "MUL_MAT_ID"
_WIDE = 0  # GGML_TYPE_F32


def measure(
    recipe: Recipe,
    dataset: Artifact[DatasetFacts],
    adapter: Artifact[AdapterFacts],
    converted: Artifact[GGUFFacts],
    out: Path,
) -> ImatrixFacts:
    """The run's stage: read rows of the training split (never of the others, never golden prompts) with the converted file.

    Raises:
        DataError: no row can be read: all show pictures.
        ExternalToolError: llama.cpp cannot evaluate the file.
    """
    source = converted.folder / converted.facts.files[0].name
    sequences = training_sequences(dataset, adapter)
    if not sequences:
        raise DataError(
            "all rows of the training split show pictures, which an importance matrix is not measured with",
            "Run again with --set export.imatrix=false",
        )
    with passing_bar() as progress:
        task = progress.add_task("importance of the weights' columns", total=len(sequences))
        found = collect(source, sequences, lambda: progress.advance(task))
    write_imatrix(found, out / IMATRIX_FILE, f"{recipe.name}, rows of the training split", len(sequences), CHUNK)
    return ImatrixFacts(
        sequences=len(sequences),
        tokens=sum(map(len, sequences)),
        tensors=len(found),
        sha256=file_sha256(out / IMATRIX_FILE),
    )


def training_sequences(dataset: Artifact[DatasetFacts], adapter: Artifact[AdapterFacts]) -> list[list[int]]:
    """Tokens of rows from all over the training split, as they were trained on, until there are enough."""
    tokenizer = load_tokenizer(adapter.folder)
    rows = read_jsonl(dataset.folder / "train.jsonl")
    return [*_spread(rows, lambda row: _sequences(tokenizer, row, adapter.facts.chat_template_kwargs))]


def _sequences(tokenizer: Any, row: dict[str, Any], fields: Mapping[str, Any]) -> list[list[int]]:
    """A row's tokens; none of a row that shows pictures, or whose answer was a bad one."""
    shows = any(isinstance(turn["content"], list) for turn in row.get("prompt", ()))
    if shows or row.get("label") is False:
        return []
    return [part.input_ids[:CHUNK] for part in tokenize(tokenizer, row, fields)]


def _spread(rows: Sequence[Any], sequences: Callable[[Any], list[list[int]]]) -> Iterator[list[int]]:
    """Of rows from all over the split, until there are enough tokens."""
    read = 0
    for place in np.random.default_rng(0).permutation(len(rows)):
        for sequence in sequences(rows[place]):
            yield sequence
            read += len(sequence)
        if read >= IMATRIX_TOKENS:
            return


def collect(
    gguf: Path, sequences: Sequence[Sequence[int]], tick: Callable[[], None] = lambda: None
) -> dict[str, Importance]:
    """Read sequences of tokens (at most `CHUNK` each) with a GGUF file, and sum the squares of what its layers' weights are
    multiplied with. The head is left out, as llama.cpp's own tool leaves it out.

    Raises:
        DataError: llama.cpp cannot load the file.
        ExternalToolError: it cannot evaluate it, or what it computes is no number.
    """
    watcher = _Watcher()
    with captured_log() as problems, _context(gguf, watcher.callback, problems) as (llama, context):
        memory = llama.llama_get_memory(context)
        for together in _packed(sequences):
            llama.llama_memory_clear(memory, True)
            done = _decode(llama, context, together)
            if watcher.failure is not None:
                raise watcher.failure
            if not done:
                raise ExternalToolError(
                    f"llama.cpp cannot decode with {gguf}: {'; '.join(problems[-3:])}",
                    "Close other programs if memory is short; else: tune2ollama doctor",
                )
            for _ in together:
                tick()
    if not watcher.found:
        raise ExternalToolError(f"llama.cpp shows no matrix product of {gguf}", "Try: tune2ollama doctor")
    for name, importance in watcher.found.items():
        if not np.isfinite(importance.sums).all():
            raise ExternalToolError(f"{name} of {gguf} is multiplied with what is no number", "Run: tune2ollama verify")
    return dict(sorted(watcher.found.items()))


class _Watcher:
    """llama.cpp's look at each operation before and after it is computed (`ggml_backend_sched_eval_callback`)."""

    def __init__(self) -> None:
        self.found: dict[str, Importance] = {}
        self.failure: Exception | None = None
        self._products = {operation_number(_PRODUCT), operation_number(_PRODUCT_OF_EXPERTS)}
        self.callback = library().llama_cpp.ggml_backend_sched_eval_callback(self._look)

    def _look(self, address: int, ask: bool, _data: int | None) -> bool:
        # An exception cannot pass through C: it is kept, and the evaluation is stopped.
        try:
            # Of thousands of operations a few hundred are products, and Python is slow.
            if operation_of(address) not in self._products:
                return not ask
            product = graph_tensor(address)
            weight, given = graph_tensor(product.sources[0]), graph_tensor(product.sources[1])
            if not weight.name.startswith("blk.") or given.kind != _WIDE:
                return not ask
            if not ask:
                self._take(product, weight, given)
            return True
        except Exception as error:
            self.failure = error
            return False

    def _take(self, product: GraphTensor, weight: GraphTensor, given: GraphTensor) -> None:
        values = given.values(np.float32)
        if product.operation == _PRODUCT_OF_EXPERTS:
            sent = graph_tensor(product.sources[2]).values(np.int32)[0, 0]  # [tokens, experts of each]
            entry = self._entry(weight.name, weight.shape[1], values.shape[-1])
            squares = np.square(values[0], dtype=np.float64)  # [tokens, experts of each or 1, columns]
            np.add.at(entry.sums, sent, np.broadcast_to(squares, (*sent.shape, values.shape[-1])))
            entry.counts += np.bincount(sent.ravel(), minlength=len(entry.counts))
            return
        outer, inner = weight.shape[:2]
        entry = self._entry(weight.name, outer * inner, values.shape[-1])
        for i, many in enumerate(values):
            for j, rows in enumerate(many):  # several inputs may share one matrix
                matrix = i % outer * inner + j % inner
                entry.sums[matrix] += np.einsum("ij,ij->j", rows, rows)
                entry.counts[matrix] += len(rows)

    def _entry(self, name: str, matrices: int, columns: int) -> Importance:
        if name not in self.found:
            self.found[name] = Importance(np.zeros((matrices, columns)), np.zeros(matrices, np.int64))
        return self.found[name]


@contextmanager
def _context(gguf: Path, callback: Any, problems: list[str]) -> Iterator[tuple[Any, Any]]:
    llama = library()
    llama.llama_backend_init()
    of_model = llama.llama_model_default_params()
    of_model.n_gpu_layers = 0
    model = llama.llama_model_load_from_file(str(gguf).encode(), of_model)
    if not model:
        raise DataError(f"{gguf} cannot be loaded by llama.cpp: {'; '.join(problems[-3:])}", "Convert it again.")
    try:
        parameters = llama.llama_context_default_params()
        parameters.n_ctx = parameters.n_batch = parameters.n_ubatch = CHUNK
        parameters.n_seq_max, parameters.kv_unified = _TOGETHER, True
        parameters.cb_eval = callback
        context = llama.llama_init_from_model(model, parameters)
        if not context:
            raise ExternalToolError(
                f"llama.cpp cannot evaluate {gguf}: {'; '.join(problems[-3:])}", "Try: tune2ollama doctor"
            )
        try:
            yield llama, context
        finally:
            llama.llama_free(context)
    finally:
        llama.llama_model_free(model)


def _packed(sequences: Sequence[Sequence[int]]) -> Iterator[list[Sequence[int]]]:
    """Sequences that are read together, each by itself: at most `CHUNK` tokens."""
    together: list[Sequence[int]] = []
    for sequence in sequences:
        if together and (len(together) == _TOGETHER or sum(map(len, together)) + len(sequence) > CHUNK):
            yield together
            together = []
        together.append(sequence)
    if together:
        yield together


def _decode(llama: Any, context: Any, sequences: Sequence[Sequence[int]]) -> bool:
    tokens = [(number, place, token) for number, one in enumerate(sequences) for place, token in enumerate(one)]
    batch = llama.llama_batch_init(len(tokens), 0, 1)
    try:
        batch.n_tokens = len(tokens)
        for i, (number, place, token) in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, place, 1
            batch.seq_id[i][0] = number
            batch.logits[i] = True  # the last layer computes only what is wanted of it
        return bool(llama.llama_decode(context, batch) == 0)
    finally:
        llama.llama_batch_free(batch)
