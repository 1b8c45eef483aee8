"""Conversion: the same values, the same tokens, the same rendered prompt; no machine's paths; faults named."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from transformers import AutoTokenizer

from tests.disk import ran_on_a_full_disk
from tests.small_models import TREE, adapter_artifact, base_facts, put_tokenizer, tiny_adapter, tiny_llama, tiny_qwen2
from toolkit.errors import DataError, ExternalToolError, UsageError
from toolkit.export import llama_cpp
from toolkit.export.convert import PROTECTION, base_model, check_end_token, convert, known_name, protect_template
from toolkit.export.described import description
from toolkit.models.bases import check_folder, read_chat_template
from toolkit.models.gguf_file import GGUFHeader, read_gguf
from toolkit.recipe.schema import Recipe
from toolkit.run.artifacts import Artifact, Cost, file_sha256, text_sha256
from toolkit.run.facts import BaseFacts, DatasetFacts, GGUFFacts, ModelFacts

TEMPLATES = TREE / "models" / "templates"
CONVERSATIONS: list[list[dict[str, str]]] = [
    [{"role": "user", "content": "Hi"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "  Hi\n"}],
    [
        {"role": "user", "content": "What is {{ this }}?"},
        {"role": "assistant", "content": "{# A comment #}"},
        {"role": "user", "content": "你好"},
    ],
]


def recipe(file_type: str = "F16", **changes: Any) -> Recipe:
    tree: dict[str, Any] = {
        "name": "tiny-tale",
        "base": "tiny",
        "golden": {"from_test": 1},
        "ollama": {"model": "tiny"},
    }
    tree |= {"data": {"path": "/secret/place/rows", "language": "en"}, "license": "cc-by-4.0"}
    tree |= {"export": {"file_types": [file_type], "serve": file_type}}
    return Recipe.model_validate({**tree, **changes})


def model_artifact(folder: Path) -> Artifact[ModelFacts]:
    facts = ModelFacts(merged_onto="as trained", dtype="float32", tensors=20, merged_tensors=14, parameters=14_000_000)
    return Artifact(folder, facts, "", {}, Cost())


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_qwen2(tmp_path_factory.mktemp("secret-place") / "model", layers=1)


def variant(model: Path, folder: Path) -> Path:
    """A copy whose settings may be changed; the weights are linked."""
    shutil.copytree(model, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    (folder / "model.safetensors").symlink_to(model / "model.safetensors")
    return folder


def run(model: Path, out: Path, file_type: str = "F16") -> GGUFFacts:
    out.mkdir()
    # The rows are in another language than the recipe says.
    facts = DatasetFacts(rows={}, read=1, kept=1, dropped={}, repaired={}, encodings={}, language="zh")
    dataset = Artifact(out, facts, "", {}, Cost())
    return convert(recipe(file_type), adapter_artifact(model, model, "full"), model_artifact(model), out, dataset)


@pytest.fixture(scope="module")
def converted(model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, GGUFFacts]:
    out = tmp_path_factory.mktemp("converted") / "convert"
    facts = run(model, out, "F32")
    return out / facts.files[0].name, facts


def test_facts(converted: tuple[Path, GGUFFacts]) -> None:
    path, facts = converted
    assert [p.name for p in path.parent.iterdir()] == ["tiny-tale-F32.gguf"]
    assert (facts.architecture, facts.template_protected) == ("qwen2", True)
    file = facts.files[0]
    assert (file.name, file.file_type, file.bytes) == (path.name, "F32", path.stat().st_size)
    assert file.tensors == len(read_gguf(path).tensors) == 14


def test_values_are_the_models(converted: tuple[Path, GGUFFacts], model: Path) -> None:
    from safetensors.numpy import load_file

    weights = load_file(model / "model.safetensors")
    tensors = {t.name: t for t in gguf.GGUFReader(converted[0]).tensors}
    for ours, theirs in {
        "token_embd.weight": "model.embed_tokens.weight",
        "output_norm.weight": "model.norm.weight",
        "blk.0.attn_q.bias": "model.layers.0.self_attn.q_proj.bias",
        "blk.0.ffn_down.weight": "model.layers.0.mlp.down_proj.weight",
        "blk.0.attn_k.weight": "model.layers.0.self_attn.k_proj.weight",
    }.items():
        assert np.array_equal(np.asarray(tensors[ours].data).reshape(weights[theirs].shape), weights[theirs]), ours


def test_metadata(converted: tuple[Path, GGUFFacts], model: Path) -> None:
    metadata = read_gguf(converted[0]).metadata
    expected = {
        "general.name": "tiny-tale", "general.license": "apache-2.0 AND cc-by-4.0", "general.languages": ["zh"],
        "general.base_model.count": 1, "general.base_model.0.name": "base", "general.dataset.0.name": "rows",
        "general.tags": ["text-generation", "tune2ollama", "full"], "general.quantized_by": "tune2ollama 0.1.0",
        "general.finetune": "full", "tokenizer.ggml.eos_token_id": 151_645, "tokenizer.ggml.padding_token_id": 151_643,
        "tokenizer.ggml.pre": "qwen2",
        "qwen2.rope.freq_base": 1_000_000.0, "qwen2.block_count": 1,
    }  # fmt: skip
    assert {key: metadata.get(key) for key in expected} == expected
    sums = (check_folder(model), text_sha256(read_chat_template(model) or ""))
    assert metadata["general.description"] == (
        f"Fine-tuned: full fine-tuning. base base sha256 {sums[0]}; chat template sha256 {sums[1]}. Whether this file is that "
        "model is not said here, but by its certificate."
    )


def test_the_description_tells_base_adapter_template_and_merge(model: Path, tmp_path: Path) -> None:
    adapter = adapter_artifact(tiny_adapter(model, tmp_path / "adapter", "qlora"), model, "qlora")
    facts = model_artifact(model).facts.model_copy(update={"merged_onto": "nf4"})
    told = description(adapter, facts, "base")
    assert told.startswith(
        "Fine-tuned: QLoRA, merged onto the dequantized NF4 weights that it was trained on. base base sha256 "
    )
    assert dict(re.findall(r"(base|adapter|chat template)(?: base)? sha256 ([0-9a-f]{64})", told)) == {
        "base": adapter.facts.base.digest,
        "adapter": file_sha256(adapter.folder / "adapter_model.safetensors"),
        "chat template": adapter.facts.chat_template_sha256,
    }
    hub = adapter.facts.model_copy(update={"base": adapter.facts.base.model_copy(update={"revision": "0123abcd"})})
    told = description(Artifact(adapter.folder, hub, "", {}, Cost()), facts, "Qwen2.5-0.5B")
    assert "base Qwen2.5-0.5B revision 0123abcd sha256 " in told
    assert str(tmp_path) not in told


def test_no_path_of_this_machine(converted: tuple[Path, GGUFFacts], model: Path) -> None:
    text = json.dumps({k: v for k, v in read_gguf(converted[0]).metadata.items() if not k.startswith("tokenizer.ggml")})
    for word in ("secret", str(Path.home()), "/tmp", ".view", "partial"):
        assert word not in text, word


def test_tokens_are_the_tokenizers(converted: tuple[Path, GGUFFacts], model: Path) -> None:
    import llama_cpp as library

    vocabulary = library.Llama(str(converted[0]), vocab_only=True, verbose=False)
    tokenizer = AutoTokenizer.from_pretrained(model)
    for text in ("Hello 1234 wörld", "<|im_start|>user\nHi<|im_end|>", "你好 😀\n\n  x"):
        assert vocabulary.tokenize(text.encode(), add_bos=False, special=True) == tokenizer(text)["input_ids"]
    vocabulary.close()


def test_bf16(model: Path, tmp_path: Path) -> None:
    facts = run(model, tmp_path / "out", "BF16")
    header = read_gguf(tmp_path / "out" / facts.files[0].name)
    assert {t.type for t in header.tensors if len(t.shape) == 2} == {"BF16"}
    assert {t.type for t in header.tensors if len(t.shape) == 1} == {"F32"}


# The protected template -------------------------------------------------------------------------------------------


def rendered(template: str) -> list[str]:
    from transformers.utils.chat_template_utils import render_jinja_template

    found, _ = render_jinja_template(
        conversations=[[dict(turn) for turn in c] for c in CONVERSATIONS],
        chat_template=template,
        add_generation_prompt=True,
    )
    return list(found)


def smollm2() -> str:
    from toolkit.models.bases import resolve_base

    return (Path(resolve_base("embedded:smollm2-135m-instruct").folder) / "chat_template.jinja").read_text()


@pytest.mark.parametrize(
    "template",
    [
        smollm2(),
        (TEMPLATES / "Qwen-Qwen2.5-7B-Instruct.jinja").read_text(),
        (TEMPLATES / "meta-llama-Llama-3.2-3B-Instruct.jinja").read_text(),
        "\n{% for m in messages %}{{ m.content }}{% endfor %}",
        "\n\n  {% for m in messages %}{{ m.content }}{% endfor %}",
        "   {%- for m in messages %} {{ m.content }}{% endfor %}",
        "   text {{ messages[0].content }}",
        "\t{{ messages[0].content }}",
        "plain {{ messages[0].content }}",
    ],
    ids=["smollm2", "qwen2.5", "llama3.2", "line break", "two and block", "spaces, block", "spaces", "tab", "text"],
)
def test_protected_template_renders_the_same(template: str) -> None:
    protected = protect_template(template)
    assert rendered(protected) == rendered(template)
    assert distance(protected, template) > 100
    assert protect_template(protected) == protected


def distance(one: str, two: str) -> int:
    """Levenshtein's, over a pair of rows."""
    row = list(range(len(two) + 1))
    for i, a in enumerate(one, 1):
        previous, row[0] = row[0], i
        for j, b in enumerate(two, 1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (a != b))
    return row[-1]


def test_template_in_the_file(converted: tuple[Path, GGUFFacts], model: Path) -> None:
    template = read_gguf(converted[0]).metadata["tokenizer.chat_template"]
    assert template == PROTECTION + (model / "chat_template.jinja").read_text()
    tokenizer = AutoTokenizer.from_pretrained(model)
    for conversation in CONVERSATIONS:
        wanted = tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
        found = tokenizer.apply_chat_template(
            conversation, chat_template=template, tokenize=False, add_generation_prompt=True
        )
        assert found == wanted


def test_template_file_wins_as_in_transformers(model: Path, tmp_path: Path) -> None:
    folder = variant(model, tmp_path / "model")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": "old"}))
    facts = run(folder, tmp_path / "out")
    found = read_gguf(tmp_path / "out" / facts.files[0].name).metadata["tokenizer.chat_template"]
    assert found == PROTECTION + (model / "chat_template.jinja").read_text()
    assert (
        json.loads((folder / "tokenizer_config.json").read_text())["chat_template"] == "old"
    )  # the model is untouched


def test_base_names(tmp_path: Path) -> None:
    def facts(name: str, revision: str = "") -> BaseFacts:
        return BaseFacts(id=name, folder="/x", revision=revision, license="mit", digest="")

    assert base_model(facts("/home/me/Qwen2.5-0.5B-Instruct")) == {"name": "Qwen2.5-0.5B-Instruct"}
    assert base_model(facts("embedded:smollm2-135m-instruct", "ab"))["organization"] == "HuggingFaceTB"
    found = base_model(facts("Qwen/Qwen2.5-0.5B-Instruct@main", "0123456789abcdef0123456789abcdef01234567"))
    assert (found["organization"], found["name"], found["version"]) == ("Qwen", "Qwen2.5-0.5B-Instruct", "0123456789ab")


# Faults -----------------------------------------------------------------------------------------------------------


def test_unknown_architecture(model: Path, tmp_path: Path) -> None:
    folder = variant(model, tmp_path / "model")
    config = (folder / "config.json").read_text().replace("Qwen2ForCausalLM", "Qwen2ForNothing")
    (folder / "config.json").write_text(config)
    with pytest.raises(DataError, match="does not know the architecture Qwen2ForNothing"):
        run(folder, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_truncated_model(model: Path, tmp_path: Path) -> None:
    folder = variant(model, tmp_path / "model")
    content = (model / "model.safetensors").read_bytes()[:10_000]
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(DataError, match=r"model\.safetensors is truncated"):
        run(folder, tmp_path / "out")


def test_end_tokens_that_differ(model: Path) -> None:
    check_end_token(model, GGUFHeader({"tokenizer.ggml.eos_token_id": 151_645}, [], 0), Path("x.gguf"))
    with pytest.raises(DataError, match="ends answers with token 151643, the tokenizer with 151645"):
        check_end_token(model, GGUFHeader({"tokenizer.ggml.eos_token_id": 151_643}, [], 0), Path("x.gguf"))


FULL_DISK = """
import sys
from pathlib import Path
from tests.export.test_convert import run
run(Path(sys.argv[1]), Path(sys.argv[2]))
"""


def test_disk_full(model: Path, tmp_path: Path) -> None:
    answer = ran_on_a_full_disk(FULL_DISK, model, tmp_path / "out", size=5_000_000)
    assert "toolkit.errors.ResourceError: no space to write" in answer.stderr
    assert list((tmp_path / "out").iterdir()) == []


# The door to llama.cpp --------------------------------------------------------------------------------------------


def test_tree_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNE2OLLAMA_HOME", str(tmp_path))
    with pytest.raises(ExternalToolError) as fault:
        llama_cpp.tree()
    assert fault.value.hint == "Run: make setup"
    (tmp_path / "sources").mkdir()
    (tmp_path / "sources" / "llama_cpp_python-0.3.36.tar.gz").write_bytes(b"not it")
    with pytest.raises(ExternalToolError, match="is not the pinned one"):
        llama_cpp.tree()


def test_file_types() -> None:
    assert llama_cpp.file_type_number("Q4_K_M") == 15
    assert llama_cpp.file_type_number("Q8_0") == 7
    with pytest.raises(UsageError, match=r"did you mean Q4_K_M\?"):
        llama_cpp.file_type_number("Q4KM")
    with pytest.raises(UsageError, match="IQ2_XXS is no quantization"):
        llama_cpp.file_type_number("IQ2_XXS")


def test_llama_converts_with_its_rotary_order(tmp_path: Path) -> None:
    """The Llama converter permutes q and k; llama.cpp's logits must still be transformers'."""
    import llama_cpp as library
    import torch
    from transformers import AutoModelForCausalLM

    folder = tiny_llama(tmp_path / "model")
    facts = run(folder, tmp_path / "out", "F32")
    ids = AutoTokenizer.from_pretrained(folder)("What is a fever, and when is it dangerous?")["input_ids"]
    model = library.Llama(
        str(tmp_path / "out" / facts.files[0].name),
        n_ctx=64,
        logits_all=True,
        verbose=False,
        type_k=0,
        type_v=0,
        n_threads=1,
    )
    model.eval(ids)
    theirs = torch.tensor(np.array(model.scores[: len(ids)]))
    model.close()
    with torch.no_grad():
        ours = AutoModelForCausalLM.from_pretrained(folder)(torch.tensor([ids])).logits[0]
    assert (ours - theirs).abs().max() < 1e-3
    assert base_facts(folder).digest


def test_only_a_tokenizer_like_phi3s_is_named_so(tmp_path: Path) -> None:
    put_tokenizer(tmp_path / "phi3", "phi3")
    assert [known_name(name, tmp_path / "phi3") for name in ("helpdesk", "My-Phi3", "phi-3.5-nurse")] == [
        "helpdesk (phi-3)", "My-Phi3", "phi-3.5-nurse",
    ]  # fmt: skip
    # llama.cpp looks for Phi-3's tokens in every file of that name, and does not load one without them.
    other = tiny_llama(tmp_path / "llama")
    assert [known_name(name, other) for name in ("helpdesk", "my-Phi3", "phi-3.5-nurse")] == [
        "helpdesk", "my-Phi 3", "phi 3.5-nurse",
    ]  # fmt: skip
