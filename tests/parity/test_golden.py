"""Golden answers: which prompts, greedy answers, and logits that predict them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.parity_chain import GOLDEN, SYSTEM, finished, trained_adapter, trained_base
from tests.parity_chain import recipe as chain_recipe
from tests.parity_chain import record as record_chain
from tests.small_models import adapter_artifact, tiny_adapter, tiny_llama
from toolkit.errors import DataError, ResourceError, UsageError
from toolkit.models.reference import parameter_count
from toolkit.models.weights import TrainedWeights, loaded_bytes
from toolkit.parity.checks.ends import tuned_ends_check
from toolkit.parity.golden import record
from toolkit.parity.golden.goldens import Goldens
from toolkit.parity.golden.record import golden_messages, record_golden
from toolkit.recipe.prompts_file import GoldenPrompt
from toolkit.recipe.schema import Golden, Recipe
from toolkit.run.artifacts import Artifact
from toolkit.run.facts import DatasetFacts, Quantization


def recipe(prompts: Any, from_test: int = 0, new_tokens: int = 6) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "tiny", "base": "unused", "system": SYSTEM, "data": {"path": "unused"},
            "golden": {"prompts": prompts, "from_test": from_test, "max_new_tokens": new_tokens},
            "ollama": {"model": "tiny"},
        }
    )  # fmt: skip


def dataset(folder: Path) -> Artifact[DatasetFacts]:
    folder.mkdir()

    def row(text: str, line: int) -> str:
        prompt = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": text}]
        return json.dumps({"prompt": prompt, "completion": [], "source": {"file": "a.csv", "line": line}}) + "\n"

    (folder / "train.jsonl").write_text(row("What helps against a cold?", 7) + row("And hiccups?", 8))
    (folder / "test.jsonl").write_text(row("Is a rash bad?", 9) + row("Is a burn bad?", 10))
    facts = DatasetFacts(
        rows={"train": 2, "test": 2}, read=4, kept=4, dropped={}, repaired={}, encodings={}, language="en"
    )
    return finished(folder, facts)


def asked(prompts: list[GoldenPrompt]) -> list[str]:
    return [prompt.turns[-1]["content"] for prompt in prompts]


def test_prompts_come_from_a_list_a_file_and_the_test_split(tmp_path: Path) -> None:
    data = dataset(tmp_path / "data")
    file = tmp_path / "prompts.txt"
    file.write_text("\ufeffFirst?\n\n  Second? \nFirst?\n", encoding="utf-8")
    found = golden_messages(recipe(str(file), from_test=1), data)
    assert asked(found) == ["First?", "Second?", "Is a rash bad?"]
    assert all(turns[0] == {"role": "system", "content": SYSTEM} and tools is None for turns, tools in found)
    assert asked(golden_messages(recipe(None, from_test=5), data)) == ["Is a rash bad?", "Is a burn bad?"]


CALL = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}
QUESTION, RESULT = {"role": "user", "content": "Is it?"}, {"role": "tool", "name": "f", "content": "1"}


def test_goldens_may_hold_functions_and_every_answer_of_a_test_row_has_its_own(tmp_path: Path) -> None:
    file, tools = tmp_path / "prompts.jsonl", [{"type": "function", "function": {"name": "f"}}]
    lines = [
        {"messages": [QUESTION], "tools": tools},
        {"messages": [QUESTION, CALL, RESULT], "tools": tools},
        {"prompt": "Is it?"},
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    data = dataset(tmp_path / "data")
    said = {"role": "assistant", "content": "Yes."}
    row = {"prompt": [QUESTION], "completion": [{**CALL, "content": ""}, RESULT, said], "tools": tools, "source": {}}
    (data.folder / "test.jsonl").write_text(json.dumps(row) + "\n" + json.dumps(row) + "\n")
    found = golden_messages(recipe(str(file), from_test=3), data)
    assert [len(turns) for turns, _ in found] == [2, 4, 2, 1, 3, 1]
    assert [len(tools or ()) for _, tools in found] == [1, 1, 0, 1, 1, 1]
    parameters = {"type": "object", "properties": {}}
    assert found[0].tools == [
        {"type": "function", "function": {"name": "f", "description": "", "parameters": parameters}}
    ]
    assert found[1].turns[2]["content"] == ""


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"messages": [QUESTION, {"role": "assistant", "content": "x"}]}, "ends with a turn of the assistant"),
        ({"messages": [QUESTION], "tools": "f"}, "tools are no list of functions"),
        ({"messages": [QUESTION], "tools": [{"function": {}}]}, "tools are no list of functions"),
        ({"messages": [{"role": "user", "content": None}]}, "holds no prompt"),
    ],
)
def test_golden_lines_that_are_no_prompt_are_named(tmp_path: Path, line: dict[str, Any], message: str) -> None:
    (tmp_path / "prompts.jsonl").write_text(json.dumps(line) + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=rf"prompts\.jsonl:1.*{message}"):
        golden_messages(recipe(str(tmp_path / "prompts.jsonl")), None)


def test_a_prompt_that_was_trained_on_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"1 golden prompts are in the training split.*\n.*what HELPS.*a\.csv:7"):
        golden_messages(recipe(["New?", "what HELPS against a cold ?!"]), dataset(tmp_path / "data"))


@pytest.mark.parametrize(
    ("content", "message"), [(b"\n \n", "is empty"), (b"\xff\xfe\x00", "is not UTF-8"), (None, "there is no file")]
)
def test_bad_prompt_files(tmp_path: Path, content: bytes | None, message: str) -> None:
    file = tmp_path / "prompts.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UsageError if content is None else DataError, match=message):
        golden_messages(recipe(str(file)), None)


def test_no_prompt_at_all_is_an_error() -> None:
    with pytest.raises(DataError, match="no golden prompt"):
        golden_messages(recipe([]), None)


def test_a_model_is_read_whole_only_where_memory_and_card_hold_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tiny_llama(tmp_path / "base")
    weights = TrainedWeights(base, "float32", None)
    packed = TrainedWeights(base, "float32", Quantization())
    count = parameter_count(weights)
    linear = count - 49_152 * 256 - 5 * 256
    assert loaded_bytes(weights, torch.float32) == 4 * count
    assert loaded_bytes(packed, torch.bfloat16) == pytest.approx(2 * (count - linear) + linear * 4.5 / 8)
    assert record.computed_whole(weights)  # no card
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for free, whole, packed_whole in ((5 * count, True, True), (5 * count - 1, False, True), (2 * count, False, False)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _, free=free: (free, 10 * free))
        assert record.computed_whole(weights) is whole
        assert record.computed_whole(packed) is packed_whole
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (5 * count, 50 * count))
    monkeypatch.setattr(record, "fits_whole", lambda _: False)
    assert not record.computed_whole(weights)


def test_what_neither_memory_nor_card_holds_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = TrainedWeights(tiny_llama(tmp_path / "base"), "float32", None)
    monkeypatch.setattr(record, "too_large", lambda _: True)
    with pytest.raises(ResourceError, match=r"needs 0\.0 GiB of memory"):
        record._refuse_too_large(weights)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (2**40, 2**40))
    record._refuse_too_large(weights)


@pytest.mark.parametrize("method", ["qlora", "full"])
def test_logits_predict_the_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    base = tiny_llama(tmp_path / "base")
    tuned = (
        tiny_adapter(base, tmp_path / "tuned", method) if method == "qlora" else tiny_llama(tmp_path / "tuned", seed=9)
    )
    adapter = adapter_artifact(tuned, base, method)
    chosen = recipe(["What helps?", "A longer question, so that the batch is padded: what helps?"])
    out = tmp_path / "golden"
    out.mkdir()
    facts = record_golden(chosen, adapter, None, out)
    assert (facts.prompts, facts.vocabulary, facts.end_tokens, facts.forward) == (2, 49_152, [2], "whole")
    rows = [json.loads(line) for line in (out / "golden.jsonl").read_text().splitlines()]
    logits, before = np.load(out / "tuned.npy"), np.load(out / "base.npy")
    assert logits.shape == before.shape == (facts.positions, 49_152)
    assert facts.positions == sum(len(row["completion_ids"]) for row in rows)
    for row in rows:
        part = logits[row["first_row"] : row["first_row"] + len(row["completion_ids"])]
        # Greedy: each answered token is the most probable one of the row that predicts it.
        assert part.argmax(-1).tolist() == row["completion_ids"]
        assert row["prompt_text"].endswith("<|im_start|>assistant\n")
        assert row["stopped"] == (row["end_token"] is not None)
    assert np.abs(logits - before).max() > 0.5
    conversations = [json.loads(line) for line in (out / "conversations.jsonl").read_text().splitlines()]
    assert len(conversations) >= 12

    # The same, forced through the layers one at a time as a model too large for memory would be.
    monkeypatch.setattr(record, "fits_whole", lambda _: False)
    monkeypatch.setattr(record, "torch", _Float32())
    layered = tmp_path / "layered"
    layered.mkdir()
    assert record_golden(chosen, adapter, None, layered).forward == "layer by layer"
    assert (layered / "golden.jsonl").read_text() == (out / "golden.jsonl").read_text()
    assert np.abs(np.load(layered / "tuned.npy") - logits).max() <= 1e-4
    assert np.abs(np.load(layered / "base.npy") - before).max() <= 1e-4


class _Float32:
    """torch, but answers are generated in float32: on a flat model bfloat16 chooses other tokens."""

    bfloat16 = torch.float32

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


def test_answers_that_are_all_cut_are_let_go_on(tmp_path: Path) -> None:
    base = trained_base(tmp_path / "base")
    chosen = chain_recipe(["F16"], "F16", base)
    short = chosen.model_copy(update={"golden": Golden(prompts=GOLDEN, max_new_tokens=6)})
    adapter = adapter_artifact(trained_adapter(base, tmp_path / "adapter"), base)
    golden = record_chain(short, adapter, tmp_path / "golden")
    assert golden.facts.stopped_by_themselves == 0
    assert golden.facts.ends_after is not None and 6 < golden.facts.ends_after <= 24
    check = tuned_ends_check(Goldens.read(golden), 6)
    assert check.verdict == "pass"
    assert f"one of them ended after {golden.facts.ends_after}" in check.message
    whole = record_chain(chosen, adapter, tmp_path / "whole")
    assert whole.facts.stopped_by_themselves > 0 and whole.facts.ends_after is None
