"""Does the export cut text into the same tokens?"""

from __future__ import annotations

import functools
import random
import unicodedata
from collections.abc import Callable
from typing import Any

from toolkit.parity.candidate import Candidate
from toolkit.parity.certificate import Check, Measure, lower_is_better
from toolkit.parity.metadata import Difference

RANDOM_TEXTS = 2000
SEED = 20260

_SCRIPTS = (
    (0x20, 0x7E),  # ASCII, twice: most text is
    (0x20, 0x7E),
    (0x30, 0x39),  # digits
    (0xA1, 0x17F),  # Latin with accents
    (0x391, 0x3C9),  # Greek
    (0x410, 0x44F),  # Cyrillic
    (0x5D0, 0x5EA),  # Hebrew
    (0x627, 0x64A),  # Arabic
    (0x905, 0x939),  # Devanagari
    (0x3041, 0x3096),  # Hiragana
    (0x4E00, 0x9FA5),  # Chinese
    (0xAC00, 0xD7A3),  # Korean
    (0x1F600, 0x1F64F),  # emoji
    (0x2010, 0x2027),  # punctuation
    (0xFF01, 0xFF5E),  # full width
)
_PIECES = (" ", "  ", "\n", "\n\n", "\t", " \n ", "'s", "'LL", "don't", "...", "123", "3.14", "1000000", "  indented")


def random_texts(count: int = RANDOM_TEXTS, special: list[str] | None = None, seed: int = SEED) -> list[str]:
    """Seeded texts of mixed scripts, spaces, digits and, in one of ten, special tokens.

    In Unicode normal form C, as users type: some HF tokenizers normalize, llama.cpp never does.
    """
    chooser = random.Random(seed)  # noqa: S311 - repeatable texts, no secrets
    texts = []
    for _ in range(count):
        parts = []
        for _ in range(chooser.randint(1, 8)):
            first, last = chooser.choice(_SCRIPTS)
            word = "".join(chr(chooser.randint(first, last)) for _ in range(chooser.randint(1, 8)))
            parts.append(chooser.choice(_PIECES) if chooser.random() < 0.3 else word)
            if chooser.random() < 0.5:
                parts.append(" ")
        if special and chooser.random() < 0.1:
            parts.insert(chooser.randint(0, len(parts)), chooser.choice(special))
        texts.append(unicodedata.normalize("NFC", "".join(parts)))
    return texts


def encode(tokenizer: Any, text: str, add_special: bool = False) -> list[int]:
    """Token ids of a HF tokenizer."""
    return list(tokenizer(text, add_special_tokens=add_special, verbose=False)["input_ids"])


def recorded_tokens_check(
    tokenizer: Any, trained: Any, recorded: list[tuple[str, list[int]]], end_tokens: list[int]
) -> Check:
    """The merged folder's tokenizer against the one trained with: the ids that were recorded, and its added tokens."""
    added = {token.content: [index] for index, token in trained.added_tokens_decoder.items()}
    different = _different(recorded, lambda text: encode(tokenizer, text))
    lost_added = _different(list(added.items()), lambda text: encode(tokenizer, text))
    lost = [token for token in end_tokens if tokenizer.convert_ids_to_tokens(token) is None]
    measures = [
        lower_is_better("prompts that differ", len(different), 0, 0),
        lower_is_better("added tokens that differ", len(lost_added), 0, 0),
        lower_is_better("end tokens lost", len(lost), 0, 0),
    ]
    different += lost_added
    message = _message(different, [], len(recorded) + len(added))
    return Check.of("tokens", measures, message, {"different": different[:5]})


def tokens_check(
    candidate: Candidate,
    tokenizer: Any,
    recorded: list[tuple[str, list[int]]],
    vocabulary: int,
    keys: list[Difference] | None = None,
) -> Check:
    """A GGUF's vocabulary against the HF tokenizer, and the recorded ids of golden prompts.

    Args:
        candidate: the GGUF; its vocabulary is enough.
        tokenizer: of the merged folder, itself compared with the one trained with.
        recorded: (text, ids) as the model was trained to read it.
        vocabulary: rows of the model's head.
        keys: of the tokenizer's metadata, those that are not what the converter writes.
    """
    keys = keys or []
    added = {token.content: index for index, token in tokenizer.added_tokens_decoder.items()}
    texts, beginnings = _random_texts_of(tokenizer, tuple(sorted(added)))
    groups: dict[str, tuple[list[tuple[str, list[int]]], Callable[[str], list[int]]]] = {
        "recorded prompts": (recorded, candidate.tokenize),
        "added tokens": ([(text, [index]) for text, index in added.items()], candidate.tokenize),
        "random texts": (texts, candidate.tokenize),
        # With the beginning-of-text token, as a server adds it: catches one too many or too few.
        "beginnings": (beginnings, lambda text: candidate.tokenize(text, add_special=True)),
        "prompts as a server reads them": (recorded, candidate.tokenize_as_server),
    }
    by_group = {group: _different(pairs, tokenize) for group, (pairs, tokenize) in groups.items()}
    spelled = _spelled_differently(candidate, tokenizer)
    measures = [lower_is_better(f"{group} that differ", len(found), 0, 0) for group, found in by_group.items()]
    measures.append(lower_is_better("tokens spelled differently", len(spelled), 0, 0))
    measures.append(
        Measure(
            name="vocabulary", value=candidate.vocabulary, limit=vocabulary,
            verdict="pass" if candidate.vocabulary == vocabulary else "fail",
        )
    )  # fmt: skip
    measures.append(lower_is_better("keys of the tokenizer that differ", len(keys), 0, 0))
    different = [found for group in by_group.values() for found in group]
    message = _message(different, spelled, sum(len(pairs) for pairs, _ in groups.values()))
    if candidate.vocabulary != vocabulary:
        message = f"the vocabulary has {candidate.vocabulary} tokens, the tuned model's {vocabulary}; {message}"
    if keys:
        only = all(m.verdict == "pass" for m in measures[:-2])
        told = "; ".join(key.told() for key in keys[:3])
        message = told if only else f"{message}; {told}"
    details = {
        "different": different[:5],
        "spelled_differently": spelled[:5],
        "keys": [key.told() for key in keys[:20]],
    }
    return Check.of("tokens", measures, message, details)


_Pairs = list[tuple[str, list[int]]]


@functools.lru_cache(maxsize=2)  # every file is compared with the same tokenizer
def _random_texts_of(tokenizer: Any, added: tuple[str, ...]) -> tuple[_Pairs, _Pairs]:
    """Random texts, and some of them as beginnings, each with its token ids."""
    texts = random_texts(special=list(added))
    beginnings = [text for text in texts[:20] if text.strip()]
    ids = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    return list(zip(texts, map(list, ids))), [(t, encode(tokenizer, t, add_special=True)) for t in beginnings]


def _different(pairs: list[tuple[str, list[int]]], tokenize: Callable[[str], list[int]]) -> list[dict[str, Any]]:
    found = ((text, wanted, tokenize(text)) for text, wanted in pairs)
    return [{"text": text, "wanted": wanted, "found": ids} for text, wanted, ids in found if ids != wanted]


def _spelled_differently(candidate: Candidate, tokenizer: Any) -> list[dict[str, Any]]:
    return [
        {"id": index, "wanted": text, "found": found}
        for index, text in enumerate(_spelled(tokenizer)[: candidate.vocabulary])
        if text is not None and (found := candidate.token_text(index)) != text
    ]


@functools.lru_cache(maxsize=2)
def _spelled(tokenizer: Any) -> list[str | None]:
    """Each token's text, as the tokenizer's files have it; None: no token has this id."""
    found: list[str | None] = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    return found


def _message(different: list[dict[str, Any]], spelled: list[dict[str, Any]], count: int) -> str:
    said = []
    if different:
        first = different[0]
        wanted, found = first["wanted"], first["found"]
        at = next((i for i, (a, b) in enumerate(zip(wanted, found)) if a != b), min(len(wanted), len(found)))
        ids = f"from token {at} on, {wanted[at : at + 6]} is {found[at : at + 6]}"
        said.append(f"{len(different)} of {count} texts differ; first {first['text'][:40]!r}: {ids}")
    if spelled:
        first = spelled[0]
        told = f"first {first['id']}: {first['wanted']!r} is {first['found']!r}"
        said.append(f"{len(spelled)} tokens are spelled differently; {told}")
    return "; ".join(said) or f"ids of {count} texts are equal"
