"""Completing a partial Modelfile, and the names that Ollama takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Server
from tests.ollama.pictured import RULES
from toolkit.errors import UsageError
from toolkit.ollama.modelfile import candidate_name, check_modelfile, check_name, complete, full_name
from toolkit.ollama.syntax import Message, Modelfile, parse, render
from toolkit.recipe.schema import Recipe


def recipe(modelfile: Path | None = None, model: str = "medical", **keys: Any) -> Recipe:
    """A recipe with the system text 'You are a nurse.'"""
    tree = {
        "name": "medical",
        "base": "embedded:smollm2-135m-instruct",
        "system": "You are a nurse.",
        "license": "cc-by-4.0",
        "golden": {"prompts": ["Why?"], "max_new_tokens": 96},
        "data": {"path": "data/medical"},
        "ollama": {"model": model, "modelfile": str(modelfile) if modelfile else None},
    }
    return Recipe.model_validate(tree | keys)


def test_a_missing_partial_is_completed_with_everything_that_is_served() -> None:
    made = complete(
        Modelfile(),
        recipe(),
        ("../quantize/medical.gguf",),
        ["<|im_end|>", "<|im_end|>", ""],
        "apache-2.0 AND cc-by-4.0",
    )
    assert render(made) == (
        "FROM ../quantize/medical.gguf\nSYSTEM You are a nurse.\nPARAMETER num_ctx 2048\nPARAMETER temperature 0.0\n"
        'PARAMETER repeat_penalty 1.0\nPARAMETER stop "<|im_end|>"\n'
        "LICENSE apache-2.0 AND cc-by-4.0 (base model: embedded:smollm2-135m-instruct; tuning and its data: cc-by-4.0)\n"
    )
    assert parse(render(made)) == made


def test_what_the_user_wrote_is_kept() -> None:
    partial = parse(
        "PARAMETER temperature 0.7\nPARAMETER num_ctx 8192\nPARAMETER stop END\nLICENSE mine\nMESSAGE user hi\n"
        "MESSAGE assistant hello\nSYSTEM You are a nurse.\n",
        partial=True,
    )
    made = complete(partial, recipe(), ("m.gguf",), ["</s>"], None)
    assert made.api_parameters() == {
        "temperature": 0.7,
        "num_ctx": 8192,
        "repeat_penalty": 1.0,
        "stop": ["END", "</s>"],
    }
    assert made.licenses == ("mine",)
    assert made.messages == (Message("user", "hi"), Message("assistant", "hello"))


def test_the_context_grows_with_the_training_length() -> None:
    made = complete(Modelfile(), recipe(train={"max_length": 4000}), ("m.gguf",), [])
    assert made.parameter("num_ctx") == 4096  # 4000 + 96 new tokens


def test_a_model_that_sees_has_a_second_from_and_room_for_the_largest_picture() -> None:
    made = complete(Modelfile(), recipe(train={"max_length": 512}), ("m.gguf", "mmproj.gguf"), [], pictures=RULES)
    assert render(made).startswith("FROM m.gguf\nFROM mmproj.gguf\n")
    assert made.parameter("num_ctx") == 5120  # 512 + 96 of text, and a photo takes up to 4096
    # A max_length that holds a picture counts it already.
    made = complete(Modelfile(), recipe(train={"max_length": 1536}), ("m.gguf", "mmproj.gguf"), [], pictures=RULES)
    assert made.parameter("num_ctx") == 5120  # 1536 + 96, of which 1024 may become 4096


def test_a_context_that_holds_no_picture_is_told() -> None:
    partial = parse("PARAMETER num_ctx 1024\n", partial=True)
    with pytest.raises(
        UsageError, match=r"num_ctx 1024 is too small: .* up to 1632 tokens .*, 1024 of which a picture"
    ):
        complete(partial, recipe(train={"max_length": 512}), ("m.gguf", "mmproj.gguf"), [], pictures=RULES)


def test_everything_that_is_the_tools_own_is_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / "medical"
    path.write_text(
        "FROM x\nADAPTER ./a\nTEMPLATE {{ .Prompt }}\nSYSTEM You are a doctor.\nPARAMETER num_ctx 64\nMESSAGE system hi\n"
    )
    found = check_modelfile(recipe(path))
    assert {fault.hint for fault in found} == {f"Mend {path} and run again."}
    faults = [fault.message for fault in found]
    assert [fault.removeprefix(f"{path}: ").split(":")[0] for fault in faults] == [
        "remove FROM",
        "remove ADAPTER",
        "remove TEMPLATE",
        "SYSTEM differs from the recipe's system text, which was trained with; it has one place, the recipe",
        "MESSAGE system",
        "PARAMETER num_ctx 64 is too small",
    ]
    assert "Ollama 0.34 refuses adapters" in faults[1]
    with pytest.raises(UsageError, match="it has one place") as caught:
        complete(parse(path.read_text()), recipe(path), ("m.gguf",), [])
    assert caught.value.exit_code == 2


GOOD = ["medical", "medical:v2", "me/medical", "me/medical:v2.1_x", "localhost:5000/me/medical:a", "_x", "A" * 80]
BAD = [
    "",
    "a b",
    "é",
    "medical:",
    ":v2",
    "me.you/medical",
    "a/b/c/d",
    "me//medical",
    "-x",
    "a:b:c",
    "A" * 81,
    "x:" + "t" * 81,
    "../x",
]


@pytest.mark.ollama
@pytest.mark.parametrize("name", GOOD + BAD)
def test_names_are_judged_as_the_real_server_judges_them(name: str, ollama_server: Server) -> None:
    try:
        ollama_server.client.create(name, {"files": {"m.gguf": "sha256:" + "0" * 64}})
    except UsageError as error:
        refused = "refuses the model's name" in error.message
    except Exception as error:
        refused = False  # it went on to look for the blob, which is not there
        assert "blob" in str(error) or "no such file" in str(error)
    assert refused == (name in BAD)
    assert bool(check_name(name)) == refused


def test_a_name_that_is_refused_says_where_to_change_it() -> None:
    (fault,) = check_modelfile(recipe(model="me.you/medical"))
    assert fault.hint == "Change ollama.model in the recipe."


def test_candidates_keep_the_tag_and_fit() -> None:
    assert candidate_name("medical") == "medical:candidate"
    assert candidate_name("localhost:5000/me/medical") == "localhost:5000/me/medical:candidate"
    assert candidate_name("medical:v2") == "medical:v2-candidate"
    assert full_name("medical") == "medical:latest"
    assert "too long" in check_name("medical:" + "t" * 71)[0]
    assert check_name("medical:" + "t" * 70) == []


def test_a_stop_word_that_cuts_answers_is_refused_before_the_heavy_work(tmp_path: Path) -> None:
    partial = tmp_path / "Modelfile"
    # Tokens of the base and whole marks of its template are ends, or stand between turns.
    partial.write_text('PARAMETER stop <|im_start|>\nPARAMETER stop "<|im_end|>"\n', encoding="utf-8")
    assert check_modelfile(recipe(partial)) == []
    for word in (".", "\\n", "doctor", "user", "。"):
        partial.write_text(f'PARAMETER stop <|im_start|>\nPARAMETER stop "{word}"\n', encoding="utf-8")
        (fault,) = check_modelfile(recipe(partial))
        assert "the tuned model does not end there" in fault.message
    # Of an adapter made elsewhere the tokens are not known yet: what the server then has is judged.
    assert check_modelfile(recipe(partial, data=None, adapter="somewhere")) == []
