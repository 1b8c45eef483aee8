"""An adapter's tokenizer is read as its base's configuration has it read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from tests.small_models import put_tokenizer, tiny_qwen2
from toolkit.models import tokenizer as module
from toolkit.models.tokenizer import load_tokenizer, own_tokenizer

TEXT = "Tag 12  und\n\n  zwei, 你好 🙂 don't"


@pytest.mark.parametrize(
    "name", ["LlamaTokenizerFast", "GPT2Tokenizer", "Qwen2TokenizerFast", "PreTrainedTokenizerFast"]
)
def test_a_class_that_an_older_library_wrote_splits_no_text_otherwise(name: str, tmp_path: Path) -> None:
    base = tiny_qwen2(tmp_path / "base")
    adapter = tmp_path / "adapter"
    put_tokenizer(adapter, "qwen2")
    settings = json.loads((adapter / "tokenizer_config.json").read_text(encoding="utf-8"))
    for folder in (base, adapter):  # as DeepSeek's distillates of Qwen say it, in both
        (folder / "tokenizer_config.json").write_text(
            json.dumps(settings | {"tokenizer_class": name}), encoding="utf-8"
        )
    wanted = AutoTokenizer.from_pretrained(base)(TEXT)["input_ids"]
    assert load_tokenizer(adapter, base)(TEXT)["input_ids"] == wanted
    if name == "LlamaTokenizerFast":  # what the folder alone would give
        assert load_tokenizer(adapter)(TEXT)["input_ids"] != wanted


def small(folder: Path) -> Path:
    put_tokenizer(folder)
    return folder


def test_files_of_the_same_content_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = [small(tmp_path / name) for name in ("base", "copy")]
    read: list[str] = []
    whole = AutoTokenizer.from_pretrained

    def counted(folder: str | Path, **more: object) -> object:
        read.append(str(folder))
        return whole(folder, **more)

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", counted)
    monkeypatch.setattr(module, "_kept", {})
    first, second = map(load_tokenizer, folders)
    assert read == [str(folders[0])]
    assert first(TEXT)["input_ids"] == second(TEXT)["input_ids"]
    assert (first.name_or_path, second.name_or_path) == tuple(map(str, folders))
    first.chat_template = "changed"
    assert second.chat_template != "changed" and load_tokenizer(folders[0]).chat_template != "changed"


@pytest.mark.parametrize(
    "name", ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "config.json", "else.json"]
)
def test_a_file_that_changed_is_read_again(name: str, tmp_path: Path) -> None:
    folder = small(tmp_path / "base")
    before = module._sum_of(folder, folder)
    path = folder / name
    content = path.read_text(encoding="utf-8") if path.is_file() else "{}"
    path.write_text(content + " ", encoding="utf-8")
    assert module._sum_of(folder, folder) != before


def test_a_template_that_changed_is_the_one_that_is_read(tmp_path: Path) -> None:
    folder = small(tmp_path / "base")
    load_tokenizer(folder)
    (folder / "chat_template.jinja").write_text("another", encoding="utf-8")
    assert load_tokenizer(folder).chat_template == "another"


def test_tokens_that_are_added_stay_with_their_owner(tmp_path: Path) -> None:
    folder = small(tmp_path / "base")
    own = own_tokenizer(folder)
    known = len(own)
    own.add_tokens(["<ship>"])
    own.pad_token = "<ship>"
    assert len(own) == known + 1
    another = load_tokenizer(folder)
    assert len(another) == len(own_tokenizer(folder)) == known
    assert another.pad_token != "<ship>" and another("<ship>")["input_ids"] != own("<ship>")["input_ids"]
    own.save_pretrained(tmp_path / "own")
    whole = AutoTokenizer.from_pretrained(folder)
    whole.add_tokens(["<ship>"])
    whole.pad_token = "<ship>"
    whole.save_pretrained(tmp_path / "whole")
    for file in (tmp_path / "whole").iterdir():
        assert (tmp_path / "own" / file.name).read_bytes() == file.read_bytes(), file.name
