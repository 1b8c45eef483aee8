"""The importance matrix: what llama.cpp multiplies is what the tuned model multiplies; files rounded with it, and judged so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM, Qwen3MoeConfig

from tests.export.test_convert import recipe
from tests.export.test_quantize import gguf_of
from tests.llama_quantizer import quantize_with_llama_cpp
from tests.parity_chain import chain, finished, rows
from tests.small_models import tiny_llama
from tests.train.test_adopted_kinds import SHAPE, Kind, adopted, experts, made, qwen3_moe
from toolkit.errors import DataError
from toolkit.export.ggml import stored
from toolkit.export.imatrix import CHUNK, collect, measure
from toolkit.export.imatrix_file import IMATRIX_FILE, Importance, read_imatrix, write_imatrix
from toolkit.export.quantize import quantize, quantize_file
from toolkit.export.straight import convert_straight
from toolkit.models.gguf_file import read_gguf
from toolkit.parity.comparison import compare_weights
from toolkit.parity.exported import GGUFWeights
from toolkit.parity.limits import largest_rest
from toolkit.parity.tuning import Tuning
from toolkit.parity.verify import verify
from toolkit.recipe.adopted import recipe_for_adapter
from toolkit.recipe.schema import QUANTIZED_FILE_TYPES, Export
from toolkit.run.artifacts import Artifact, Cost, write_jsonl
from toolkit.run.facts import DatasetFacts, GGUFFacts

NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip
SEQUENCES = [list(range(100, 140)), list(range(700, 703)), [5] * 17]
"""One shorter than the batches that llama.cpp's own tool leaves out, one of a single token again and again."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("model") / "model")


@pytest.fixture(scope="module")
def converted(model: Path) -> Artifact[GGUFFacts]:
    return gguf_of(model, model.parent / "convert")


def file_of(artifact: Artifact[GGUFFacts]) -> Path:
    return artifact.folder / artifact.facts.files[0].name


@torch.no_grad()
def by_torch(folder: Path) -> dict[str, tuple[Any, int]]:
    """Tensor as the GGUF names it → sums of squares of its inputs, and how many; from transformers' own forward."""
    found: dict[str, tuple[Any, int]] = {}
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)

    def watch(name: str, module: torch.nn.Module) -> None:
        def hook(_module: Any, inputs: Any) -> None:
            given = inputs[0].flatten(0, -2).double()
            sums, count = found.get(name, (0, 0))
            found[name] = (sums + given.square().sum(0).numpy(), count + len(given))

        module.register_forward_pre_hook(hook)

    for number, layer in enumerate(model.model.layers):
        for name, module in layer.named_modules():
            if name in NAMES:
                watch(f"blk.{number}.{NAMES[name]}.weight", module)
    for sequence in SEQUENCES:
        model(torch.tensor([sequence]))
    return found


def test_it_is_what_the_model_multiplies(model: Path, converted: Artifact[GGUFFacts]) -> None:
    found, wanted = collect(file_of(converted), SEQUENCES), by_torch(model)
    assert found.keys() == wanted.keys()
    for name, (sums, count) in wanted.items():
        assert found[name].counts.tolist() == [count] == [60]
        # The file's weights are F16, and llama.cpp rounds what it multiplies them with.
        assert np.abs(found[name].sums[0] - sums).max() < 0.01 * sums.max(), name


def test_an_expert_is_judged_by_what_is_sent_to_it(tmp_path: Path) -> None:
    gguf = file_of(gguf_of(qwen3_moe(tmp_path / "model"), tmp_path / "convert"))
    found = collect(gguf, SEQUENCES)
    shapes = {t.name: t.shape for t in read_gguf(gguf).tensors}
    experts = [name for name in found if "_exps" in name]
    assert experts
    for name in experts:
        columns, _, many = shapes[name]
        assert found[name].sums.shape == (many, columns)
        routed = found[name].counts.sum() / 60
        assert routed == round(routed) > 1, (name, found[name].counts)
        unused = found[name].counts == 0
        assert (found[name].means()[unused] == 1).all()


def test_a_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    one = Importance(np.array([[1.0, 4.0], [9.0, 0.0]]), np.array([2, 0]))
    write_imatrix({"blk.0.ffn_up.weight": one}, tmp_path / "m.gguf", "some rows, 训练", 7, CHUNK)
    found = read_imatrix(tmp_path / "m.gguf")
    assert (found.file, found.dataset, found.sequences) == ("m.gguf", "some rows, 训练", 7)
    assert found.means["blk.0.ffn_up.weight"].tolist() == [0.5, 2.0, 1.0, 1.0]
    # As gguf-py reads it, too.
    import gguf

    fields = gguf.GGUFReader(tmp_path / "m.gguf").fields
    assert fields["general.type"].contents() == "imatrix"
    assert fields["imatrix.chunk_size"].contents() == CHUNK


def matrix_of(converted: Artifact[GGUFFacts], out: Path) -> Path:
    write_imatrix(collect(file_of(converted), SEQUENCES), out / IMATRIX_FILE, "rows", len(SEQUENCES), CHUNK)
    return out / IMATRIX_FILE


def test_quantized_with_it(converted: Artifact[GGUFFacts], tmp_path: Path) -> None:
    path = matrix_of(converted, tmp_path)
    types = [*QUANTIZED_FILE_TYPES]
    wanted = recipe(export={"file_types": ["F16", *types], "serve": "F16", "imatrix": True})
    for name in ("with", "without"):
        (tmp_path / name).mkdir()
    made = quantize(wanted, converted, tmp_path / "with", path)
    plain = recipe(export={"file_types": ["F16", "Q4_K_M"], "serve": "F16"})
    quantize(plain, converted, tmp_path / "without")
    assert [file.file_type for file in made.files] == types
    for file in made.files:
        quantize_with_llama_cpp(file_of(converted), tmp_path / "theirs.gguf", file.file_type, path)
        ours = tmp_path / "with" / file.name
        assert ours.read_bytes() == (tmp_path / "theirs.gguf").read_bytes(), file.file_type
    header = read_gguf(tmp_path / "with" / "tiny-tale-Q4_K_M.gguf")
    told = {key: value for key, value in header.metadata.items() if key.startswith("quantize.imatrix.")}
    assert told == {
        "quantize.imatrix.file": IMATRIX_FILE,
        "quantize.imatrix.dataset": "rows",
        "quantize.imatrix.entries_count": 14,
        "quantize.imatrix.chunks_count": 3,
    }
    means = read_imatrix(path).means
    source = GGUFWeights(file_of(converted))
    held = {name: GGUFWeights(tmp_path / name / "tiny-tale-Q4_K_M.gguf") for name in ("with", "without")}
    errors = {name: 0.0 for name in held}
    weighed = 0
    for tensor in held["with"].header.tensors:
        if tensor.name not in means or tensor.type != "Q4_K":
            continue
        before = source.values(next(t for t in source.header.tensors if t.name == tensor.name))
        for name, weights in held.items():
            same = next(t for t in weights.header.tensors if t.name == tensor.name)
            errors[name] += float(((weights.values(same) - before) ** 2 * means[tensor.name]).sum())
        # What llama.cpp's own routine makes with these numbers, and not what it makes without.
        raw = held["with"].raw(tensor)
        assert np.array_equal(raw, stored(before, "Q4_K", means[tensor.name]))
        weighed += not np.array_equal(raw, stored(before, "Q4_K"))
    assert weighed > 5
    assert errors["with"] < errors["without"]


def test_one_of_another_model_is_refused(converted: Artifact[GGUFFacts], tmp_path: Path) -> None:
    other = gguf_of(tiny_llama(tmp_path / "model", hidden=512), tmp_path / "convert")
    path = matrix_of(other, tmp_path)
    wanted = recipe(export={"file_types": ["F16", "Q4_K_M"], "serve": "F16", "imatrix": str(path)})
    with pytest.raises(DataError, match=r"is no importance matrix of this model: .*blk.0.attn_k.weight first"):
        quantize(wanted, converted, tmp_path, path)
    with pytest.raises(DataError, match="is no importance matrix"):
        read_imatrix(file_of(converted))


def test_one_that_lacks_what_a_type_needs_is_refused(converted: Artifact[GGUFFacts], tmp_path: Path) -> None:
    found = collect(file_of(converted), SEQUENCES)
    path, most = tmp_path / IMATRIX_FILE, {n: i for n, i in found.items() if n != "blk.1.ffn_up.weight"}
    write_imatrix(most, path, "rows", len(SEQUENCES), CHUNK)
    (tmp_path / "out").mkdir()
    quantize_file(file_of(converted), {"Q4_K_M": tmp_path / "out" / "a.gguf"}, path)
    quantize_with_llama_cpp(file_of(converted), tmp_path / "theirs.gguf", "Q4_K_M", path)
    assert (tmp_path / "out" / "a.gguf").read_bytes() == (tmp_path / "theirs.gguf").read_bytes()
    with pytest.raises(
        DataError, match=r"makes blk.1.ffn_up.weight IQ2_S, .* without .*, and imatrix.gguf has none of it"
    ):
        quantize_file(file_of(converted), {"IQ2_M": tmp_path / "out" / "b.gguf"}, path)
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["a.gguf"]


def test_one_with_the_head_is_taken_and_one_without_numbers_refused(
    converted: Artifact[GGUFFacts], tmp_path: Path
) -> None:
    """`llama-imatrix --process-output` measures the output matrix, too; a tied one stands under the embedding's name."""
    found = collect(file_of(converted), SEQUENCES)
    head = "output.weight" if GGUFWeights(file_of(converted)).has("output.weight") else "token_embd.weight"
    more = {**found, head: found["blk.0.attn_q.weight"]}
    path = tmp_path / IMATRIX_FILE
    write_imatrix(more, path, "rows", len(SEQUENCES), CHUNK)
    quantize_file(file_of(converted), {"Q4_K_M": tmp_path / "a.gguf"}, path)
    quantize_with_llama_cpp(file_of(converted), tmp_path / "theirs.gguf", "Q4_K_M", path)
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "theirs.gguf").read_bytes()
    more[head].sums[0, 5] = np.nan
    write_imatrix(more, path, "rows", len(SEQUENCES), CHUNK)
    with pytest.raises(DataError, match="holds what is no number for "):
        read_imatrix(path)


def test_types_that_need_it_are_known() -> None:
    with pytest.raises(ValueError, match=r"IQ2_M cannot be made without an importance matrix: export.imatrix: true"):
        Export(file_types=["F16", "IQ2_M"], serve="F16")
    assert Export(file_types=["F16", "IQ2_M"], serve="F16", imatrix=True).measures_imatrix
    assert not Export(file_types=["F16"], serve="F16", imatrix=True).measures_imatrix


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the stage, on a trained chain's file."""
    folder = tmp_path_factory.mktemp("measured")
    (folder / "imatrix").mkdir()
    split = rows(["{} one.", "{} two.", "{} three.", "{} four."])
    write_jsonl(folder / "train.jsonl", split)
    facts = DatasetFacts(rows={"train": 40}, read=40, kept=40, dropped={}, repaired={}, encodings={}, language="en")
    clean = chain()
    told = measure(
        clean.recipe, Artifact(folder, facts, "", {}, Cost()), clean.adapter, clean.export.gguf, folder / "imatrix"
    )
    assert (told.sequences, told.tensors) == (40, 14)  # all rows there are
    assert told.tokens > 40 * 20
    return folder / "imatrix"


def certificate(imatrix: Path, quantized_with: Path | None, out: Path) -> dict[str, Any]:
    """Of a chain that is quantized with one matrix, or none, and judged by another."""
    clean = chain()
    types = ["F16", "Q8_0", "Q4_K_M", *(["IQ3_XXS"] if quantized_with else [])]
    chosen = clean.recipe.model_copy(update={"export": Export(file_types=types, serve="Q8_0", imatrix=True)})
    for name in ("quantize", "verify"):
        (out / name).mkdir()
    made = finished(out / "quantize", quantize(chosen, clean.export.gguf, out / "quantize", quantized_with))
    verify(chosen, clean.adapter, clean.golden, clean.export.model, clean.export.gguf, made, out / "verify", imatrix)
    return dict(json.loads((out / "verify" / "certificate.json").read_text(encoding="utf-8")))


def checks_of(told: dict[str, Any], subject: str) -> dict[str, Any]:
    found = next(s for s in told["subjects"] if s["name"] == subject)
    return {check["name"]: check for check in found["checks"]}


def test_certified_to_the_value(measured: Path, tmp_path: Path) -> None:
    told = certificate(measured / IMATRIX_FILE, measured / IMATRIX_FILE, tmp_path)
    assert told["verdict"] == "pass"
    for name in ("Q8_0", "Q4_K_M", "IQ3_XXS"):
        checks = checks_of(told, name)
        assert checks["source"]["verdict"] == checks["weights"]["verdict"] == "pass", checks
        assert "value for value" in checks["source"]["message"], checks["source"]["message"]
        measures = {m["name"]: m["value"] for m in checks["weights"]["measures"]}
        # Rounded with the same matrix, the tuned weights are the file's, at three bits too.
        assert (measures["strength in the weights"], measures["its error"]) == (1.0, 0.0), name
        assert measures["largest rest, as a share of its type's limit"] < 0.5, name


def test_a_file_that_was_rounded_without_it_is_told(measured: Path, tmp_path: Path) -> None:
    told = certificate(measured / IMATRIX_FILE, None, tmp_path)
    source = checks_of(told, "Q4_K_M")["source"]
    assert "value for value" not in source["message"], source["message"]


def test_each_expert_is_judged_by_what_was_sent_to_it(tmp_path: Path) -> None:
    """An adapter on experts, quantized with a matrix: rounded anew with each one's own means, it is the file's."""
    wide = {**SHAPE, "hidden_size": 256, "head_dim": 64}
    config = Qwen3MoeConfig(**wide, num_experts=4, moe_intermediate_size=256, intermediate_size=256)
    base = experts(tmp_path / "base", config)
    lora = LoraConfig(r=2, target_modules=["v_proj"], target_parameters=["mlp.experts.down_proj"])
    made(Kind(lora), base, tmp_path / "adapter")
    adapter = adopted(tmp_path / "adapter", base, tmp_path / "train")
    chosen = recipe_for_adapter(tmp_path / "adapter", "tiny", str(base))
    chosen = chosen.model_copy(update={"export": Export(file_types=["F16", "Q4_K_M"], serve="F16", imatrix=True)})
    (tmp_path / "convert").mkdir()
    converted = finished(tmp_path / "convert", convert_straight(chosen, adapter, tmp_path / "convert"))
    imatrix = matrix_of(converted, tmp_path)
    (quantized,) = quantize(chosen, converted, tmp_path, imatrix).files
    quantize_with_llama_cpp(file_of(converted), tmp_path / "theirs.gguf", "Q4_K_M", imatrix)
    assert (tmp_path / quantized.name).read_bytes() == (tmp_path / "theirs.gguf").read_bytes()
    tuning = Tuning(adapter, "as trained")
    whose = {"its own": imatrix, "unknown": None, "another's": tmp_path / "turned.gguf"}
    turned = {
        name: Importance(np.roll(one.sums, 1, 0), np.roll(one.counts, 1))
        for name, one in collect(file_of(converted), SEQUENCES).items()
    }
    write_imatrix(turned, tmp_path / "turned.gguf", "rows", len(SEQUENCES), CHUNK)
    files = {name: GGUFWeights(tmp_path / quantized.name, tuning.layout, matrix) for name, matrix in whose.items()}
    rests = {}
    for name, compared in compare_weights(tuning, dict(files), largest_rest).items():
        found = {t.name: t for t in compared.tensors if "experts" in t.name and t.type == "Q4_K"}
        assert len(found) >= 3, found.keys()
        touched = [t for t in found.values() if t.touched]
        assert touched and all(0.9 < (t.sums.strength or 0) < 1.1 for t in touched)
        rests[name] = max(t.sums.rest for t in found.values())
    assert rests["its own"] == 0 < min(rests["unknown"], rests["another's"]), rests
