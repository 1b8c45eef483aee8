"""What a stage wants later stages and people to know of what it left: one class per stage, and the files beside it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from toolkit.models.pictures import PictureRules
from toolkit.recipe.training import Objective


class Facts(BaseModel):
    """What a stage wants later stages and people to know. One class per stage."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class DatasetFacts(Facts):
    """Files: train.jsonl, validation.jsonl, test.jsonl, a row each: prompt, completion (of preference pairs chosen and rejected
    instead; label, of answers with one; tools, where it has some; of plain text only text) and source;
    dropped.jsonl, and found.jsonl: what people should know of rows that are kept."""

    rows: dict[str, int]
    """Rows per split: train, validation, test."""
    read: int
    kept: int
    dropped: dict[str, int]
    """Reason → rows."""
    repaired: dict[str, int]
    thoughts: int = 0
    """Rows whose answer holds a thought."""
    pictures: int = 0
    """Rows that show pictures; these are in images/, and the rows name them relative to the folder."""
    encodings: dict[str, str]
    """File (relative to the data path) → encoding it was read with."""
    formats: dict[str, str] = {}
    """File → the shape of its rows; see `toolkit.data.formats`."""
    found: dict[str, int] = {}
    """What was found in rows that are kept → how often; see `toolkit.data.findings`."""
    resembling: dict[str, int] = {}
    """validation, test → rows that resemble one that is trained on; empty where the split let none through."""
    sources: dict[str, int] = {}
    """Source → its rows in the training split, where there are several."""
    language: str
    """Two-letter code, as the rows are; see `toolkit.data.prepare`."""


class Quantization(Facts):
    """How the base's linear layers were quantized while the adapter was trained (bitsandbytes)."""

    quant_type: Literal["nf4"] = "nf4"
    blocksize: int = 64
    double_quantization: bool = True


class BaseFacts(Facts):
    """Which base model, exactly."""

    id: str
    """As the recipe spells it: embedded:…, a folder, or a hub id."""
    folder: str
    revision: str
    license: str
    digest: str
    """SHA-256 over the names and SHA-256 sums of config, tokenizer and safetensors files."""


class SourceLoss(Facts):
    """The held-out loss of one source's rows, in nats per answer token: of the base, and of the tuned model."""

    before: float
    after: float
    rows: int
    measured: int
    """Rows of it in the validation split that are short enough, and how many of them the losses are over."""


class AdapterFacts(Facts):
    """Files: a PEFT folder (or, for full fine-tuning, a whole HF folder), tokenizer and chat template, metrics.jsonl;
    forward.jsonl, what the trainer's own model lost on some rows (see `toolkit.train.forward`)."""

    method: Literal["qlora", "lora", "full"]
    objective: Objective = "sft"
    base: BaseFacts
    base_dtype: Literal["float32", "bfloat16", "float16"]
    """Type that the base's weights were loaded in, before any quantization; for method "full" the folder's own type too."""
    quantization: Quantization | None
    vocabulary: int | None = None
    """Rows of embedding and head, where the base was resized for new tokens; None: as the base has them."""
    stacked: int = 0
    """Further adapters, each trained on the one before it merged into the base: folders then-1, then-2, …"""
    chat_template_sha256: str
    chat_template_kwargs: Mapping[str, Any] = {}
    """What the template is told wherever it is rendered."""
    pictures: PictureRules | None = None
    """How the server shows pictures, as they were shown in training; None: a text model, or one that was trained on texts."""
    system: str
    trained_here: bool
    """False when another tool made the adapter (`export`)."""
    validation_loss_before: float | None = None
    validation_loss_after: float | None = None
    """Mean negative log-likelihood in nats per answer token on the first rows of the validation split."""
    validation_rows: int = 0
    validation_rows_measured: int = 0
    """Rows of the validation split that are short enough, and how many of them the losses are over; 0: not recorded."""
    validation_by_source: Mapping[str, SourceLoss | None] = {}
    """Source → its loss, where there are several; None: no row of it is held out, or none is short enough."""
    pair_accuracy: float | None = None
    """Of a reward model: the share of held-out pairs whose better answer it gives the larger number."""
    steps: int = 0
    best_step: int | None = None
    """Of early stopping: the step whose weights are kept, where the loss of held-out rows was lowest; None: the last."""
    train_rows: int = 0
    """Sequences: rows, or parts of them (see `rows_split`)."""
    answers: int = 0
    """Answers that were learnt; 0: one a row."""
    rows_split: int = 0
    """Rows in several sequences, since the chat template writes earlier turns otherwise than it wrote them as answers."""
    thoughts: int = 0
    """Answers that were trained with a thought before them."""
    calls: int = 0
    """Answers that call functions."""
    rows_too_long: int = 0
    """Of which something was left out for `train.max_length`; too_long.jsonl lists them."""
    trained_parameters: int = 0
    tokens_per_second: float = 0.0
    computed_in: Literal["float32", "bfloat16", "float16"] | None = None
    """The coarsest type that the training computed in; None: another tool trained, or an earlier version of this one."""
    trainer_loss: float | None = None
    """The last loss that another tool's trainer wrote into its trainer_state.json (nats per token, of rows unknown here)."""


class GoldenFacts(Facts):
    """Files: golden.jsonl, tuned.npy and base.npy (float32 logits, [positions, vocabulary]); where rows of the training are known
    also forward.jsonl and written.npy (see `toolkit.parity.golden.training_rows`)."""

    prompts: int
    positions: int
    """Teacher-forced positions over all completions; row i of the .npy files."""
    vocabulary: int
    end_tokens: list[int]
    forward: Literal["whole", "layer by layer"]
    stopped_by_themselves: int
    """How many greedy completions of the tuned model ended with an end token."""
    day: str = ""
    """Date on which the prompts were rendered (ISO 8601): some templates write it."""
    turn_end: int | None = None
    """The token that closes a turn in the chat template; one of `end_tokens`."""
    turn_marks: list[str] = []
    """What the template writes between an answer and the next question, in pieces; see `toolkit.models.ends.turn_marks`."""
    ends_told: str = ""
    """A sentence about the token that closes a turn, where the base does not list it as an end; empty where it does."""
    answers_median: int | None = None
    answers_longest: int | None = None
    """Tokens of the answers that were trained on, the end included; None: they are not known."""
    ends_after: int | None = None
    """Where all answers were cut: tokens after which one ended that was let go on; None where none did, or all was known."""
    chat_template_kwargs: Mapping[str, Any] = {}
    """What the template was told."""
    thoughts: int = 0
    """How many answers hold a thought that is not empty."""


class OntoFacts(Facts):
    """What was chosen to merge the adapter onto; no files."""

    onto: Literal["as trained", "16-bit"]
    loss_as_trained: float | None
    loss_on_16_bit: float | None
    """Held-out losses of the adapter on either base, in nats per answer token; None: there is one base only, or no row."""


class ModelFacts(Facts):
    """Files: a HF folder with the merged weights."""

    merged_onto: Literal["nf4", "16-bit", "as trained"]
    """nf4: the dequantized weights that a QLoRA adapter was trained on; 16-bit: the original weights."""
    dtype: str
    tensors: int
    merged_tensors: int
    parameters: int


class ImatrixFacts(Facts):
    """Files: imatrix.gguf, as llama.cpp's `llama-imatrix` writes it; see `toolkit.export.imatrix`."""

    sequences: int
    """Rows of the training split, or parts of them, that were read."""
    tokens: int
    tensors: int
    sha256: str


class GGUFFile(Facts):
    """One GGUF file inside an artifact's folder."""

    name: str
    file_type: str
    """As llama.cpp spells it: F32, F16, BF16, Q8_0, Q4_K_M, …"""
    bytes: int
    sha256: str
    fallback_tensors: int = 0
    """Tensors that could not take the file type's own quantization (row length no multiple of 256)."""
    tensors: int = 0


class GGUFFacts(Facts):
    """Files: one .gguf per entry."""

    files: list[GGUFFile]
    mmproj: GGUFFile | None = None
    """Of a model that sees: its projector, in the converted file's folder."""
    architecture: str
    template_protected: bool


class CertificateFacts(Facts):
    """Files: certificate.json, certificate.html, and where it passes the served GGUF with the summary in its metadata."""

    verdict: Literal["pass", "fail", "inconclusive"]
    checks: Mapping[str, str]
    """Check → verdict."""
    served_file: str
    """The GGUF (name) that the verdict lets go to Ollama."""
    served_mmproj: str = ""
    """The projector that goes with it, beside it in the artifact's folder; empty for a model that sees nothing."""
    message: str = ""
    """The verdict in one sentence: the link that broke, and how."""
    link: str = ""
    """The first link that broke; empty where none did."""
    passing: str = ""
    """The smallest file type that would pass where the served one does not; empty where none does."""


class OllamaFacts(Facts):
    """Files: Modelfile."""

    model: str
    """As it is asked for: `ollama run <model>`."""
    digest: str
    server_version: str
    published: bool
    """False when no Ollama is installed here: everything else is finished, `remaining` says what is left."""
    remaining: list[str]
    thinking: list[str] = []
    """Who gets which prompt, where an app may ask for thoughts or for none."""
    rendered_equal: int = 0
    """Golden prompts that the server rendered byte-identical to the training template."""
    conversations_equal: int = 0
    """Further conversations that it rendered so, over all addresses that apps use."""
    answers_compared: int = 0
    largest_logprob_difference: float | None = None
    """Served against llama-cpp-python, over the golden answers' greedy tokens (nats)."""


class EvaluationFacts(Facts):
    """Files: evaluation.json, answers.jsonl; see `toolkit.evaluate.stage`."""

    helped: Literal["helped", "harmed", "mixed", "undecided", "unknown"]
    forgot: Literal["forgot", "nothing seen", "unknown"]
    """unknown: it was not measured, or against no base."""
    rows: int
    """Held-out rows whose losses were measured."""
    questions: int
    """Of them, those that were asked for answers."""
    subjects: list[str]
    """Who was measured: base, tuned, exports by their file types, served."""
    sentences: list[str]


class ReportFacts(Facts):
    """Files: report.md, certificate.html, model_card.md, loss.png."""

    verdict: str
