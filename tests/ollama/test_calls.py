"""Functions at a real server: the prompt byte for byte, and the calls that it tells apart against those that the model writes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.conftest import Server
from tests.ollama.tiny import special_texts, template_text, tiny_gguf, vocabulary_of
from tests.parity_chain import export, learn, recipe, scaled
from tests.small_models import adapter_artifact, tiny_adapter, tiny_llama
from toolkit.errors import ParityError
from toolkit.models.chat_template import render_trained
from toolkit.models.thinking import as_sent_back, marks_of
from toolkit.models.tools import Tools, as_sent
from toolkit.ollama.asked import Conversation, request_fields
from toolkit.ollama.calls import ADDRESSES, Asked, Shown, Writing, check_calls
from toolkit.ollama.conversations import rendered_at
from toolkit.ollama.own_model import OwnModel
from toolkit.ollama.repair import mended_template, rewrite_template
from toolkit.ollama.served import GREEDY
from toolkit.ollama.told import Told
from toolkit.train.rows import tokenize

OWN = (Path(__file__).parents[2] / "recipes" / "tools.jinja").read_text(encoding="utf-8")
ODD: Tools = [
    {
        "type": "function",
        "function": {"name": "nothing", "description": 'Ä <b> " 中', "parameters": {"type": "object", "properties": {}}},
    },
    {
        "type": "function",
        "function": {
            "name": "deep", "strict": True,
            "parameters": {
                "$defs": {"b": {"type": "string", "a": 1.0}}, "title": "T", "type": "object", "required": ["a", "z"],
                "properties": {
                    "z": {"type": ["string", "null"], "default": "x", "enum": ["b", None, 1.0, 2]},
                    "a": {"type": ["integer"], "minimum": 0},
                    "list": {"type": "array", "items": {"type": "object", "properties": {"q": {"type": "string"}, "b": {}}}},
                    "obj": {
                        "type": "object", "properties": {"y": {"type": "string", "format": "date"}},
                        "additionalProperties": False,
                    },
                },
            },
        },
    },
]  # fmt: skip
ARGUMENTS: dict[str, Any] = {
    "z": "é中<&>'\"\\ \n\t/", "a": 3.0, "f": 0.1, "big": 12345678901, "t": True, "n": None,
    "list": [{"q": "1", "b": 2.50, "a": []}], "obj": {"y": "2", "x": 1e3, "e": {}}, "small": 1e-7, "large": 1e21,
}  # fmt: skip
TALK: list[dict[str, Any]] = [
    {"role": "user", "content": "a"},
    {
        "role": "assistant", "content": "",
        "tool_calls": [{"id": "call00001", "type": "function", "function": {"name": "deep", "arguments": ARGUMENTS}}],
    },
    {"role": "tool", "name": "deep", "tool_call_id": "call00001", "content": '{"x": 1}'},
]  # fmt: skip


@pytest.mark.ollama
@pytest.mark.parametrize(
    "name",
    ["recipes/tools.jinja", "Qwen-Qwen2.5-7B-Instruct", "Qwen-Qwen3-0.6B", "Qwen3-Coder", "meta-llama-Llama-3.1-8B-Instruct",
     "mistralai-Mistral-Nemo-Instruct-2407", "openai-gpt-oss-120b", "GLM-4.6"],
)  # fmt: skip
def test_lists_of_functions_and_arguments_reach_the_template_as_training_has_them(
    ollama_server: Server, tmp_path: Path, name: str
) -> None:
    template = template_of(name)
    client, vocabulary = ollama_server.client, vocabulary_of(name)
    bos, eos, by_itself = special_texts(vocabulary)
    turns = as_sent_back(TALK, marks_of(template))
    wanted = render_trained(template, turns, bos, eos, as_sent(ODD))
    assert wanted is not None
    path = tiny_gguf(tmp_path, "odd", mended_template(template), vocabulary)
    client.create("odd", {"files": {"m.gguf": client.upload(path)}})
    try:
        # As an app may write them, and as goldens keep them.
        for messages, tools in ((TALK, ODD), (turns, as_sent(ODD))):
            for endpoint in ADDRESSES:
                request = request_fields(Conversation("odd", messages, tools), endpoint)
                assert isinstance(request, dict)
                assert rendered_at(client, "odd", endpoint, request) in {
                    wanted,
                    wanted.removeprefix(bos if by_itself else ""),
                }
    finally:
        client.delete("odd")


TOOLS: Tools = [
    {
        "type": "function",
        "function": {
            "name": "find_order", "description": "Find an order.",
            "parameters": {"type": "object", "properties": {"number": {"type": "integer"}, "year": {"type": "string"}},
                           "required": ["number"]},
        },
    }
]  # fmt: skip


def order(number: Any, **more: Any) -> dict[str, Any]:
    function = {"name": "find_order", "arguments": {"number": number, **more}}
    return {"id": "call00001", "type": "function", "function": function}


ANSWERS: dict[str, dict[str, Any]] = {
    "Where is order 12?": {"content": "", "tool_calls": [order(12, year='2025 é"')]},
    "Where are 3 and 4?": {"content": "", "tool_calls": [order(3), order(4)]},
    "Hello": {"content": "Hello, {what} can I do?"},
}
NOT_OFFERED = {"Where is order x?": {"content": "", "tool_calls": [order("x")]}}
"""Its number is no integer."""


def asked_of(template: str, bos: str = "", eos: str = "") -> list[Asked]:
    asked = []
    for question in ANSWERS | NOT_OFFERED:
        turns = [{"role": "user", "content": question}]
        prompt = render_trained(template, turns, bos, eos, as_sent(TOOLS))
        assert prompt is not None
        asked.append(Asked(question, turns, as_sent(TOOLS) or [], turns, prompt))
    return asked


def writing(template: str, silent: tuple[str, ...] = ("<|im_end|>",)) -> Writing:
    return Writing(template, {}, "", "", silent)


CALL = '<tool_call>\n{"name": "find_order", "arguments": {"number": 12, "year": "2025"}}\n</tool_call>'
GIVEN = [order(12, year="2025")]


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        (CALL, Told("", "", GIVEN)),
        (f"Let me look.\n{CALL}", Told("Let me look.", "", GIVEN)),
        (CALL.replace(": ", ":"), Told("", "", GIVEN)),  # the model's own spacing
        (
            '<tool_call>{"arguments": {"year": "2025", "number": 12}, "name": "find_order"}</tool_call>',
            Told("", "", GIVEN),
        ),
        ("It was sent.", Told("It was sent.", "", [])),
        ("It was sent.<|im_end|>", Told("It was sent.", "", [])),
    ],
)
def test_a_call_is_whole(raw: str, told: Told) -> None:
    assert writing(OWN).fits(asked_of(OWN)[0], raw, told)


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        (CALL, Told(CALL, "", [])),  # not told apart
        (CALL, Told("", "", [])),
        (CALL, Told("", "", [order(13, year="2025")])),
        (CALL, Told("", "", [order(12)])),
        (CALL, Told("", "", [*GIVEN, *GIVEN])),
        (f"Let me look.\n{CALL}", Told("", "", GIVEN)),
        ("It was sent.", Told("", "", GIVEN)),
        ("It was sent.", Told("It was", "", [])),
    ],
)
def test_a_call_is_not_whole(raw: str, told: Told) -> None:
    assert not writing(OWN).fits(asked_of(OWN)[0], raw, told)


def test_only_whole_calls_can_be_blamed_on_a_server() -> None:
    one, how = asked_of(OWN)[0], writing(OWN)
    assert how.readable(one, CALL) and how.readable(one, f"{CALL}\n{CALL}") and how.readable(one, "It was sent.")
    assert not how.readable(one, CALL[:40]) and not how.readable(one, f"{CALL}\n{CALL[:40]}")


SERVED = ["recipes/tools.jinja", "Qwen-Qwen2.5-7B-Instruct", "Qwen3-Coder", "LFM2.5-8B-A1B"]


def template_of(name: str) -> str:
    """The project's own, or one of the tree."""
    return OWN if name.endswith(".jinja") else template_text(name)


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model's file that was taught the answers in the words of each template, after that template's prompts."""
    folder = tmp_path_factory.mktemp("taught")
    base = tiny_llama(folder / "base")
    tokenizer = AutoTokenizer.from_pretrained(base)
    rows = [
        {
            "prompt": [{"role": "user", "content": question}],
            "completion": [{"role": "assistant", **answer}],
            "tools": TOOLS,
        }
        for question, answer in (ANSWERS | NOT_OFFERED).items()
    ]
    examples = []
    for name in SERVED:
        tokenizer.chat_template = template_of(name)
        examples += [one for row in rows for one in tokenize(tokenizer, row)]
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).train()
    model.get_input_embeddings().requires_grad_(False)
    assert learn(model, examples, 200, 3e-3, 0) < 0.05
    model.save_pretrained(base)
    nothing = scaled(tiny_adapter(base, folder / "adapter", r=4, alpha=4), folder / "nothing", 0.0)
    made = export(recipe(["F16"], "F16", base), adapter_artifact(nothing, base), folder / "made")
    return made.gguf.folder / made.gguf.facts.files[0].name


def served(server: Server, taught: Path, folder: Path, template: str) -> Shown:
    """The taught model with this template, asked through a server."""
    gguf = rewrite_template(taught, folder / "m.gguf", mended_template(template))
    own = OwnModel(gguf, 2048)
    silent = tuple(own.piece(token, special=True).decode(errors="replace") for token in own.control)
    how = Writing(template, {}, own.bos_text, own.eos_text, silent)
    asked, bos = asked_of(template, own.bos_text, own.eos_text), own.bos_text if own.adds_bos else ""
    own.close()
    client = server.client
    client.create(
        "calls", {"files": {"m.gguf": client.upload(gguf)}, "parameters": {"temperature": 0, "num_ctx": 2048}}
    )
    try:
        return check_calls(client, "calls", asked, how, bos, GREEDY, 96)
    finally:
        client.delete("calls")


@pytest.mark.ollama
@pytest.mark.slow
@pytest.mark.parametrize("name", SERVED)
def test_calls_are_told_apart_with_the_models_own_names_and_arguments(
    ollama_server: Server, taught: Path, tmp_path: Path, name: str
) -> None:
    found = served(ollama_server, taught, tmp_path, template_of(name))
    by_question = {one["question"]: one for one in found.examples}
    assert by_question["Hello"] == {"question": "Hello", "content": "Hello, {what} can I do?", "calls": []}
    arguments = [json.loads(text) for _, text in by_question["Where is order 12?"]["calls"]]
    assert arguments == [{"number": 12, "year": '2025 é"'}]
    assert [json.loads(text) for _, text in by_question["Where are 3 and 4?"]["calls"]] == [
        {"number": 3},
        {"number": 4},
    ]
    json_calls = name not in {"Qwen3-Coder", "LFM2.5-8B-A1B"}
    assert found.not_offered == json_calls and (found.cut, found.not_read <= 2 * (not json_calls)) == (0, True)
    # What calls are written in other ways than JSON is not known here, so all of them are compared.
    assert (found.answers + found.not_read, found.with_calls + found.not_read) == ((6, 4) if json_calls else (8, 6))


@pytest.mark.ollama
def test_another_list_of_functions_is_blamed(ollama_server: Server, tmp_path: Path) -> None:
    client, path = ollama_server.client, tiny_gguf(tmp_path, "calls", mended_template(OWN))
    client.create("calls", {"files": {"m.gguf": client.upload(path)}, "parameters": {"num_ctx": 2048}})
    bos, eos, _ = special_texts()
    one = asked_of(OWN, bos, eos)[0]
    other = replace(one, prompt=one.prompt.replace("Find an order.", "Find it."))
    try:
        with pytest.raises(ParityError, match="with its functions at /api/chat: from character"):
            check_calls(client, "calls", [other], writing(OWN), "", GREEDY, 4)
    finally:
        client.delete("calls")
