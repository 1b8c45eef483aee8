"""Qwen2's tokenizer, from the vocabulary in the pinned llama.cpp tree: the same token ids as the published models have.

Not through transformers' class from vocabulary and merges, which numbers the special tokens in an order of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from toolkit.run.artifacts import write_json

VOCABULARY_ROWS = 151_936
"""Of the published models' embedding: the tokens, and rows to spare."""
OF_VISION = (
    "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>",
    "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
"""What Qwen2.5-VL has behind Qwen2's own special tokens, from 151646 on."""
END_OF_TEXT, TURN_START, TURN_END, VISION_START, VISION_END, IMAGE, VIDEO = (
    151_643, 151_644, 151_645, 151_652, 151_653, 151_655, 151_656,
)  # fmt: skip
# Qwen2's published pre-tokenizer: contractions, words, single digits, punctuation, line ends, spaces.
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_ORDINARY, _CONTROL, _ADDED = 1, 3, 4  # tokenizer.ggml.token_type


def write_tokenizer(folder: Path, vocabulary: Path, further: Sequence[str] = (), longest: int = 32_768) -> None:
    """Write `tokenizer.json` and `tokenizer_config.json`.

    Args:
        vocabulary: models/ggml-vocab-qwen2.gguf of the pinned tree.
        further: special tokens behind those of the vocabulary.
        longest: tokens that the model was made for.
    """
    import gguf
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    reader = gguf.GGUFReader(vocabulary)

    def value(key: str) -> list[str] | list[int]:
        field = reader.get_field(f"tokenizer.ggml.{key}")
        if field is None:
            raise ValueError(f"{vocabulary} has no tokenizer.ggml.{key}")
        return list(field.contents())

    tokens, kinds = [str(token) for token in value("tokens")], value("token_type")
    merges = [(left, right) for left, right in (str(merge).split(" ") for merge in value("merges"))]
    ordinary = {token: index for index, (token, kind) in enumerate(zip(tokens, kinds)) if kind == _ORDINARY}
    tokenizer = Tokenizer(models.BPE(vocab=ordinary, merges=merges))
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(_SPLIT), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    # The rest fills the matrix up.
    special = [t for t, kind in zip(tokens, kinds) if kind in (_CONTROL, _ADDED) and not t.startswith("[PAD")]
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in (*special, *further)])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": longest, "eos_token": tokens[TURN_END],
        "pad_token": tokens[END_OF_TEXT], "clean_up_tokenization_spaces": False,
    }  # fmt: skip
    write_json(folder / "tokenizer_config.json", settings)
