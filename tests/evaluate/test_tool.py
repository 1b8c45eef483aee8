"""`tune2ollama evaluate` on an adapter, a GGUF file and an Ollama model; and lm-eval's tasks."""

from __future__ import annotations

import csv
import importlib.util
import json
from pathlib import Path

import pytest
import yaml
from PIL import Image

from tests.conftest import Server
from tests.evaluate.test_stage import answers
from tests.parity_chain import AFTER, SYSTEM, Chain, chain
from toolkit.errors import DataError, ExternalToolError, UsageError
from toolkit.evaluate.file_tokenizer import FileTokenizer
from toolkit.evaluate.tool import Asked, measure, measure_tasks
from toolkit.models.tokenizer import load_tokenizer
from toolkit.ollama.modelfile import Modelfile
from toolkit.ollama.publish import send


@pytest.fixture(scope="module")
def clean() -> Chain:
    return chain()


@pytest.fixture(scope="module")
def file(clean: Chain) -> Path:
    return clean.export.gguf.folder / clean.export.gguf.facts.files[0].name


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A spreadsheet of held-out questions, as people have them."""
    path = tmp_path_factory.mktemp("data") / "held-out.csv"
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["question", "answer"])
        for row in answers(AFTER):
            writer.writerow([row["prompt"][1]["content"], row["completion"][0]["content"]])
    return path


def asked(data: Path | None, **more: object) -> Asked:
    rows = {"data": str(data)} if data else {}
    return Asked(**{"system": SYSTEM, "rows": 6, "max_new_tokens": 24, "forgetting": False, **rows, **more})  # type: ignore[arg-type]


def test_a_file_with_its_base_beside_it(clean: Chain, file: Path, data: Path, tmp_path: Path) -> None:
    told = measure(asked(data, gguf=file, base=clean.adapter.facts.base.folder), tmp_path / "out")
    loss = next(one for one in told["figures"] if one["name"] == "held-out loss")
    assert list(loss["subjects"]) == ["base", file.name] and loss["rows"] == 16
    assert told["helped"] == "helped" and told["sentences"][0].startswith("Helped: held-out loss")
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text(encoding="utf-8"))["figures"] == told["figures"]


def test_a_file_alone_is_measured_and_compared_with_nothing(file: Path, data: Path) -> None:
    told = measure(asked(data, gguf=file, rows=0))
    assert told["helped"] == "unknown" and told["sentences"] == []
    (loss,) = told["figures"]
    assert list(loss["subjects"]) == [file.name] and loss["subjects"][file.name]["value"] > 0


def test_an_adapter_is_measured_beside_its_base(
    clean: Chain, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    base = clean.adapter.facts.base.folder
    told = measure(asked(data, adapter=clean.adapter.folder.resolve(), base=base, load_in_4bit=True, rows=0))
    assert list(told["figures"][0]["subjects"]) == ["base", "tuned"] and told["helped"] == "helped"


def test_a_file_reads_rows_as_its_own_tokenizer_does(clean: Chain, file: Path) -> None:
    own = load_tokenizer(clean.adapter.folder, clean.adapter.facts.base.folder)
    with FileTokenizer(file) as found:
        for text in ("<|im_start|>user\nHow? 多喝水 👍<|im_end|>\n", "", "  two  spaces"):
            ids = own(text, add_special_tokens=False)["input_ids"]
            assert found(text, add_special_tokens=False)["input_ids"] == ids
            assert found.decode(ids) == text
        assert found.eos_token_id == own.eos_token_id
        turns = [{"role": "user", "content": "How?"}]
        assert found.apply_chat_template(turns, add_generation_prompt=True) == own.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=True
        )


def test_what_cannot_be_measured_is_said(file: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing to measure is named"):
        measure(asked(data))
    with pytest.raises(UsageError, match="more than one thing"):
        measure(asked(data, gguf=file, ollama="x"))
    with pytest.raises(UsageError, match="nothing to measure on"):
        measure(asked(None, gguf=file))
    with pytest.raises(UsageError, match="there is no file"):
        measure(asked(data, gguf=tmp_path / "none.gguf"))
    with pytest.raises(DataError, match="none of 16 rows fits into 32 tokens"):
        measure(asked(data, gguf=file, max_length=32))


@pytest.mark.ollama
def test_an_ollama_model_answers_as_its_file_does(
    ollama_server: Server, file: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OLLAMA_HOST", ollama_server.address)
    send(ollama_server.client, "measured:test", Modelfile(system=SYSTEM), file)
    try:
        served = measure(asked(data, ollama="measured:test", system=""), tmp_path / "served")
    finally:
        ollama_server.client.delete("measured:test")
    measure(asked(data, gguf=file), tmp_path / "file")
    told = [
        [
            json.loads(line)["answers"]
            for line in (tmp_path / name / "answers.jsonl").read_text(encoding="utf-8").splitlines()
        ]
        for name in ("served", "file")
    ]
    same = sum(a["measured:test"] == b[file.name] for a, b in zip(*told))
    assert len(told[0]) == 6 and same >= 5, told
    assert served["figures"][0]["subjects"]["measured:test"]["value"] > 0


def test_without_lm_eval_the_hint_says_how_to_install_it(file: Path) -> None:
    if importlib.util.find_spec("lm_eval") is not None:
        pytest.skip("lm-eval is installed here")
    with pytest.raises(ExternalToolError, match="lm-eval is not installed") as error:
        measure_tasks(asked(None, gguf=file), "arc_easy", None, None)
    assert "pip install" in error.value.hint


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm-eval is not installed (extra: evaluation)")
def test_lm_eval_runs_a_task_of_ones_own(file: Path, tmp_path: Path) -> None:
    rows = [
        {"question": "What helps against a cold?", "choices": ["Drink tea", "qx zzv kkw"], "answer": 0},
        {"question": "Is a burn dangerous?", "choices": ["jjq wvx zq", "Rarely, but a doctor"], "answer": 1},
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    common = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "rows.jsonl")}},
        "test_split": "test",
    }
    choose = {
        **common, "task": "own_choice", "output_type": "multiple_choice", "doc_to_text": "{{question}}",
        "doc_to_target": "answer", "doc_to_choice": "choices", "metric_list": [{"metric": "acc"}],
    }  # fmt: skip
    write = {
        **common, "task": "own_text", "output_type": "generate_until", "doc_to_text": "{{question}}",
        "doc_to_target": "{{choices[answer]}}", "generation_kwargs": {"until": ["\n"], "max_gen_toks": 4},
        "metric_list": [{"metric": "exact_match"}],
    }  # fmt: skip
    whole = {
        **common, "task": "own_rolling", "output_type": "loglikelihood_rolling", "doc_to_text": "",
        "doc_to_target": "{{question}}", "metric_list": [{"metric": "word_perplexity"}],
    }  # fmt: skip
    for task in (choose, write, whole):
        (tmp_path / f"{task['task']}.yaml").write_text(yaml.safe_dump(task), encoding="utf-8")
    names = "own_choice,own_text,own_rolling"
    found = measure_tasks(asked(None, gguf=file), names, tmp_path, None)["results"]
    assert found["own_choice"]["acc"] == 1.0 and 0.0 <= found["own_text"]["exact_match"] <= 1.0
    assert found["own_rolling"]["word_perplexity"] > 1.0
    with pytest.raises(UsageError, match="knows no task nonesuch"):
        measure_tasks(asked(None, gguf=file), "nonesuch", tmp_path, None)


def test_rows_that_show_pictures_are_not_read_past_them(file: Path, tmp_path: Path) -> None:
    Image.new("RGB", (40, 40), "red").save(tmp_path / "a.png")
    (tmp_path / "rows.csv").write_text("photo,question,answer\n" + "a.png,What is it?,Red.\n", encoding="utf-8")
    with pytest.raises(UsageError, match=r"rows\.csv:2: the row shows a picture, and this command reads words") as told:
        measure(asked(tmp_path / "rows.csv", gguf=file))
    assert "--set data.columns.image=false" in told.value.hint
    words = measure(asked(tmp_path / "rows.csv", gguf=file, rows=0, settings=("data.columns.image=false",)))
    assert words["figures"][0]["rows"] == 1
