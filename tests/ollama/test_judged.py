"""A served model as a link of the chain: what passes, what is blamed, and in which words. Through a real Ollama."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import llama_cpp
import pytest

from tests.conftest import Server, free_port
from tests.ollama.test_conversations import LOOPED
from tests.ollama.tiny import special_texts, template_text, tiny_gguf
from toolkit.errors import DataError, ParityError
from toolkit.export.convert import protect_template
from toolkit.models.chat_template import render_trained
from toolkit.models.gguf_file import read_gguf
from toolkit.ollama import answers, served_model
from toolkit.ollama.client import Client
from toolkit.ollama.judged import Shown, subject_of, what_is_shown
from toolkit.ollama.own_model import OwnModel, Vocabulary
from toolkit.ollama.repair import mended_template, rewrite_template
from toolkit.ollama.served import Agreement, Question, _Follower
from toolkit.ollama.served_model import ServedModel, own_copy
from toolkit.ollama.server import started
from toolkit.ollama.trained import Trained
from toolkit.parity.certificate import Check, Measure, blame_of

NAME, LIMIT, SYSTEM = "judged", 12, "You are a nurse."
ASKED = ["Name two signs of a fever.", "什么是高血压？", "Write one word: 🙂"]
Messages = list[dict[str, str]]


def said(text: str, system: str = SYSTEM) -> Messages:
    """A golden's turns."""
    opening = [{"role": "system", "content": system}] if system else []
    return [*opening, {"role": "user", "content": text}]


def trained(folder: Path, gguf: Path, goldens: list[Messages], template: str = "", system: str = SYSTEM) -> Trained:
    """Goldens as the training template renders them; the answers are any tokens, only their number counts here."""
    vocabulary = Vocabulary(gguf)
    template = template or str(read_gguf(gguf).metadata["tokenizer.chat_template"])
    rows = []
    for messages in goldens:
        text = render_trained(template, messages, vocabulary.bos_text, vocabulary.eos_text)
        assert text is not None
        ids = vocabulary.tokenize(text)
        rows.append({
            "messages": messages, "prompt_text": text, "prompt_ids": ids, "completion_ids": [1] * LIMIT,
            "completion": "Rest. See a doctor.", "stopped": True,
        })  # fmt: skip
    vocabulary.close()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "golden.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return Trained(folder, system, template, "", LIMIT, (2,))


def show(client: Client, gguf: Path, wanted: Trained, parameters: dict[str, Any] | None = None, **fields: Any) -> Shown:
    """Create a model of a file, have it judged, remove it."""
    settings = {"num_ctx": 2048, "temperature": 0.0, "repeat_penalty": 1.0} | (parameters or {})
    request = {"files": {"m.gguf": client.upload(gguf)}, "system": wanted.system, "parameters": settings, **fields}
    client.create(NAME, {key: value for key, value in request.items() if value})
    try:
        return what_is_shown(ServedModel(client, NAME, client.show(NAME), gguf), wanted)
    finally:
        client.delete(NAME)


def check(shown: Shown, name: str) -> Check:
    """One check of what was shown."""
    return next(one for one in shown.checks if one.name == name)


def measure(found: Check, name: str) -> Measure:
    """One measure of a check."""
    return next(one for one in found.measures if one.name == name)


@pytest.mark.ollama
def test_a_file_that_was_mended_is_what_was_trained(ollama_server: Server, tmp_path: Path) -> None:
    # QwQ's template closes the thought when nothing is said; mended, it does so whatever is said.
    template = template_text("Qwen-QwQ-32B")
    gguf = tiny_gguf(tmp_path, "mended", mended_template(template))
    wanted = trained(tmp_path / "golden", gguf, [said(ASKED[0])], template)
    found = check(show(ollama_server.client, gguf, wanted), "prompts")
    assert found.verdict == "pass", found.message
    by_name = {(o["conversation"], o["endpoint"]): o["result"] for o in found.details["conversations"]}
    assert by_name["think", "/api/chat"] == by_name["no think", "/api/chat"] == "equal"
    # As it was, the file is served with an open thought: that is no false alarm.
    plain = tiny_gguf(tmp_path, "plain", template)
    assert check(show(ollama_server.client, plain, wanted), "prompts").verdict == "fail"


@pytest.mark.ollama
def test_another_model_of_the_same_file_that_is_still_loaded_is_no_fault(ollama_server: Server, tmp_path: Path) -> None:
    # Ollama answers with the process that it has for the file, and that one was started for a TEMPLATE of the other model's.
    client = ollama_server.client
    gguf = tiny_gguf(tmp_path, "looped", protect_template(LOOPED))
    swapped = "{{ range .Messages }}<{{ .Role }}>{{ .Content }}{{ end }}<assistant>"
    client.create("swapped", {"files": {"m.gguf": client.upload(gguf)}, "template": swapped})
    options = {"num_ctx": 2048, "num_predict": 1}
    client.chat("swapped", [{"role": "user", "content": "Hello"}], options=options, keep_alive="5m")
    wanted = trained(tmp_path / "golden", gguf, [said(text) for text in ASKED])
    found = check(show(client, gguf, wanted), "prompts")
    client.delete("swapped")
    assert found.verdict == "pass", found.message


@pytest.mark.ollama
def test_a_golden_with_a_system_text_of_its_own_is_asked_with_it(
    ollama_server: Server, small_gguf: Path, tmp_path: Path
) -> None:
    goldens = [said(ASKED[0]), said(ASKED[1], "You are a vet.")]
    wanted = trained(tmp_path, small_gguf, goldens)
    shown = show(ollama_server.client, small_gguf, wanted)
    assert [(one.name, one.verdict) for one in shown.checks] == [
        ("prompts", "pass"), ("ends", "pass"), ("answers", "pass"), ("defaults", "pass"),
    ]  # fmt: skip
    assert shown.rendered == 2
    turns = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hello."}]
    shown = show(ollama_server.client, small_gguf, wanted, messages=turns)
    assert (shown.rendered, check(shown, "prompts").verdict, check(shown, "answers").verdict) == (2, "pass", "pass")


@pytest.mark.ollama
def test_the_other_addresses_answer_too_and_are_counted(
    ollama_server: Server, small_gguf: Path, tmp_path: Path
) -> None:
    wanted = trained(tmp_path, small_gguf, [said(text) for text in ASKED])
    found = check(show(ollama_server.client, small_gguf, wanted), "answers")
    assert found.message == "3 answers, and 4 at other addresses, are those of llama.cpp on the same file"
    # Where a request cannot say another penalty, the model's own makes it another answer: told, and not asked.
    found = check(
        show(ollama_server.client, small_gguf, wanted, {"repeat_penalty": 1.5, "temperature": 0.7}), "answers"
    )
    assert found.verdict == "pass", found.message
    assert "3 answers, and 2 at other addresses" in found.message
    assert "apps that do not say temperature get 0.7" in found.message
    assert "apps that do not say repeat_penalty get 1.5" in found.message
    assert measure(found, "temperature").verdict is None


@pytest.mark.ollama
def test_a_limit_of_the_modelfile_that_cuts_answers(ollama_server: Server, small_gguf: Path, tmp_path: Path) -> None:
    wanted = trained(tmp_path, small_gguf, [said(ASKED[0])])
    shown = show(ollama_server.client, small_gguf, wanted, {"num_predict": 5})
    blame = blame_of([_subject(ollama_server.client, small_gguf, shown)])
    assert blame is not None
    assert (blame.link, blame.measure, blame.value, blame.limit) == ("server answers", "num_predict", 5, LIMIT)
    assert "the Modelfile's own limit cuts answers" in blame.message
    assert check(show(ollama_server.client, small_gguf, wanted, {"num_predict": -1}), "answers").verdict == "pass"
    assert check(show(ollama_server.client, small_gguf, wanted, {"num_predict": LIMIT}), "answers").verdict == "pass"


@pytest.mark.ollama
@pytest.mark.parametrize("word", [".", "\n", "doctor", "Zebra"])
def test_a_stop_word_that_is_no_end_is_blamed_by_name(
    ollama_server: Server, small_gguf: Path, tmp_path: Path, word: str
) -> None:
    wanted = trained(tmp_path, small_gguf, [said(ASKED[0])])
    shown = show(ollama_server.client, small_gguf, wanted, {"stop": ["<|im_end|>", word]})
    blame = blame_of([_subject(ollama_server.client, small_gguf, shown)])
    assert blame is not None
    assert (blame.link, blame.check, blame.measure) == ("server answers", "ends", "stop words that are no end")
    assert f"the stop word {word!r} is no end of the tuned model" in blame.message


@pytest.mark.ollama
def test_stop_words_that_are_ends_or_between_turns_are_right(
    ollama_server: Server, small_gguf: Path, tmp_path: Path
) -> None:
    wanted = trained(tmp_path, small_gguf, [said(ASKED[0])])
    stops = ["<|im_end|>", "<|im_start|>", "<|endoftext|>"]
    found = check(show(ollama_server.client, small_gguf, wanted, {"stop": stops}), "ends")
    assert found.verdict == "pass", found.message


def _subject(client: Client, gguf: Path, shown: Shown) -> Any:
    return subject_of(ServedModel(client, NAME, {}, gguf), shown)


@pytest.mark.ollama
def test_turns_of_the_modelfile_count_into_the_context(ollama_server: Server, small_gguf: Path, tmp_path: Path) -> None:
    wanted = trained(tmp_path, small_gguf, [said(ASKED[0])])
    long = [{"role": "user", "content": "one two three " * 80}, {"role": "assistant", "content": "Yes."}]
    shown = show(ollama_server.client, small_gguf, wanted, {"num_ctx": 256}, messages=long)
    assert [one.name for one in shown.checks] == ["ends", "answers"]
    assert shown.checks[1].message.startswith("num_ctx is 256, but golden prompts and answers need ")
    assert measure(shown.checks[1], "num_ctx").limit > 256  # type: ignore[operator]
    assert check(show(ollama_server.client, small_gguf, wanted, {"num_ctx": 256}), "answers").verdict == "pass"


@pytest.mark.ollama
def test_no_more_context_is_made_here_than_the_goldens_need(
    ollama_server: Server, small_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contexts: list[int] = []

    def own(gguf: Path, context: int) -> OwnModel:
        contexts.append(context)
        return OwnModel(gguf, context)

    monkeypatch.setattr(answers, "OwnModel", own)
    wanted = trained(tmp_path, small_gguf, [said(ASKED[0])])
    longest = len(json.loads((tmp_path / "golden.jsonl").read_text())["prompt_ids"])
    shown = show(ollama_server.client, small_gguf, wanted, {"num_ctx": 8192})
    assert check(shown, "answers").verdict == "pass"
    assert contexts == [longest + LIMIT]


@pytest.mark.ollama
def test_a_template_that_refuses_the_modelfiles_turns_is_a_failing_check(ollama_server: Server, tmp_path: Path) -> None:
    template = template_text("google-gemma-2-2b-it")  # turns must alternate, and none is the system's
    gguf = tiny_gguf(tmp_path, "gemma", template, "gemma-4")
    wanted = trained(tmp_path / "golden", gguf, [said(ASKED[0], "")], template, "")
    turns = [{"role": "user", "content": "Hello"}]
    (only,) = show(ollama_server.client, gguf, wanted, messages=turns).checks
    assert (only.name, only.verdict) == ("prompts", "fail")
    assert only.message == "the chat template refuses the Modelfile's MESSAGE turns"
    assert special_texts("gemma-4")[0] == "<bos>"


def test_a_file_without_end_tokens_that_is_stopped_is_said(small_gguf: Path) -> None:
    own = OwnModel(small_gguf, 64)
    own.end_ids = []
    question = Question([], "a", own.tokenize("a"))
    with pytest.raises(ParityError, match=r"the server stopped where llama\.cpp goes on: its choice is inf nats"):
        _Follower(own, (), Agreement(), "golden question 1").follow({"done_reason": "stop", "logprobs": []}, question)
    own.close()


@pytest.mark.parametrize("told_apart", [True, False])
def test_text_that_was_held_back_is_shown_with_the_end(
    small_gguf: Path, monkeypatch: pytest.MonkeyPatch, told_apart: bool
) -> None:
    """What could begin a stop word comes with the end, whose log-probability stands beside it. /api/chat tells of the token
    itself before, without a text; a raw answer does not."""
    own, agreement = OwnModel(small_gguf, 64), Agreement()
    question = Question([], "a", own.tokenize("Once upon a"))
    row = own.start(question.prompt_ids)
    held, its = int(row.argmax()), float(row.max())
    row = own.step([held])
    end, of_end, text, piece = int(row.argmax()), float(row.max()), own.piece(held).decode(), own.piece
    assert end != held and abs(of_end - its) > 0.01
    own.end_ids = [end]
    monkeypatch.setattr(own, "piece", lambda token, **more: b"" if token == end else piece(token, **more))
    told = [{"token": "", "logprob": its}] * told_apart + [{"token": text, "logprob": of_end}]
    answer = {"done_reason": "stop", "eval_count": 2, "logprobs": told}
    _Follower(own, (f"{text}stop",), agreement, "golden question 1").follow(answer, question)
    assert (agreement.tokens, agreement.largest_flip) == (len(told), 0.0) and agreement.largest < 1e-3
    own.close()


@pytest.fixture
def closed(tmp_path: Path) -> Iterator[Path]:
    """A file in a folder that this process may not enter, as Ollama's service keeps its models."""
    folder = tmp_path / "closed"
    folder.mkdir()
    (folder / "sha256-1").write_bytes(b"GGUF")
    for above in (tmp_path, *tmp_path.parents[:2]):
        above.chmod(0o755)
    folder.chmod(0o700 if os.geteuid() == 0 else 0)
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    yield folder / "sha256-1"
    if before == 0:
        os.seteuid(before)
    folder.chmod(0o700)


def test_a_copy_of_ollamas_that_is_not_to_be_read_is_no_crash(closed: Path) -> None:
    shown = {"modelfile": f"# made by ollama\nFROM {closed}\nSYSTEM x\n"}
    assert own_copy(shown) is None
    assert served_model._unreadable("m", shown) == f"the file behind m is not here, or not to be read by you: {closed}"
    assert "usermod -aG ollama" in served_model._HOW_TO_GET_IT and "--gguf FILE" in served_model._HOW_TO_GET_IT


@pytest.mark.ollama
def test_the_servers_own_copy_is_probed_in_a_child_before_it_is_opened_here(
    ollama_server: Server, small_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OLLAMA_HOST", ollama_server.address)
    probed: list[Path] = []
    monkeypatch.setattr(served_model, "probe", probed.append)
    client = ollama_server.client
    client.create(NAME, {"files": {"m.gguf": client.upload(small_gguf)}})
    copy = own_copy(client.show(NAME))
    assert copy is not None
    with served_model.served_model(NAME, tmp_path / "log", ()) as model:
        assert (model.file, probed) == (copy, [copy])
    # A file of the same bytes is judged anyway, and was probed for that.
    with served_model.served_model(NAME, tmp_path / "log", (small_gguf,)) as model:
        assert (model.file, probed) == (small_gguf, [copy])
    other = tiny_gguf(tmp_path, "other", "{{ messages }}")
    with served_model.served_model(NAME, tmp_path / "log", (other,)) as model:
        assert model.file == copy
    monkeypatch.setattr(served_model, "own_copy", lambda _: None)
    with served_model.served_model(NAME, tmp_path / "log", (other,)) as model:
        assert model.file == other
    with pytest.raises(DataError, match=f"the file behind {NAME} is not here"):
        served_model.served_model(NAME, tmp_path / "log", ()).__enter__()
    client.delete(NAME)


@pytest.fixture(scope="session")
def f16_gguf(smollm2_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All thirty layers at 16 bits, the template protected."""
    folder = tmp_path_factory.mktemp("f16")
    template = str(read_gguf(smollm2_gguf).metadata["tokenizer.chat_template"])
    protected = rewrite_template(smollm2_gguf, folder / "protected.gguf", protect_template(template))
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype, parameters.allow_requantize = 1, True  # LLAMA_FTYPE_MOSTLY_F16
    made = folder / "f16.gguf"
    assert llama_cpp.llama_model_quantize(str(protected).encode(), str(made).encode(), parameters) == 0
    return made


@pytest.mark.ollama
@pytest.mark.slow
def test_a_server_that_rounds_its_cache_is_noticed(ollama_binary: Path, f16_gguf: Path, tmp_path: Path) -> None:
    wanted = trained(tmp_path / "golden", f16_gguf, [said(text) for text in ASKED])
    right = check(_with_cache("f16", ollama_binary, f16_gguf, wanted, tmp_path), "answers")
    assert right.verdict == "pass", right.message
    assert measure(right, "the same, over all that is told").value < 2e-3
    found = check(_with_cache("q8_0", ollama_binary, f16_gguf, wanted, tmp_path), "answers")
    assert found.verdict == "fail", found.measures
    # Sound engines are 0.003 apart here, and the chosen tokens alone would tell 0.012.
    assert 0.015 < measure(found, "the same, over all that is told").value < 0.1
    assert "OLLAMA_KV_CACHE_TYPE should be f16" in found.message


def _with_cache(cache: str, binary: Path, gguf: Path, wanted: Trained, folder: Path) -> Shown:
    address = f"http://127.0.0.1:{free_port()}"
    environment = {
        "HOME": str(folder), "OLLAMA_MODELS": str(folder / "models"), "OLLAMA_KV_CACHE_TYPE": cache,
        "OLLAMA_FLASH_ATTENTION": "1",
    }  # fmt: skip
    with started(binary, address, folder / "log", environment), Client(address) as client:
        return show(client, gguf, wanted)
