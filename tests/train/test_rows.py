"""Several turns and calls: what is learnt is every answer, after the very tokens that a server shows before it."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import AutoTokenizer

from tests.ollama.tiny import TEMPLATES, template_text
from tests.small_models import tiny_llama
from toolkit.errors import DataError
from toolkit.models.chat_template import generated_texts
from toolkit.models.ends import turn_end
from toolkit.models.thinking import as_sent_back, marks_of
from toolkit.models.tools import CALL_ID, as_sent, cannot_write, wants
from toolkit.train.rows import TokenizedRow, tokenize, tokenized
from toolkit.train.told import look_at, told

NAMES = sorted(path.stem for path in TEMPLATES.glob("*.jinja"))
TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "find_order",
            "description": "Find an order.",
            "strict": True,
            "parameters": {
                "type": "object",
                "properties": {"number": {"type": "integer", "minimum": 1}, "year": {"type": "string"}},
                "required": ["number"],
                "additionalProperties": False,
            },
        },
    }
]


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def says(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


def calls(text: str = "", **arguments: Any) -> dict[str, Any]:
    call = {"id": CALL_ID, "type": "function", "function": {"name": "find_order", "arguments": arguments}}
    return says(text, tool_calls=[call])


def result(text: str) -> dict[str, Any]:
    return {"role": "tool", "name": "find_order", "tool_call_id": CALL_ID, "content": text}


def row(prompt: list[dict[str, Any]], completion: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    return {"prompt": prompt, "completion": completion, "source": {"file": "talks.jsonl", "line": 7}, **more}


SEVERAL = row(
    [user("My screen flickers.")],
    [says("Is it plugged in?"), user("Yes."), says("Then restart it."), user("It works!"), says("Good to hear.")],
)
CALLING = row(
    [user("Where is order 12?")],
    [
        calls(number=12, year="2025"),
        result('{"state": "sent"}'),
        says("It was sent."),
        user("Thanks!"),
        says("Any time."),
    ],
    tools=TOOLS,
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return AutoTokenizer.from_pretrained(tiny_llama(tmp_path_factory.mktemp("base") / "base"))


def with_template(tokenizer: Any, template: str) -> Any:
    tokenizer.chat_template = template
    return tokenizer


def learnt(tokenizer: Any, found: list[TokenizedRow]) -> list[list[str]]:
    """The texts that are learnt, of each sequence."""
    return [[tokenizer.decode(one.input_ids[begin:end]) for begin, end in one.spans] for one in found]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("chosen", [SEVERAL, CALLING], ids=["several turns", "calls"])
def test_before_every_answer_stand_the_tokens_of_the_prompt_that_a_server_renders(
    tokenizer: Any, name: str, chosen: dict[str, Any]
) -> None:
    with_template(tokenizer, template_text(name))
    lacking = wants(chosen) & cannot_write(tokenizer.chat_template)
    try:
        found = tokenize(tokenizer, chosen)
    except DataError as error:
        refused = "refuses a row" in error.message
        other = "as it is" in error.message or "renders a prompt alone differently" in error.message
        assert lacking or refused or other, error.message
        assert error.message.startswith("talks.jsonl:7: ")
        pytest.skip(error.message)
    assert not lacking
    marks, end = marks_of(tokenizer.chat_template), turn_end(tokenizer)
    spans = [(one, span) for one in found for span in one.spans]
    places = [place for place, turn in enumerate(chosen["completion"]) if turn["role"] == "assistant"]
    assert len(spans) == len(places)
    for place, (one, (begin, behind)) in zip(places, spans):
        before = as_sent_back([*chosen["prompt"], *chosen["completion"][:place]], marks)
        prompt = tokenizer.apply_chat_template(
            before, tokenize=False, add_generation_prompt=True, tools=as_sent(chosen.get("tools"))
        )
        assert one.input_ids[:begin] == tokenizer(prompt, add_special_tokens=False)["input_ids"]
        text = tokenizer.decode(one.input_ids[begin:behind])
        turn = chosen["completion"][place]
        assert turn["content"] in text and (not turn.get("tool_calls") or ("find_order" in text and "2025" in text))
        assert end is None or end.token in one.input_ids[begin:behind] or not end.written
        assert [label for label in one.labels[begin:behind]] == one.input_ids[begin:behind]
    for one in found:
        assert one.learnt == sum(label >= 0 for label in one.labels) and one.first == one.spans[0][0]


def test_one_sequence_where_the_template_goes_on_and_several_where_it_writes_history_otherwise(tokenizer: Any) -> None:
    with_template(tokenizer, template_text("Qwen-Qwen2.5-7B-Instruct"))
    (answers,) = learnt(tokenizer, tokenize(tokenizer, SEVERAL))
    assert answers == [f"{text}<|im_end|>\n" for text in ("Is it plugged in?", "Then restart it.", "Good to hear.")]
    (answers,) = learnt(tokenizer, tokenize(tokenizer, CALLING))
    written = '{"name": "find_order", "arguments": {"number": 12, "year": "2025"}}'
    assert answers[0] == f"<tool_call>\n{written}\n</tool_call><|im_end|>\n"

    with_template(tokenizer, template_text("Qwen-Qwen3-0.6B"))
    found = tokenize(tokenizer, SEVERAL)
    assert len(found) == 3
    empty = "<think>\n\n</think>\n\n"
    assert learnt(tokenizer, found)[1] == [f"{empty}Then restart it.<|im_end|>\n"]
    assert empty not in tokenizer.decode(found[1].input_ids[: found[1].first])
    # Within one round of calls Qwen3 leaves its thoughts where they are, but Ollama does not send them back.
    thinking = row(
        [user("12?")], [{**calls(number=1, year="2025"), "thinking": "Look."}, result("x"), says("y")], tools=TOOLS
    )
    found = tokenize(tokenizer, thinking)
    assert len(found) == 2 and "Look." not in tokenizer.decode(found[1].input_ids)
    said = look_at(tokenizer, [SEVERAL, thinking])
    assert (said.rows, said.answers, said.sequences, said.split, said.calls, said.earlier) == (2, 5, 5, 2, 1, 1)
    lines = told(said)
    assert lines[1].startswith(
        "2 rows are learnt in several sequences, 5 in all: the chat template writes earlier turns"
    )
    assert "additionalProperties, minimum, strict: Ollama does not pass that on" in lines[3]


def test_a_template_that_does_not_close_turns_is_closed_and_split(tokenizer: Any) -> None:
    with_template(tokenizer, "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:")
    found = tokenize(tokenizer, SEVERAL)
    assert len(found) == 3 and all(one.input_ids[-1] == tokenizer.eos_token_id for one in found)


def test_answers_behind_max_length_are_left_out_and_listed(tokenizer: Any) -> None:
    with_template(tokenizer, template_text("Qwen-Qwen2.5-7B-Instruct"))
    (whole,) = tokenize(tokenizer, SEVERAL)
    kept, long = tokenized(tokenizer, [SEVERAL, SEVERAL], whole.spans[1][1])
    assert [one.spans for one in kept] == [whole.spans[:2]] * 2 and kept[0].input_ids[-2:] == whole.input_ids[
        whole.spans[1][1] - 2 : whole.spans[1][1]
    ]
    assert long[0] == {"file": "talks.jsonl", "line": 7, "tokens": len(whole.input_ids), "answers_left_out": 1}
    with pytest.raises(DataError, match="2 of 2 rows have more than train"):
        tokenized(tokenizer, [SEVERAL, SEVERAL], 5)


def test_generation_marks_of_the_template_are_the_same_answers(tokenizer: Any) -> None:
    template = template_text("Qwen-Qwen2.5-7B-Instruct")
    # As TRL patches templates: around the answer and what ends it.
    plain = (
        "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}\n"
        '    {%- elif message.role == "assistant" %}'
    )
    assert plain in template
    marked = template.replace(
        plain,
        "{%- if message.role == 'assistant' %}{{- '<|im_start|>assistant\\n' }}{% generation %}"
        "{{- message.content + '<|im_end|>' }}{% endgeneration %}{{- '\\n' }}{%- else %}"
        "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}{%- endif %}\n"
        '    {%- elif message.role == "assistant" %}',
    )
    texts = generated_texts(marked, [*SEVERAL["prompt"], *SEVERAL["completion"]])
    assert texts == [f"{text}<|im_end|>" for text in ("Is it plugged in?", "Then restart it.", "Good to hear.")]
    assert look_at(with_template(tokenizer, marked), [SEVERAL]).otherwise_marked == 0
    wrong = marked.replace("message.content + '<|im_end|>' }}{% end", "message.content }}{% end").replace(
        "{% endgeneration %}{{- '\\n' }}", "{% endgeneration %}{{- '<|im_end|>\\n' }}"
    )
    found = look_at(with_template(tokenizer, wrong), [SEVERAL])
    assert found.otherwise_marked == 3
    assert told(found)[-1].startswith("The template's own generation marks call another text generated")


@pytest.mark.parametrize(
    ("template", "chosen", "says_why"),
    [
        ("google-gemma-2-2b-it", CALLING, "does not write calls and results of calls and the functions themselves"),
        ("HuggingFaceTB-SmolLM3-3B", CALLING, "does not write calls and the functions themselves"),
        ("google-gemma-2-2b-it", row([user("a"), user("b")], [says("c")]), "refuses a row: .*must alternate"),
        ("google-gemma-2-2b-it", row([user("a")], [says(" ")]), "an answer is empty"),
        ("Qwen-Qwen2.5-7B-Instruct", row([user("a")], []), "there is no answer to learn"),
        ("Qwen-Qwen2.5-7B-Instruct", row([user("a")], [user("b")]), "there is no answer to learn"),
        ("mistralai-Mistral-Nemo-Instruct-2407", row([user("a"), says("b"), says("c"), user("d")], [says("e")]), "alternate"),
    ],
)  # fmt: skip
def test_what_a_template_cannot_write_is_told_with_the_line_and_its_own_words(
    tokenizer: Any, template: str, chosen: dict[str, Any], says_why: str
) -> None:
    with_template(tokenizer, template_text(template))
    with pytest.raises(DataError, match=f"^talks.jsonl:7: .*{says_why}") as error:
        tokenize(tokenizer, chosen)
    assert error.value.hint


def test_a_tokenizer_without_a_template_is_named(tokenizer: Any) -> None:
    with_template(tokenizer, "x").chat_template = None
    with pytest.raises(DataError, match="has no chat template"):
        tokenize(tokenizer, SEVERAL)
