"""Characters of several tokens, through a real server: what it tells of them, and that neither a right file is refused for
them nor a wrong one hides behind them."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.conftest import Server, free_port
from tests.parity_chain import Export, blend, export, learn, recipe, record, scaled
from tests.small_models import TREE, adapter_artifact, tiny_adapter, tiny_llama
from toolkit.models.gguf_file import read_gguf
from toolkit.models.tokenizer import load_tokenizer
from toolkit.ollama.client import Client
from toolkit.ollama.judged import Shown, what_is_shown
from toolkit.ollama.own_model import Vocabulary, as_shown, begun
from toolkit.ollama.served_model import ServedModel
from toolkit.ollama.server import started
from toolkit.ollama.strength import served_strength
from toolkit.ollama.trained import Trained
from toolkit.parity.certificate import Check
from toolkit.recipe.schema import Recipe
from toolkit.run.artifacts import Artifact, read_jsonl
from toolkit.run.facts import GoldenFacts
from toolkit.train.model import load_tuned
from toolkit.train.rows import TokenizedRow

NAME, SYSTEM, LONGEST = "characters", "Answer.", 40
FAMILY, SCOTLAND = "👨\u200d👩\u200d👧\u200d👦", "🏴\U000e0067\U000e0062\U000e0073\U000e0063\U000e0074\U000e007f"
TEXTS = [
    f"{FAMILY} 👩\u200d⚕️ at work", f"🇫🇷🇩🇪🇯🇵 flags {SCOTLAND}", "👍🏽👋🏿🤝🏻 hands", "龘𠮷𪚥 are rare, 龘",
    "مرحبا، كيف حالك؟ بخير",
    "Mixed: é ñ 日本 🚢 ok ✅.", "สวัสดี and नमस्ते", "🙂🙃🙂🙃 😀", "a\u0301 e\u0308\u0301 Z\u0351\u036b", "Order 7 𝔰𝔞𝔦𝔩𝔰 ⛵️",
]  # fmt: skip
CONTROL = ["<file_sep>Tea <reponame>helps<filename>.", "Rest<gh_stars>"]
"""Answers with control tokens, of which a server shows nothing."""
HELD_BACK = ["Less is 3 <", "<", "a <|"]
"""Answers that end as a stop word begins, which a server shows only with their end."""
HALVES = [(b"Tea \xf0", b"\x9f"), (b"\x9f", b" then", b" tea"), (b"\xe9\xbe", b" cut", b" \xf0", b"\x9f")]
"""Answers that end or begin with a part of a character, in the bytes of their tokens' texts."""
MADE = ["F16", "Q8_0"]


@dataclass
class Odd:
    """A small model that was tuned to say such texts."""

    recipe: Recipe
    golden: Artifact[GoldenFacts]
    export: Export
    lost: Path

    def file(self, file_type: str) -> Path:
        artifact = self.export.gguf if file_type == "F16" else self.export.quantized
        return artifact.folder / artifact.facts.files[0].name

    def trained(self, limit: int = LONGEST) -> Trained:
        template = str(read_gguf(self.file("F16")).metadata["tokenizer.chat_template"])
        facts = self.golden.facts
        return Trained(self.golden.folder, SYSTEM, template, facts.day, limit, tuple(facts.end_tokens))


def answers(folder: Path) -> list[list[int]]:
    """Token ids of the odd answers, each with its end token."""
    tokenizer = load_tokenizer(folder)
    of_bytes = {bytes_of(tokenizer, token): token for token in range(len(tokenizer))}
    texts = [tokenizer(text, add_special_tokens=False).input_ids for text in [*TEXTS, *CONTROL, *HELD_BACK]]
    halves = []
    for pieces in HALVES:
        ids: list[int] = []
        for piece in pieces:
            ids += [of_bytes[piece]] if piece in of_bytes else [of_bytes[bytes([one])] for one in piece]
        halves.append(ids)
    return [[*ids, tokenizer.eos_token_id] for ids in [*texts, *halves]]


def bytes_of(tokenizer: object, token: int) -> bytes:
    """Of a byte-level vocabulary."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters = {letter: byte for byte, letter in bytes_to_unicode().items()}
    text = tokenizer.convert_ids_to_tokens(token)  # type: ignore[attr-defined]
    return bytes(letters[letter] for letter in text) if all(letter in letters for letter in text) else text.encode()


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Odd:
    """A base that says each text to the question before, and an adapter that puts them right."""
    folder = tmp_path_factory.mktemp("odd")
    base = tiny_llama(folder / "base")
    tokenizer, said = load_tokenizer(base), answers(base)
    asked = [f"Question {number}?" for number in range(len(said))]
    chosen = recipe(MADE, "Q8_0", base, system=SYSTEM)
    golden = chosen.golden.model_copy(update={"prompts": asked, "max_new_tokens": LONGEST})
    chosen = chosen.model_copy(update={"golden": golden})

    def rows(shift: int) -> list[TokenizedRow]:
        prompts = [
            tokenizer.apply_chat_template(
                [{"role": "system", "content": SYSTEM}, {"role": "user", "content": text}],
                add_generation_prompt=True, return_dict=False,
            )
            for text in asked
        ]  # fmt: skip
        return [
            TokenizedRow.one_answer([*ids, *said[(i + shift) % len(said)]], len(ids)) for i, ids in enumerate(prompts)
        ]

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).train()
    model.get_input_embeddings().requires_grad_(False)
    assert learn(model, rows(1), 120, 3e-3, 0) < 0.3
    model.save_pretrained(base)
    made = tiny_adapter(base, folder / "adapter", r=8, alpha=16)
    tuned, _ = load_tuned(adapter_artifact(made, base))
    for name, parameter in tuned.named_parameters():
        parameter.requires_grad_("lora_" in name)
        if "lora_B" in name:
            parameter.data.zero_()
    assert learn(tuned.train(), rows(0), 80, 5e-3, 1) < 0.5
    tuned.save_pretrained(made)
    artifact = adapter_artifact(made, base, system=SYSTEM)
    only = chosen.model_copy(
        update={"export": chosen.export.model_copy(update={"file_types": ["F16"], "serve": "F16"})}
    )
    bare = export(only, adapter_artifact(scaled(made, folder / "lost", 0.0), base), folder / "without")
    found = Odd(
        chosen, record(chosen, artifact, folder / "golden"), export(chosen, artifact, folder / "right"),
        bare.gguf.folder / bare.gguf.facts.files[0].name,
    )  # fmt: skip
    recorded = [row["completion_ids"] for row in read_jsonl(found.golden.folder / "golden.jsonl")]
    assert sum(ids == wanted for ids, wanted in zip(recorded, said)) >= 12, "it did not learn to say them"
    return found


def shown(client: Client, served: Path, judged: Path, wanted: Trained) -> Shown:
    """What a server shows of one file, judged by another."""
    settings = {"num_ctx": 2048, "temperature": 0.0, "repeat_penalty": 1.0}
    client.create(NAME, {"files": {"m.gguf": client.upload(served)}, "system": SYSTEM, "parameters": settings})
    try:
        return what_is_shown(ServedModel(client, NAME, client.show(NAME), judged), wanted)
    finally:
        client.delete(NAME)


def answers_of(found: Shown) -> Check:
    """The check of the answers."""
    return next(check for check in found.checks if check.name == "answers")


@pytest.mark.parametrize(
    ("text", "waiting", "told"),
    [
        (b"", 0, ""), (b"a", 0, "a"), ("🚢".encode(), 0, "🚢"), (b"\xf0\x9f", 2, ""), (b" \xf0", 1, " "), (b"\x9f\xa2", 0, "��"),
        ("é".encode()[:1], 1, ""), (b"\xf0a", 2, ""), (b"\xf0abc", 0, "�abc"),
        ("龘a".encode(), 0, "龘a"), (b"\xed\xa0\x80", 0, "���"),
    ],
)  # fmt: skip
def test_what_a_server_shows_of_bytes(text: bytes, waiting: int, told: str) -> None:
    assert (begun(text), as_shown(text)) == (waiting, told)


@pytest.mark.parametrize("name", ["llama-spm", "gemma-4", "phi-3", "qwen2", "llama-bpe"])
def test_a_text_that_is_shown_is_its_token_again(name: str) -> None:
    vocabulary = Vocabulary(TREE / "models" / f"ggml-vocab-{name}.gguf")
    for text in (",", "a", " a", "Drink", " Drink", ".", "\n", "\n\n", "的", "0"):
        tokens = vocabulary.tokens_shown(text)
        assert b"".join(map(vocabulary.piece, tokens)).decode() == text, tokens
        held = [t for t in range(vocabulary.size) if vocabulary.piece(t) == text.encode()]
        assert len(tokens) == 1 or not held, (text, tokens, held)
    ship = vocabulary.tokens_shown("🚢")
    assert b"".join(map(vocabulary.piece, ship)).decode() == "🚢"
    vocabulary.close()


@pytest.mark.ollama
def test_the_texts_that_a_server_tells_are_the_ones_that_are_expected(ollama_server: Server, odd: Odd) -> None:
    # Whole and half characters alike, among twenty alternatives at each place of the odd answers.
    vocabulary, client = Vocabulary(odd.file("F16")), ollama_server.client
    client.create(NAME, {"files": {"m.gguf": client.upload(odd.file("F16"))}, "system": SYSTEM})
    options = {"temperature": 1.5, "num_predict": LONGEST, "num_ctx": 2048}
    told: list[dict[str, object]] = []
    for seed in range(12):
        asked = {"role": "user", "content": f"Question {seed}?"}
        answer = client.chat(NAME, [asked], options=options | {"seed": seed}, logprobs=True, top_logprobs=20)
        told += [top for entry in answer.get("logprobs") or [] for top in entry["top_logprobs"]]
    client.delete(NAME)
    texts = {str(top["token"]) for top in told}
    assert texts <= set(vocabulary.shown_as)
    assert {"", "�"} <= texts and not {"", "�"} & set(vocabulary.token_of)
    # The bytes that are told are those of the text, so they hold no more.
    assert all(bytes(top.get("bytes") or []) == str(top["token"]).encode() for top in told)
    vocabulary.close()


@pytest.mark.ollama
@pytest.mark.slow
@pytest.mark.parametrize("file_type", MADE)
def test_right_files_pass(ollama_server: Server, odd: Odd, file_type: str) -> None:
    found = shown(ollama_server.client, odd.file(file_type), odd.file(file_type), odd.trained())
    assert [(one.name, one.verdict) for one in found.checks] == [
        ("prompts", "pass"),
        ("ends", "pass"),
        ("answers", "pass"),
        ("defaults", "pass"),
    ], [one.message for one in found.checks]
    assert found.agreement.answers == len(TEXTS) + len(CONTROL) + len(HELD_BACK) + len(HALVES)
    assert found.agreement.mean_told < 2e-3 and found.agreement.largest_flip < 0.05


@pytest.mark.ollama
@pytest.mark.slow
def test_answers_that_are_cut_anywhere_pass(ollama_server: Server, odd: Odd) -> None:
    for limit in (1, 2, 3, 4, 6, 9, 13):
        found = shown(ollama_server.client, odd.file("F16"), odd.file("F16"), odd.trained(limit))
        assert answers_of(found).verdict == "pass", (limit, answers_of(found).message)


@pytest.mark.ollama
@pytest.mark.slow
def test_another_model_is_seen(ollama_server: Server, ollama_binary: Path, odd: Odd, tmp_path: Path) -> None:
    client, right = ollama_server.client, odd.file("F16")
    halved = tmp_path / "half.gguf"
    shutil.copy(right, halved)
    blend(halved, odd.lost, 0.5)
    for other in (halved, odd.lost):
        found = shown(client, other, right, odd.trained())
        assert answers_of(found).verdict == "fail", other
    nearly = tmp_path / "nearly.gguf"
    shutil.copy(right, nearly)
    blend(nearly, odd.lost, 0.8)
    found = shown(client, nearly, right, odd.trained())
    assert answers_of(found).verdict == "fail", answers_of(found).measures
    address = f"http://127.0.0.1:{free_port()}"
    environment = {"HOME": str(tmp_path), "OLLAMA_MODELS": str(tmp_path / "models")}
    environment |= {"OLLAMA_KV_CACHE_TYPE": "q4_0", "OLLAMA_FLASH_ATTENTION": "1"}
    with started(ollama_binary, address, tmp_path / "log", environment), Client(address) as rounded:
        found = shown(rounded, right, right, odd.trained())
    assert answers_of(found).verdict == "fail", answers_of(found).measures


@pytest.mark.ollama
@pytest.mark.slow
def test_the_strength_is_told_from_whole_tokens(ollama_server: Server, odd: Odd, tmp_path: Path) -> None:
    client, halved = ollama_server.client, tmp_path / "half.gguf"
    shutil.copy(odd.file("F16"), halved)
    blend(halved, odd.lost, 0.5)
    vocabulary = Vocabulary(odd.file("F16"))
    found = {}
    for name, file in (("whole", odd.file("F16")), ("Q8_0", odd.file("Q8_0")), ("half", halved), ("lost", odd.lost)):
        client.create(NAME, {"files": {"m.gguf": client.upload(file)}, "parameters": {"num_ctx": 1024}})
        found[name] = served_strength(client, NAME, odd.golden.folder, vocabulary)
        client.delete(NAME)
    vocabulary.close()
    positions = sum(len(row["completion_ids"]) for row in read_jsonl(odd.golden.folder / "golden.jsonl"))
    for one in found.values():
        assert one.strength is not None
        assert one.positions + one.skipped + one.left == positions
    values = {name: one.strength.value for name, one in found.items() if one.strength is not None}
    assert values["whole"] == pytest.approx(1, abs=0.005)
    assert values["Q8_0"] == pytest.approx(1, abs=0.03)
    assert values["half"] < 0.85
    assert values["lost"] == pytest.approx(0, abs=0.03)
