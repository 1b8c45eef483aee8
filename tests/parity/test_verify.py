"""A clean chain passes; each damage is refused, by the check that is there for it, at every quantization."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from transformers import AutoTokenizer

from tests.faults.files import change_tensor
from tests.parity_chain import Chain, Export, blend, chain, damaged, replace_bytes
from toolkit.parity.certificate import SCHEMA, certificate_text
from toolkit.parity.subjects import GGUFUnderTest, Tuned
from toolkit.parity.verify import _reference, certificate_of, hashes, judge, verify
from toolkit.report.certificate_table import certificate_table
from toolkit.report.page import certificate_page
from toolkit.run.facts import CertificateFacts

TYPES = ["F16", "Q8_0", "Q4_K_M"]


@pytest.fixture(scope="module")
def clean() -> Chain:
    return chain()


def certify(clean: Chain, export: Export, out: Path) -> tuple[CertificateFacts, dict[str, Any]]:
    out.mkdir(parents=True)
    facts = verify(clean.recipe, clean.adapter, clean.golden, export.model, export.gguf, export.quantized, out)
    return facts, json.loads((out / "certificate.json").read_text(encoding="utf-8"))


def value(certificate: dict[str, Any], link: str, check: str, measure: str) -> float:
    found = next(x for x in certificate["subjects"] if x["name"] == link)
    found = next(x for x in found["checks"] if x["name"] == check)
    return float(next(x for x in found["measures"] if x["name"] == measure)["value"])


def test_every_file_has_a_name_of_its_own(tmp_path: Path) -> None:
    files = [tmp_path / folder / "model.gguf" for folder in ("a/out", "b/out", "c")]
    for number, file in enumerate(files):
        file.parent.mkdir(parents=True)
        file.write_bytes(bytes(number))
    (tmp_path / "c" / "other.gguf").symlink_to(files[0])
    found = hashes(*files, tmp_path / "c", files[0])
    assert {name: known["bytes"] for name, known in found.items()} == {
        "a/out/model.gguf": 0, "b/out/model.gguf": 1, "c/model.gguf": 2, "c/other.gguf": 0,
    }  # fmt: skip


def test_quantized_files_are_judged_without_a_converted_one(clean: Chain, tmp_path: Path) -> None:
    gguf = clean.export.gguf
    alone = replace(gguf, facts=gguf.facts.model_copy(update={"files": []}))
    facts, certificate = certify(clean, replace(clean.export, gguf=alone), tmp_path / "right")
    assert facts.verdict == "pass", facts.message
    assert [s["name"] for s in certificate["subjects"]] == ["adapter", "merged", "Q8_0", "Q4_K_M"]
    assert {s["made_from"] for s in certificate["subjects"][2:]} == {"merged"}
    chain = {link["link"]: link["verdict"] for link in certificate["chain"]}
    assert chain["conversion"] == "not compared" and chain["merge"] == chain["quantization"] == "pass"
    for subject in certificate["subjects"][2:]:
        source = next(check for check in subject["checks"] if check["name"] == "source")
        assert source["verdict"] == "pass" and "value for value" in source["message"]


def test_what_the_goldens_are_is_told(clean: Chain, tmp_path: Path) -> None:
    tuned: Any = SimpleNamespace(
        goldens=SimpleNamespace(facts=clean.golden.facts, conversations=[]), answers_from=None, parameters=1
    )
    own = "the tuned model as it was trained, teacher-forced on its own greedy answers, float32"
    assert _reference(tuned)["what"] == own
    tuned.answers_from = tmp_path / "big.gguf"
    wanted = "the tuned model as it was trained, teacher-forced on the greedy answers of big.gguf, which is judged here, float32"
    assert _reference(tuned)["what"] == wanted


def test_a_clean_chain_passes_at_every_quantization(clean: Chain, tmp_path: Path) -> None:
    facts, certificate = certify(clean, clean.export, tmp_path / "verify")
    assert facts.verdict == certificate["verdict"] == "pass", certificate["message"]
    assert set(facts.checks.values()) == {"pass"}
    assert certificate["schema"] == SCHEMA
    assert certificate["warnings"] == []
    assert [s["name"] for s in certificate["subjects"]] == ["adapter", "merged", *TYPES]
    assert facts.served_file == clean.export.quantized.facts.files[0].name
    assert value(certificate, "F16", "logits", "mean KL") < 2e-5
    assert value(certificate, "Q8_0", "logits", "mean KL") < 3e-3
    assert value(certificate, "Q4_K_M", "logits", "mean KL") < 5e-2
    for link, room in zip(TYPES, (0.002, 0.01, 0.05)):
        assert abs(value(certificate, link, "strength", "strength") - 1) < room
        assert value(certificate, link, "weights", "strength in the weights") == pytest.approx(1, abs=1e-3)
        assert value(certificate, link, "weights", "its error") < 1e-3
        # Of twelve answers that end by themselves, all end in the exports too.
        assert value(certificate, link, "stops", "answers that end by themselves") >= 11
    assert certificate["reference"]["positions"] == clean.golden.facts.positions
    named = {Path(name).name: known for name, known in certificate["files"].items()}
    served = clean.export.quantized.facts.files[0]
    assert named[served.name] == {"sha256": served.sha256, "bytes": served.bytes}
    assert {"tuned.npy", "base.npy", "golden.jsonl", "model.safetensors"} <= set(named)
    console = Console(width=160, record=True, file=(tmp_path / "screen").open("w", encoding="utf-8"))
    console.print(certificate_table(certificate))
    shown = console.export_text()
    assert "Q8_0 *" in shown
    assert "The export is what was trained" in shown


@pytest.mark.parametrize(("factor", "least", "most"), [(0.0, -0.05, 0.1), (0.5, 0.3, 0.85)], ids=["left out", "halved"])
def test_a_weak_adapter_fails_at_every_quantization(
    clean: Chain, tmp_path: Path, factor: float, least: float, most: float
) -> None:
    export = damaged(clean, lambda path: blend(path, clean.without_adapter, factor), tmp_path / "x")
    facts, certificate = certify(clean, export, tmp_path / "verify")
    assert facts.verdict == "fail"
    for link in TYPES:
        assert facts.checks[f"{link}: strength"] == "fail", link
        assert least < value(certificate, link, "strength", "strength") < most
        assert facts.checks[f"{link}: prompts"] == facts.checks[f"{link}: tokens"] == "pass"
    # The merged folder is right, so the damage came with the conversion.
    assert certificate["blame"]["link"] == "conversion"
    assert certificate["blame"]["value"] == pytest.approx(factor, abs=0.01)


@pytest.mark.parametrize("factor", [0.9, 2.0])
def test_a_wrong_alpha_is_refused(clean: Chain, tmp_path: Path, factor: float) -> None:
    export = damaged(clean, lambda path: blend(path, clean.without_adapter, factor), tmp_path / "x")
    facts, certificate = certify(clean, export, tmp_path / "verify")
    assert facts.verdict == "fail"
    assert facts.checks["F16: logits"] == "fail"
    if factor == 2.0:
        assert all(facts.checks[f"{link}: logits"] == "fail" for link in TYPES)
    assert value(certificate, "F16", "logits", "mean KL") > 5e-4


def test_a_swapped_template_fails_the_prompts_check(clean: Chain, tmp_path: Path) -> None:
    def swap(path: Path) -> None:
        replace_bytes(path, b"'<|im_start|>assistant\n'", b"'<|im_start|>Assistant\n'")

    facts, certificate = certify(clean, damaged(clean, swap, tmp_path / "x"), tmp_path / "verify")
    assert facts.verdict == "fail"
    assert all(facts.checks[f"{link}: prompts"] == "fail" for link in TYPES)
    assert facts.checks["merged: prompts"] == facts.checks["Q8_0: strength"] == facts.checks["Q8_0: tokens"] == "pass"
    assert "golden 1" in certificate["message"]
    assert (certificate["blame"]["link"], certificate["blame"]["where"]) == ("template", "F16")


def test_another_pre_tokenizer_fails_the_tokens_check(clean: Chain, tmp_path: Path) -> None:
    def swap(path: Path) -> None:
        replace_bytes(path, b"smollm", b"falcon")

    facts, certificate = certify(clean, damaged(clean, swap, tmp_path / "x"), tmp_path / "verify")
    assert facts.verdict == "fail"
    assert all(facts.checks[f"{link}: tokens"] == "fail" for link in TYPES)
    assert value(certificate, "F16", "tokens", "random texts that differ") > 100
    assert value(certificate, "F16", "tokens", "tokens spelled differently") == 0


def test_a_lost_end_token_fails_the_ends_check(clean: Chain, tmp_path: Path) -> None:
    # The value of the key is a 32-bit number of type 4 after the key's text.
    key = b"tokenizer.ggml.eos_token_id" + (4).to_bytes(4, "little")

    def lose(path: Path) -> None:
        replace_bytes(path, key + (2).to_bytes(4, "little"), key + (300).to_bytes(4, "little"))

    facts, certificate = certify(clean, damaged(clean, lose, tmp_path / "x"), tmp_path / "verify")
    assert facts.verdict == "fail"
    assert all(facts.checks[f"{link}: ends"] == "fail" for link in TYPES)
    assert value(certificate, "Q8_0", "ends", "end-of-text id wrong") == 1


def test_one_value_that_is_no_number_fails_and_is_named(clean: Chain, tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    shutil.copy(clean.export.gguf.folder / clean.export.gguf.facts.files[0].name, broken)

    def lose(values: Any) -> Any:
        values[7, 9] = np.nan
        return values

    change_tensor(broken, "blk.0.ffn_up.weight", lose)
    tuned = Tuned.of(clean.recipe, clean.adapter, clean.golden, AutoTokenizer.from_pretrained(clean.adapter.folder))
    certificate = certificate_of(tuned, judge(tuned, None, [GGUFUnderTest(broken, "broken", "F16")]), {})
    assert certificate["verdict"] == "fail"
    assert "NaN" not in certificate_text(certificate)
    checks = {check["name"]: check for check in certificate["subjects"][-1]["checks"]}
    for name in ("weights", "strength", "logits"):
        assert checks[name]["verdict"] == "fail", name
    assert certificate["blame"]["message"].endswith(
        "tensors are damaged; layer 0's up_proj (F16) holds values that are no numbers"
    )
    console = Console(width=160, record=True, file=(tmp_path / "screen").open("w", encoding="utf-8"))
    console.print(certificate_table(certificate))
    assert "broken" in console.export_text()
    assert "hold" in certificate_page(certificate)


def test_a_failing_file_that_is_not_served_is_a_warning(clean: Chain, tmp_path: Path) -> None:
    export = damaged(clean, lambda path: blend(path, clean.without_adapter, 0.0), tmp_path / "x")
    right = clean.export.quantized
    broken = export.quantized.folder / right.facts.files[1].name
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    (mixed / right.facts.files[0].name).symlink_to(right.folder / right.facts.files[0].name)
    (mixed / right.facts.files[1].name).symlink_to(broken)
    out = Export(clean.export.model, clean.export.gguf, type(right)(mixed, right.facts, "", {}, right.cost))
    facts, certificate = certify(clean, out, tmp_path / "verify")
    assert facts.verdict == "pass"
    assert facts.checks["Q4_K_M: strength"] == "fail"
    assert any(warning.startswith("Q4_K_M: weights fails") for warning in certificate["warnings"])
