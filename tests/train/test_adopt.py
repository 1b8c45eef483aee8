"""An adapter that another tool trained goes the same way, or is refused with a reason."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.children import child_environment
from tests.small_models import tiny_adapter, tiny_llama
from toolkit.errors import DataError, UsageError
from toolkit.recipe.adopted import recipe_for_adapter
from toolkit.run.artifacts import text_sha256
from toolkit.train.adopt import adopt_adapter
from toolkit.train.fitted import take_all


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("base") / "base")


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_adapter(base, tmp_path_factory.mktemp("adapter") / "adapter")


def test_the_adapter_is_taken_as_it_is_with_the_base_s_tokenizer(base: Path, adapter: Path, tmp_path: Path) -> None:
    recipe = recipe_for_adapter(adapter, "other", str(base), system="Be brief.")
    facts = adopt_adapter(recipe, tmp_path)
    assert not facts.trained_here and facts.method == "lora" and facts.base_dtype == "float32"
    assert facts.system == "Be brief."
    weights = "adapter_model.safetensors"
    assert (tmp_path / weights).read_bytes() == (adapter / weights).read_bytes()
    assert (tmp_path / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()


WITHOUT_TORCH = """
import sys
from pathlib import Path
from toolkit.recipe.adopted import recipe_for_adapter
from toolkit.train.adopt import adopt_adapter
adapter, base, out = sys.argv[1:]
print(adopt_adapter(recipe_for_adapter(Path(adapter), "other", base), Path(out)).model_dump_json())
print([name for name in ("torch", "transformers", "peft") if name in sys.modules])
"""


def test_a_plain_one_is_taken_without_torch(base: Path, adapter: Path, tmp_path: Path) -> None:
    for name in ("asked", "light", "fitted"):
        (tmp_path / name).mkdir()
    recipe = recipe_for_adapter(adapter, "other", str(base))
    asked = adopt_adapter(recipe, tmp_path / "asked")  # what transformers knows of the base is kept
    command = [sys.executable, "-c", WITHOUT_TORCH, str(adapter), str(base), str(tmp_path / "light")]
    done = subprocess.run(command, capture_output=True, text=True, env=child_environment())
    assert done.stdout.splitlines() == [asked.model_dump_json(), "[]"], done.stderr
    # The same files as the way of all other kinds leaves.
    assert take_all(recipe, base, "float32", False, tmp_path / "fitted") is None
    for path in (tmp_path / "fitted").iterdir():
        assert path.read_bytes() == (tmp_path / "light" / path.name).read_bytes()


def test_a_tokenizer_that_came_without_a_template_gets_the_base_s(
    base: Path, adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy, out = tmp_path / "adapter", tmp_path / "out"
    shutil.copytree(adapter, copy)
    out.mkdir()
    (copy / "chat_template.jinja").unlink()
    settings = json.loads((copy / "tokenizer_config.json").read_text())
    assert "chat_template" not in settings
    facts = adopt_adapter(recipe_for_adapter(copy, "other", str(base)), out)
    template = (base / "chat_template.jinja").read_text(encoding="utf-8")
    assert (out / "chat_template.jinja").read_text(encoding="utf-8") == template
    assert facts.chat_template_sha256 == text_sha256(template)
    assert "without a chat template" in capsys.readouterr().err


def test_a_whole_model_is_of_its_tensors_type_whatever_its_config_says(base: Path, tmp_path: Path) -> None:
    model, out = tmp_path / "model", tmp_path / "out"
    shutil.copytree(base, model)
    out.mkdir()
    config = json.loads((model / "config.json").read_text())
    config.pop("torch_dtype", None)
    (model / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16"}))
    facts = adopt_adapter(recipe_for_adapter(model, "other", str(base)), out)
    assert (facts.method, facts.base_dtype) == ("full", "float32")


def test_a_4_bit_base_of_unsloth_is_remembered(base: Path, adapter: Path, tmp_path: Path) -> None:
    config = json.loads((adapter / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "unsloth/Qwen2.5-7B-Instruct-bnb-4bit"
    copy, out = tmp_path / "adapter", tmp_path / "out"
    copy.mkdir()
    out.mkdir()
    (copy / "adapter_config.json").write_text(json.dumps(config))
    (copy / "adapter_model.safetensors").write_bytes((adapter / "adapter_model.safetensors").read_bytes())
    facts = adopt_adapter(recipe_for_adapter(copy, "other", str(base)), out)
    assert facts.method == "qlora" and facts.quantization is not None


def test_what_is_no_adapter_is_refused(base: Path, adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is no PEFT adapter"):
        recipe_for_adapter(tmp_path, "other", str(base))
    (tmp_path / "adapter_config.json").write_text("{")
    with pytest.raises(DataError, match="cannot be read"):
        recipe_for_adapter(tmp_path, "other", str(base))
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 8, "lora_alpha": 8}')
    shutil.copy(adapter / "adapter_model.safetensors", tmp_path)
    with pytest.raises(UsageError, match="names no base model"):
        recipe_for_adapter(tmp_path, "other", "")
    with pytest.raises(UsageError, match="did you mean Q4_K_M"):
        recipe_for_adapter(adapter, "other", str(base), file_types=("Q4_KM",))


def test_set_changes_any_key_of_an_export(base: Path, adapter: Path) -> None:
    settings = ["golden.max_new_tokens=24", "export.file_types=[BF16, Q6_K]", "export.serve=Q6_K", "load_in_4bit=true"]
    recipe = recipe_for_adapter(adapter, "other", str(base), settings=settings)
    assert (recipe.golden.max_new_tokens, recipe.export.file_types, recipe.export.serve) == (
        24,
        ["BF16", "Q6_K"],
        "Q6_K",
    )
    assert recipe.load_in_4bit and recipe.base == str(base)
    assert recipe_for_adapter(adapter, "other", "", settings=["base=some/base"]).base == "some/base"


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (["golden.max_tokens=24"], r"unknown key golden\.max_tokens \(did you mean max_new_tokens\?\)"),
        (
            ["golden.max_new_tokens=many", "merge.onto=8-bit"],
            r"(?s)golden\.max_new_tokens: .*not 'many'\n.*merge\.onto",
        ),
        (["golden"], "write it as key.key=value"),
        (["golden.prompts=[a"], "is no YAML value"),
        (["export.serve=Q2_K"], "serve: Q2_K is not among file_types"),
    ],
)
def test_every_fault_of_set_is_told(settings: list[str], told: str, base: Path, adapter: Path) -> None:
    with pytest.raises(UsageError, match=told) as found:
        recipe_for_adapter(adapter, "other", str(base), settings=settings)
    assert found.value.hint == "Look at: tune2ollama export --help"


def test_pickled_weights_are_not_read(base: Path, adapter: Path, tmp_path: Path) -> None:
    copy, out = tmp_path / "adapter", tmp_path / "out"
    copy.mkdir()
    out.mkdir()
    (copy / "adapter_config.json").write_bytes((adapter / "adapter_config.json").read_bytes())
    (copy / "adapter_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(DataError, match=r"adapter_model\.bin is a pickle, which is not read here"):
        recipe_for_adapter(copy, "other", str(base))


@pytest.mark.slow
def test_export_brings_it_to_a_certificate(base: Path, adapter: Path, tmp_path: Path) -> None:
    environment = child_environment()
    (tmp_path / "prompts.txt").write_text("Is the sea blue?\nWho are you?\nCount to three.\n", encoding="utf-8")
    command = [
        sys.executable, "-m", "toolkit.cli", "export", str(adapter), "--name", "other", "--base", str(base),
        "--prompts", "prompts.txt", "--file-type", "F16", "--upto", "verify", "--json",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    # A random adapter never ends an answer, so whether it can is open; all that an export may break is whole.
    assert done.returncode == 7, done.stderr[-3000:]
    assert "they do not end within" in done.stderr
    certificate = json.loads((tmp_path / "runs" / "other" / "verify" / "certificate.json").read_text())
    assert certificate["verdict"] == "inconclusive" and certificate["served_file"] == "other-F16.gguf"
    verdicts = {link["link"]: link["verdict"] for link in certificate["chain"]}
    links = ("training", "template", "tokenizer", "structure", "merge", "conversion")
    assert [verdicts[link] for link in links] == ["inconclusive", *["pass"] * 5]
    assert not (tmp_path / "runs" / "other" / "prepare").exists()


@pytest.mark.slow
def test_an_adapter_of_another_base_is_refused(adapter: Path, tmp_path: Path) -> None:
    narrow = tiny_llama(tmp_path / "narrow", hidden=512)
    environment = child_environment()
    command = [
        sys.executable, "-m", "toolkit.cli", "export", str(adapter), "--name", "other", "--base", str(narrow),
        "--file-type", "F16", "--upto", "verify",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 3, done.stderr[-3000:]
    assert "Traceback" not in done.stderr
    assert re.search(
        rf"{re.escape(str(adapter))}/adapter_model\S+ \S+ has shape \[\d+, \d+\], but the base needs \[\d+, \d+\]",
        done.stderr,
    )
    assert "Name the base that it was trained on" in done.stderr
