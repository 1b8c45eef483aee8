"""`verify` as a tool of its own: adapters and GGUF files of anybody, through the real command."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from tests.children import child_environment
from tests.commands.in_process import tune2ollama_here
from tests.faults.chains import change_json
from tests.faults.files import change_tensor
from tests.models.test_gguf_file import written
from tests.parity_chain import GOLDEN, SYSTEM, Chain, chain
from tests.small_models import TREE, tiny_llama
from toolkit.cli import cli
from toolkit.errors import DataError, ExternalToolError, ParityError, ToolkitError, UsageError
from toolkit.models.gguf_metadata import copy_with_texts
from toolkit.parity import probe as probe_module
from toolkit.parity.asked import Asked, _check_merged, recipe_of
from toolkit.parity.certificate import SCHEMA, Check, Subject
from toolkit.parity.probe import probe
from toolkit.parity.summary_in_file import FOUND, JUDGED, VERDICT
from toolkit.parity.summary_in_file import SCHEMA as SCHEMA_KEY
from toolkit.parity.tool import _without_base
from toolkit.run.artifacts import ARTIFACT_FILE, file_sha256

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def clean() -> Chain:
    return chain()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all commands: the goldens are recorded once."""
    folder = tmp_path_factory.mktemp("verify")
    (folder / "prompts.jsonl").write_text(
        "".join(json.dumps({"prompt": text}) + "\n" for text in GOLDEN[:6]), encoding="utf-8"
    )
    return folder


def verify(place: Path, clean: Chain, *arguments: object) -> subprocess.CompletedProcess[str]:
    return run_verify(
        place, "--adapter", clean.adapter.folder, "--load-in-4bit", "--base", clean.adapter.facts.base.folder,
        "--system", SYSTEM, "--prompts", "prompts.jsonl", *arguments,
    )  # fmt: skip


def run_verify(place: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    return tune2ollama_here(place, "verify", *arguments)


def served(clean: Chain, index: int) -> Path:
    file = clean.export.quantized.facts.files[index]
    return clean.export.quantized.folder / file.name


def with_summary(file: Path, out: Path, of: Path) -> Path:
    """A copy of a file that claims to have passed; the sum is that of the file `of`."""
    claimed = {VERDICT: "pass", SCHEMA_KEY: SCHEMA, JUDGED: file_sha256(of), FOUND: "all is well [bold]"}
    return copy_with_texts(file, out, claimed)


def test_a_right_file_passes_and_says_its_plan_first(place: Path, clean: Chain) -> None:
    right = with_summary(served(clean, 0), place / served(clean, 0).name, served(clean, 0))
    done = verify(place, clean, "--gguf", right, "--json")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "That was written for this very file." in " ".join(done.stderr.split())
    certificate: dict[str, Any] = json.loads(done.stdout)
    assert (certificate["schema"], certificate["verdict"], certificate["blame"]) == (SCHEMA, "pass", None)
    assert [s["kind"] for s in certificate["subjects"]] == ["adapter", "quantized"]
    assert done.stderr.index("About") < done.stderr.index("▶ train")
    assert certificate["reference"]["prompts"] == 6
    assert "own Jinja" in " ".join(done.stderr.split())  # what Ollama would serve is said too


def test_two_exports_side_by_side_and_the_wrong_one_is_named(place: Path, clean: Chain) -> None:
    forged = with_summary(clean.without_adapter, place / clean.without_adapter.name, served(clean, 0))
    done = verify(place, clean, "--gguf", served(clean, 0), "--against", forged)
    assert done.returncode == 6, done.stderr[-2000:]
    assert "That was written for another file." in " ".join(done.stderr.split())
    assert "✓ golden    current" in done.stderr  # recorded by the test before, or kept from it
    assert "merge broke" in done.stdout + done.stderr
    assert "the adapter is not in it" in done.stdout + done.stderr
    (written,) = place.glob("runs/*/checked/certificate.json")
    certificate = json.loads(written.read_text(encoding="utf-8"))
    by_name = {s["name"]: s["verdict"] for s in certificate["subjects"]}
    assert by_name == {"adapter": "pass", served(clean, 0).name: "pass", clean.without_adapter.name: "fail"}


def test_a_merged_folder_is_judged_too(place: Path, clean: Chain) -> None:
    done = verify(place, clean, "--hf", clean.export.model.folder, "--json")
    assert done.returncode == 0, done.stderr[-2000:]
    assert [s["kind"] for s in json.loads(done.stdout)["subjects"]] == ["adapter", "merged"]


def test_a_merged_folder_is_what_its_own_files_are_compared_with(place: Path, clean: Chain) -> None:
    broken = place / "broken.gguf"
    shutil.copy(clean.export.gguf.folder / clean.export.gguf.facts.files[0].name, broken)
    change_tensor(broken, "blk.1.ffn_down.weight", lambda values: values * 0)
    reference = ["--hf", clean.export.model.folder, "--system", SYSTEM, "--prompts", "prompts.jsonl"]
    done = run_verify(place, *reference, "--gguf", served(clean, 0), "--json")
    assert done.returncode == 0, done.stderr[-2000:]
    whole, subject = json.loads(done.stdout)["subjects"]
    assert (whole["name"], whole["verdict"]) == ("tuned model", "pass")
    assert {c["name"]: c["verdict"] for c in subject["checks"]} == dict.fromkeys(
        ("prompts", "tokens", "ends", "structure", "weights", "source", "logits", "stops"), "pass"
    )
    done = run_verify(place, *reference, "--gguf", broken, "--json")
    assert done.returncode == 6, done.stderr[-2000:]
    blame = json.loads(done.stdout)["blame"]
    assert (blame["link"], blame["check"]) == ("conversion", "weights")
    assert "layer 1's down_proj (F16): all zero" in blame["message"]


@pytest.mark.parametrize(("has_base", "left"), [(True, ["answers", "strength"]), (False, ["answers"])])
def test_a_served_model_of_no_known_base_has_no_strength(has_base: bool, left: list[str]) -> None:
    checks = [Check(name=name, verdict="inconclusive", message="") for name in ("answers", "strength")]
    subject = Subject(name="x", kind="served", file="x", file_type="Ollama", counts="everything", checks=checks)
    tuned: Any = SimpleNamespace(tuning=SimpleNamespace(has_base=has_base))
    assert [check.name for check in _without_base(subject, tuned).checks] == left


def test_a_file_of_another_architecture_is_refused_before_anything_is_computed(place: Path, clean: Chain) -> None:
    from tests.small_models import tiny_qwen2

    tiny_qwen2(place / "qwen2", layers=1)
    _convert(place / "qwen2", place / "qwen2.gguf")
    done = verify(place, clean, "--gguf", place / "qwen2.gguf", "--prompts", "other.jsonl")
    assert done.returncode == 3, done.stderr[-2000:]
    said = " ".join(done.stderr.split())
    assert "qwen2.gguf: general.architecture is qwen2, and the base converts to llama: name a file" in said
    assert "▶ train" not in said and "About" not in said


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("missing", "there is no folder"),
        ("no config", "merged/config.json: "),
        ("no weights", "merged has neither model.safetensors nor"),
        ("quantized", "merged is quantized"),
        ("no tokenizer", "the tokenizer in"),
    ],
)
def test_a_folder_that_is_no_whole_model(damage: str, said: str, tmp_path: Path) -> None:
    folder = tmp_path / "merged"
    if damage != "missing":
        tiny_llama(folder, layers=1)
    match damage:
        case "no config":
            (folder / "config.json").unlink()
        case "no weights":
            (folder / "model.safetensors").unlink()
        case "quantized":
            change_json(
                folder / "config.json", quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}
            )
        case "no tokenizer":
            (folder / "tokenizer.json").write_text("{", encoding="utf-8")
    with pytest.raises(DataError, match=re.escape(said)) as caught:
        _check_merged(folder)
    assert caught.value.hint


def test_a_vocabulary_of_another_size(place: Path, clean: Chain) -> None:
    other = place / "other"
    if not other.exists():
        tiny_llama(other, layers=1, tokenizer="qwen2")
        _convert(other, place / "other.gguf")
    done = verify(place, clean, "--gguf", place / "other.gguf", "--json")
    assert done.returncode == 6, done.stderr[-2000:]
    said = json.loads(done.stdout)
    assert said["blame"]["link"] in {"template", "tokenizer"}
    assert "151936 tokens, the tuned model's 49152" in done.stdout


def _convert(folder: Path, target: Path) -> None:
    command = [sys.executable, TREE / "convert_hf_to_gguf.py", folder, "--outfile", target, "--outtype", "f16"]
    environment = {**os.environ, "PYTHONPATH": str(TREE / "gguf-py")}
    subprocess.run(list(map(str, command)), env=environment, check=True, capture_output=True)


@pytest.mark.parametrize(
    "damage", ["cut short", "a wrong type", "only a vocabulary", "no GGUF", "wrong hyperparameters"]
)
def test_a_damaged_file_ends_in_words_not_in_a_crash(clean: Chain, tmp_path: Path, damage: str) -> None:
    path = tmp_path / "x.gguf"
    content = served(clean, 0).read_bytes()
    match damage:
        case "cut short":
            path.write_bytes(content[: len(content) // 2])
        case "a wrong type":
            name = b"blk.0.attn_q.weight"
            at = content.index(name) + len(name) + 4 + 16  # dimensions, two of them, then the type
            path.write_bytes(content[:at] + (30).to_bytes(4, "little") + content[at + 4 :])
        case "only a vocabulary":
            path.write_bytes((TREE / "models" / "ggml-vocab-llama-bpe.gguf").read_bytes())
        case "no GGUF":
            path.write_bytes(b"PK\x03\x04" + content[4:])
        case "wrong hyperparameters":
            key = b"llama.attention.head_count" + (4).to_bytes(4, "little")
            at = content.index(key) + len(key)
            path.write_bytes(content[:at] + (7).to_bytes(4, "little") + content[at + 4 :])
    with pytest.raises(DataError, match=r"x\.gguf") as caught:
        probe(path)
    assert caught.value.hint


def child(path: Path, script: str) -> str:
    """A program in the place of Python."""
    path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    path.chmod(0o755)
    return str(path)


def test_llama_cpp_that_dies_of_a_file(small_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", child(tmp_path / "dies", "kill -ABRT $$"))
    with pytest.raises(
        DataError, match=r"llama\.cpp dies of .*small\.gguf \(signal 6\): a llama of \d+ tensors"
    ) as caught:
        probe(small_gguf)
    assert "convert it again" in caught.value.hint


def test_llama_cpp_that_never_answers(small_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", child(tmp_path / "waits", "exec sleep 600"))
    monkeypatch.setattr(probe_module, "PATIENCE_SECONDS", 0.1)
    monkeypatch.setattr(probe_module, "SLOWEST_BYTES_PER_SECOND", 1e12)
    with pytest.raises(ExternalToolError, match=r"did not load .*small\.gguf and decode one token within 0 s"):
        probe(small_gguf)


def test_the_estimate_comes_before_the_file_is_loaded(
    clean: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []

    def loaded(path: Path) -> None:
        said.append(f"loads {path.name}")
        raise DataError("stop")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(probe_module, "probe", loaded)
    monkeypatch.setattr("toolkit.parity.tool.stderr.print", said.append)
    run_here("--adapter", clean.adapter.folder, "--base", clean.adapter.facts.base.folder, "--gguf", served(clean, 0))
    assert [text.split()[0] for text in said] == ["Comparing", "loads"]


def test_a_file_of_a_type_without_limits_is_refused_at_once(tmp_path: Path) -> None:
    path = written(tmp_path / "x.gguf", ("general.file_type", 4, (15).to_bytes(4, "little")))
    code, said = run_here("--adapter", tmp_path / "not-even-there", "--gguf", path)
    assert (code, said.startswith(f"{path} holds no matrix")) == (3, True)


def test_what_cannot_be_asked(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing to compare with"):
        recipe_of(Asked(ggufs=(tmp_path / "a.gguf",)))
    with pytest.raises(UsageError, match="nothing to compare with the adapter"):
        recipe_of(Asked(adapter=tmp_path))
    with pytest.raises(UsageError, match=r"nothing to compare .* with: alone, a merged folder"):
        recipe_of(Asked(hf=tmp_path))


def run_here(*arguments: object) -> tuple[int, str]:
    """The command in this process: (exit code, what it said)."""
    done = CliRunner().invoke(cli, ["verify", *map(str, arguments)])
    error = done.exception
    if isinstance(error, ToolkitError):
        return error.exit_code, f"{error.message} {error.hint}"
    return done.exit_code, done.output


def test_options_that_would_be_ignored_are_refused(tmp_path: Path) -> None:
    found = run_here("recipe.yaml", "--prompts", "p.txt", "--system", "Be brief.", "--no-load-in-4bit", "--base", "b")
    assert found[0] == 2
    assert found[1].startswith("--base, --system, --prompts, --load-in-4bit: beside a recipe this changes nothing")
    found = run_here("recipe.yaml", "--force", "--adapter", tmp_path, "--gguf", "x.gguf")
    assert found[1].startswith("--adapter, --force: beside a recipe this changes nothing")
    found = run_here("--adapter", tmp_path, "--gguf", "x.gguf", "--set", "a=b", "--force")
    assert found[1].startswith("--set, --force: there is no recipe to change")


def test_a_merged_folder_alone_proves_nothing(clean: Chain) -> None:
    code, said = run_here("--hf", clean.export.model.folder)
    assert code == 2
    assert "there is nothing to compare" in said


def test_a_recipe_with_out_is_its_own_certificate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from toolkit.parity import tool
    from toolkit.run import pipeline

    broken = Check(name="logits", verdict="fail", message="mean KL 1 nats")
    file = Subject(name="Q8_0", kind="quantized", file="m.gguf", file_type="Q8_0", counts="everything", checks=[broken])
    certificate = {
        "schema": SCHEMA, "verdict": "fail", "message": "quantization broke", "blame": None, "chain": [], "served_file": "",
        "certified": None, "warnings": [], "reference": {"what": "", "prompts": 1, "positions": 1, "conversations": 0,
        "forward": "whole", "parameters": 1, "engine": ""}, "subjects": [file.as_json()], "files": {}, "versions": {},
        "made": "2026-11-22T20:43:07+00:00",
    }  # fmt: skip
    monkeypatch.chdir(tmp_path)

    def run(recipe: Any, upto: str, force: str) -> None:
        folder = pipeline.run_folder(recipe) / upto
        folder.mkdir(parents=True)
        (folder / "certificate.json").write_text(json.dumps(certificate), encoding="utf-8")
        raise ParityError("quantization broke")

    def never(*_: Any) -> None:
        raise AssertionError("judged as if it were somebody else's")

    monkeypatch.setattr(pipeline, "run", run)
    monkeypatch.setattr(tool, "check", never)
    code, said = run_here(Path(__file__).parents[2] / "recipes" / "medical.yaml", "--out", "copy")
    assert (code, said.splitlines()[0].startswith("quantization broke")) == (6, True)
    assert said.strip().endswith("run runs/medical/recipe.yaml")  # what to do next
    assert json.loads((tmp_path / "copy" / "certificate.json").read_text(encoding="utf-8")) == certificate
    assert (tmp_path / "copy" / "certificate.html").is_file()


def test_an_empty_prompts_file_is_named(place: Path, clean: Chain) -> None:
    (place / "empty.jsonl").write_text("\n", encoding="utf-8")
    done = verify(place, clean, "--prompts", "empty.jsonl", "--gguf", served(clean, 0))
    assert done.returncode == 3, done.stderr
    assert "empty.jsonl is empty" in done.stderr


def test_an_adapter_whose_base_is_unknown(place: Path, clean: Chain) -> None:
    command = [
        sys.executable, "-m", "toolkit.cli", "verify", "--adapter", clean.adapter.folder, "--base", "nobody/nothing-here",
        "--gguf", served(clean, 0),
    ]  # fmt: skip
    environment = child_environment(HF_HUB_OFFLINE="1")
    done = subprocess.run(
        list(map(str, command)), cwd=place, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode in {2, 5}, done.stderr
    assert "nobody/nothing-here" in done.stderr
    assert not (clean.adapter.folder / ARTIFACT_FILE).exists()
