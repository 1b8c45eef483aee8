"""Tokenizers for the families: the real ones of the llama.cpp tree, and borrowed ones with a family's own marks.

A byte-level BPE is told apart by the converter through a hash of what it makes of one text, so its vocabulary stays whole;
SentencePiece's and Gemma 4's are known by name, and may be cut.
"""

from __future__ import annotations

import functools
import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from tests.small_models import EMBEDDED
from tests.spm_tokenizers import TREE, bpe_of_pieces, in_cache, write_model
from toolkit.models.bases import resolve_base
from toolkit.models.gguf_file import read_gguf
from toolkit.run.artifacts import text_sha256

Source = Literal["smollm2", "qwen2", "qwen35", "llama-bpe", "gemma-4", "llama-spm"]
VERSION = 3
TEMPLATES = Path(__file__).with_name("templates")
_LETTERS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?"
_REST = r"[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SPLITS = {
    "qwen2": _LETTERS + r"\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+" + _REST,
    "qwen35": _LETTERS + r"[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+" + _REST,
    "llama-bpe": _LETTERS + r"\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+" + _REST,
}
"""The published pre-tokenizers, as llama.cpp quotes them in llama-vocab.cpp."""
_CUT: dict[str, int] = {"gemma-4": 8_192, "llama-spm": 32_000}
_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4


@dataclass(frozen=True)
class Vocabulary:
    """Which tokens a family's model gets, and how its turns are written."""

    source: Source
    template: str
    """By its file's name: one of the tree's, or one in `templates` beside this file (the published form, in short)."""
    end: str
    """What ends an answer: the tokenizer's `eos_token`."""
    own: bool = True
    """Whether the published models of the family have this vocabulary."""
    bos: str | None = None
    pad: str | None = None
    """By default the same as `end`."""
    bos_first: bool = False
    """Whether the tokenizer puts `bos` before a text by itself."""
    marks: tuple[str, ...] = ()
    """Control tokens behind the vocabulary of a borrowed one."""
    words: tuple[str, ...] = ()
    """Added tokens that are text, such as `<think>`."""
    renamed: dict[int, str] = field(default_factory=dict)
    """Other texts for reserved ids: a distillate's marks in its base's vocabulary."""
    tokenizer_class: str = "PreTrainedTokenizerFast"


def put_vocabulary(vocabulary: Vocabulary, folder: Path) -> int:
    """Write a tokenizer and its chat template into `folder`; gives the number of its tokens. Built once, kept in the cache."""
    key = text_sha256(json.dumps(asdict(vocabulary), sort_keys=True))[:12]
    name = f"family-tokenizer-{VERSION}-{vocabulary.source}-{key}"
    kept = in_cache(name, functools.partial(_write, vocabulary))
    shutil.copytree(kept, folder, dirs_exist_ok=True)
    return int(Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size())


def is_of_the_tree(template: str) -> bool:
    """Whether a template is one that the llama.cpp tree holds as it was published."""
    return not (TEMPLATES / f"{template}.jinja").is_file()


def template_of(vocabulary: Vocabulary) -> str:
    """The family's chat template."""
    for folder in (TEMPLATES, TREE / "models" / "templates"):
        path = folder / f"{vocabulary.template}.jinja"
        if path.is_file():
            return path.read_text(encoding="utf-8")
    raise FileNotFoundError(vocabulary.template)


def _write(vocabulary: Vocabulary, folder: Path) -> None:
    match vocabulary.source:
        case "smollm2":
            base = Path(resolve_base(EMBEDDED).folder)
            tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
            names: list[str] = []
        case "llama-spm":
            tokenizer, names = _pieces(folder)
        case "gemma-4":
            tokenizer, names = _gemma4()
        case source:
            tokenizer, names = _byte_level(source, vocabulary.renamed)
    special = [*names, *vocabulary.marks]
    for name in [*special, *vocabulary.words]:
        text = name in vocabulary.words  # `add_special_tokens` makes every token special, whatever it is told
        (tokenizer.add_tokens if text else tokenizer.add_special_tokens)([AddedToken(name, normalized=False)])
    if vocabulary.bos_first and vocabulary.bos:
        first = processors.TemplateProcessing(
            single=f"{vocabulary.bos} $A",
            pair=f"{vocabulary.bos} $A $B",
            special_tokens=[(vocabulary.bos, tokenizer.token_to_id(vocabulary.bos))],
        )
        after = [processors.ByteLevel(trim_offsets=False)] if isinstance(tokenizer.decoder, decoders.ByteLevel) else []
        tokenizer.post_processor = processors.Sequence([*after, first])
    tokenizer.save(str(folder / "tokenizer.json"))
    for name in [vocabulary.end, *([vocabulary.bos] if vocabulary.bos else [])]:
        assert tokenizer.token_to_id(name) is not None, name
    settings: dict[str, Any] = {
        "tokenizer_class": vocabulary.tokenizer_class, "model_max_length": 32_768, "clean_up_tokenization_spaces": False,
        "eos_token": vocabulary.end, "pad_token": vocabulary.pad or vocabulary.end,
        "bos_token": vocabulary.bos, "add_bos_token": vocabulary.bos_first,
        "added_tokens_decoder": {
            str(i): {"content": t.content, "special": t.special, "normalized": False, "lstrip": False, "rstrip": False,
                     "single_word": False}
            for i, t in sorted(tokenizer.get_added_tokens_decoder().items())
        },
    }  # fmt: skip
    if vocabulary.source == "gemma-4":
        settings["extra_special_tokens"] = special  # as published: so the converter knows control tokens
    if vocabulary.source == "llama-spm":
        settings |= {"unk_token": "<unk>", "add_prefix_space": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1), encoding="utf-8")
    (folder / "chat_template.jinja").write_text(template_of(vocabulary), encoding="utf-8")


@functools.cache
def _metadata(source: str) -> dict[str, Any]:
    return read_gguf(TREE / "models" / f"ggml-vocab-{source}.gguf").metadata


def _byte_level(source: str, renamed: dict[int, str]) -> tuple[Tokenizer, list[str]]:
    metadata = _metadata(source)
    tokens, kinds = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    # Type 1: ordinary tokens; 3 and 4: control and added ones; the rest are fillers up to the size of the matrix.
    ordinary = {text: i for i, (text, kind) in enumerate(zip(tokens, kinds)) if kind == _NORMAL}
    assert list(ordinary.values()) == list(range(len(ordinary))), source
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab=ordinary, merges=merges, ignore_merges=source == "llama-bpe"))
    if source != "llama-bpe":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLITS[source]), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    last = max([*renamed, *(i for i, kind in enumerate(kinds) if kind == _CONTROL)])
    names = []
    for i in range(len(ordinary), last + 1):
        filler = tokens[i].startswith("[PAD")
        names.append(renamed.get(i, f"<|unused_{i}|>" if filler else tokens[i]))
    return tokenizer, names


def _pieces(folder: Path) -> tuple[Tokenizer, list[str]]:
    metadata = _metadata("llama-spm")
    size = _CUT["llama-spm"]
    pieces, scores, kinds = (metadata[f"tokenizer.ggml.{key}"][:size] for key in ("tokens", "scores", "token_type"))
    write_model(folder / "tokenizer.model", pieces, scores, kinds)
    return bpe_of_pieces(pieces, scores), ["<unk>", "<s>", "</s>"]


def _gemma4() -> tuple[Tokenizer, list[str]]:
    metadata = _metadata("gemma-4")
    size = _CUT["gemma-4"]
    whole: list[str] = metadata["tokenizer.ggml.tokens"]
    # Its single characters stand behind everything that is made of them.
    letters = [text for text in whole[size:] if (len(text) == 1 and text < "ʀ") or text == "▁"]
    tokens = [*whole[: size - len(letters)], *letters]
    kinds = metadata["tokenizer.ggml.token_type"][: size - len(letters)]
    ids = {text: i for i, text in enumerate(tokens)}
    # A merge of the file is two pieces with a space between them; pieces may hold line ends and tabs, but no space.
    pairs = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    merges = [(a, b) for a, b in pairs if a in ids and b in ids and a + b in ids]
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer, [text for text, kind in zip(tokens, kinds, strict=False) if kind in (_CONTROL, _USER_DEFINED)]
