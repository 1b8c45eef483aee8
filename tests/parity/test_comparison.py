"""Strength and rest, tensor by tensor, on numbers that can be worked out by hand, and on every kind of damage."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from tests.faults.files import unpermuted
from tests.small_models import adapter_artifact, tiny_adapter, tiny_llama
from toolkit.export.ggml import stored, widened
from toolkit.parity.checks.weights import Expected, weights_check
from toolkit.parity.comparison import compare_weights
from toolkit.parity.damage import damage, layers_told, spoken, whose
from toolkit.parity.exported import FolderWeights
from toolkit.parity.limits import largest_rest
from toolkit.parity.rounding import rounded
from toolkit.parity.sums import Sums, sums_of
from toolkit.parity.tuning import Tuning


def matrix(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def test_sums_by_hand() -> None:
    base, tuned = torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 4.0]])
    found = sums_of(base, tuned, torch.tensor([[2.0, 3.0]]), tuned - base)
    assert (found.count, found.tuned, found.export) == (2, 17.0, 13.0)
    assert (found.plain, found.along, found.along_export) == (4.0, 4.0, 2.0)
    assert (found.alone, found.together, found.changed) == (4.0, 2.0, 2.0)
    assert found.strength == 0.5
    assert found.rest == pytest.approx(math.sqrt(1 / 17))  # (1, 1) less half of (0, 2) leaves (1, 0)
    assert found.strength_error == pytest.approx(2 * math.sqrt(1 * 4 / 2) / 4)
    assert found.difference == pytest.approx(math.sqrt(2 / 17))


@pytest.mark.parametrize("factor", [0.0, 0.5, 1.0, 2.0, 8**0.5])
def test_a_wrong_scale_leaves_no_more_rest_than_rounding(factor: float) -> None:
    base, change = matrix(256, 512), 0.2 * matrix(256, 512, 1)
    stored = [rounded(w, "Q4_K") for w in (base, base + change, base + factor * change)]
    assert sums_of(*stored, change).rest < largest_rest("Q4_K")
    damaged = sums_of(*stored[:2], stored[2].flip(0), change)
    assert damaged.rest > 2 * largest_rest("Q4_K")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_no_number_is_never_mere_rounding(value: float) -> None:
    base, change = matrix(8, 8), 0.1 * matrix(8, 8, 1)
    export = base + change
    export[3, 4] = value
    assert sums_of(base, base + change, export, change).rest == math.inf
    assert sums_of(base, base, export, 0 * change).rest == math.inf
    assert sums_of(0 * base, 0 * base, export, 0 * change).rest == math.inf


def test_sums_add_up_and_tell_nothing_where_nothing_changed() -> None:
    same = torch.ones(2, 2)
    one = sums_of(same, same, same, same - same)
    assert one.strength is None and one.strength_error == math.inf and one.rest == 0
    one += sums_of(torch.zeros(1), torch.ones(1), torch.ones(1), torch.ones(1))
    assert (one.count, one.strength, one.rest) == (5, 1.0, 0.0)
    assert Sums().strength is None


@pytest.mark.parametrize("kind", ["F16", "Q8_0", "Q4_K", "Q3_K"])
@pytest.mark.parametrize("factor", [0.0, 0.5, 0.9, 1.0, 2.0])
def test_the_strength_is_the_factor_at_every_rounding(kind: str, factor: float) -> None:
    base = matrix(256, 512)
    change = 0.05 * matrix(256, 512, 1)
    found = sums_of(
        rounded(base, kind), rounded(base + change, kind), rounded(base + factor * change, kind), change
    )  # fmt: skip
    assert found.strength == pytest.approx(factor, abs=0.001 if kind == "F16" else 0.03)
    if factor == 1.0:
        assert found.strength == 1.0 and found.rest == 0.0 and found.strength_error == 0.0
    assert abs(found.strength - factor) <= 2 * found.strength_error + 1e-3


def with_importance(rows: torch.Tensor, kind: str) -> torch.Tensor:
    """Rounded as others do it, with an importance matrix: some columns matter more."""
    weights = (matrix(1, rows.shape[1], 9).exp() ** 2)[0].numpy()
    return torch.from_numpy(widened(stored(rows.numpy(), kind, weights), kind))


@pytest.mark.parametrize("factor", [0.0, 0.5, 1.0])
def test_another_rounding_than_ours_does_not_weaken_a_small_change(factor: float) -> None:
    # Laid along the rounded change, which holds rounding errors that the export does not share, it would.
    base, change = matrix(512, 512), 0.03 * matrix(512, 512, 1)
    export = with_importance(base + factor * change, "Q4_K")
    found = sums_of(rounded(base, "Q4_K"), rounded(base + change, "Q4_K"), export, change)
    if factor == 1.0:
        assert found.together / found.alone < 0.9
    assert abs(found.strength - factor) < max(2 * found.strength_error, 0.02)
    assert found.strength_error < 0.03


def test_the_share_of_the_original_base() -> None:
    base, original, change = matrix(64, 64), matrix(64, 64, 2), 0.1 * matrix(64, 64, 1)
    tuned, onto = base + change, original + change
    other = (onto, original - base)
    right, wrong = (sums_of(base, tuned, export, change, other) for export in (tuned, onto))
    assert (right.original_share, right.strength) == (pytest.approx(0, abs=1e-6), pytest.approx(1, abs=1e-6))
    assert (wrong.original_share, wrong.strength) == (pytest.approx(1, abs=1e-6), pytest.approx(1, abs=1e-6))
    assert sums_of(base, tuned, onto, change).original_share == 0


def test_a_tensor_that_was_quantized_but_not_tuned() -> None:
    original = matrix(64, 64)
    base, nothing = rounded(original, "Q4_0"), torch.zeros(64, 64)
    other = (original, original - base)
    right, wrong = (sums_of(base, base, export, nothing, other) for export in (base, original))
    assert (right.strength, right.original_share, right.rest) == (None, 0.0, 0.0)
    assert (wrong.strength, wrong.original_share) == (None, pytest.approx(1))
    assert wrong.rest == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("factor", [0.0, 0.5, 1.0, 2.0])
def test_a_wrong_strength_is_not_taken_for_another_base(factor: float) -> None:
    # The rounding errors of the tuned weights are in D_t and in O.
    original, change = matrix(256, 512), 0.1 * matrix(256, 512, 1)
    base = rounded(original, "Q4_0")
    stored = [rounded(w, "Q4_K") for w in (base, base + change, base + factor * change, original + change)]
    found = sums_of(*stored[:3], change, (stored[3], original - base))
    # A base on a grid swallows a part of a small change, so a half may show as less.
    assert (0.9 < found.strength < 1.1) == (factor == 1.0)
    assert abs(found.original_share) < 0.1


def _zero_rows(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.clone()
    tensor[48:] = 0
    return tensor


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.T, "transposed"),
        (lambda t: unpermuted(t.T, 4), "transposed"),
        (lambda t: t.flip(0), "its rows are in another order"),
        (lambda t: t * 0, "all zero"),
        (_zero_rows, "16 rows are zero, the first is row 48"),
        (lambda t: t + matrix(64, 64, 5), "other values"),
        (lambda t: t / 0, "holds values that are no numbers"),
    ],
)
def test_damage_has_a_name(change: object, said: str) -> None:
    tensor = matrix(64, 64)
    assert damage(tensor, change(tensor)) == said  # type: ignore[operator]
    assert damage(tensor[0], tensor[0] * 0) == "all zero"
    assert damage(tensor[0], tensor[1]) == "other values"


def test_layers_told() -> None:
    assert layers_told([3]) == "layer 3"
    assert layers_told([5, 0, 1, 2, 7]) == "layers 0-2, 5 and 7"
    assert layers_told(range(4)) == "layers 0-3"


def test_tensors_in_words() -> None:
    assert spoken("model.layers.6.mlp.up_proj.weight") == "layer 6's up_proj"
    assert spoken("model.layers.6.input_layernorm.weight") == "layer 6's input_layernorm"
    assert spoken("model.layers.0.self_attn.q_proj.bias") == "layer 0's q_proj.bias"
    assert spoken("model.norm.weight") == "model.norm"
    up, there = "model.layers.6.mlp.up_proj.weight", "model.layers.{}.mlp.{}.weight"
    assert whose(there.format(5, "up_proj"), up) == "layer 5's"
    assert whose(there.format(6, "gate_proj"), up) == "layer 6's gate_proj's"


class Held:
    """An export that holds given tensors."""

    layout = None

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        self.tensors = tensors

    def has(self, name: str) -> bool:
        return name in self.tensors

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.tensors[name].shape)

    def importance(self, name: str) -> None:
        return None

    def others(self, names: Iterable[str]) -> list[str]:
        return sorted(self.tensors.keys() - set(names))

    def type(self, name: str) -> str:
        return "F32"

    def load(self, name: str, rows: torch.Tensor | None = None) -> torch.Tensor:
        return self.tensors[name] if rows is None else self.tensors[name][rows]


def test_tensors_are_laid_side_by_side(tmp_path: Path) -> None:
    base = tiny_llama(tmp_path / "base", layers=1)
    tuning = Tuning(adapter_artifact(tiny_adapter(base, tmp_path / "adapter"), base), "as trained")
    right = {name: tuning.load(name)[1] for name in tuning.names()}
    wrong = dict(right)
    q, norm, up = (f"model.layers.0.{n}.weight" for n in ("self_attn.q_proj", "input_layernorm", "mlp.up_proj"))
    del wrong[norm]
    wrong[up], wrong[q] = right[up][:-1], right[q].T.contiguous()
    found = compare_weights(
        tuning, {"base": FolderWeights(base), "right": Held(right), "wrong": Held(wrong)}, largest_rest
    )
    pooled = found["right"].of_training()
    assert pooled.strength == 1.0 and pooled.rest == 0.0
    assert found["base"].of_training().strength == pytest.approx(0, abs=1e-6)
    assert found["base"].by_layer().keys() == {0} and found["base"].outside_layers() == {}
    assert found["wrong"].missing == [norm]
    assert found["wrong"].shapes == [(up, (512, 256), (511, 256))]
    assert {t.name: t.damage for t in found["wrong"].tensors if t.damage} == {q: "transposed"}
    assert sum(t.touched for t in found["right"].tensors) == 7
    assert all(c.extra == [] for c in found.values())


def test_values_of_another_tensor_are_recognised(tmp_path: Path) -> None:
    base = tiny_llama(tmp_path / "base", layers=3)
    tuning = Tuning(adapter_artifact(tiny_adapter(base, tmp_path / "adapter"), base), "as trained")
    right = {name: tuning.load(name)[1] for name in tuning.names()}
    up, gate = "model.layers.{}.mlp.up_proj.weight", "model.layers.{}.mlp.gate_proj.weight"
    swapped = right | {up.format(2): right[up.format(1)], gate.format(0): right[up.format(0)]}
    found = compare_weights(tuning, {"swapped": Held(swapped)}, largest_rest)["swapped"]
    assert {t.name: t.damage for t in found.tensors if t.damage} == {
        up.format(2): "holds layer 1's values", gate.format(0): "holds layer 0's up_proj's values",
    }  # fmt: skip
    said = weights_check(found, Expected(r=8)).message
    assert "layer 0's gate_proj (F32) holds layer 0's up_proj's values" in said


def test_a_tied_head_that_is_written_has_to_be_the_embedding(tmp_path: Path) -> None:
    base = tiny_llama(tmp_path / "base", layers=1)
    tuning = Tuning(adapter_artifact(tiny_adapter(base, tmp_path / "adapter"), base), "as trained")
    right = {name: tuning.load(name)[1] for name in tuning.names()}
    assert tuning.tied_head == "lm_head.weight" not in right
    embedding = right["model.embed_tokens.weight"]
    exports = {
        "tied": Held(right),
        "untied": Held(right | {"lm_head.weight": embedding.clone()}),
        "another": Held(right | {"lm_head.weight": embedding + 0.1 * matrix(*embedding.shape), "a.bias": matrix(1, 4)}),
    }
    found = compare_weights(tuning, exports, largest_rest)
    assert [c.missing for c in found.values()] == [[], [], []]
    assert {name: c.extra for name, c in found.items()} == {"tied": [], "untied": [], "another": ["a.bias"]}
    damaged = {name: [t.name for t in c.tensors if t.damage] for name, c in found.items()}
    assert damaged == {"tied": [], "untied": [], "another": ["lm_head.weight"]}


@pytest.mark.parametrize("merged_in", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("saved_as", [torch.float32, torch.bfloat16])
def test_a_16_bit_base_may_be_merged_in_either_precision(
    merged_in: torch.dtype, saved_as: torch.dtype, tmp_path: Path
) -> None:
    base = tiny_llama(tmp_path / "base", layers=1, dtype=torch.bfloat16)
    adapter = tiny_adapter(base, tmp_path / "adapter")
    model = AutoModelForCausalLM.from_pretrained(base, dtype=merged_in)
    PeftModel.from_pretrained(model, adapter).merge_and_unload().to(saved_as).save_pretrained(tmp_path / "merged")
    tuning = Tuning(adapter_artifact(adapter, base, base_dtype="bfloat16"), "as trained")
    found = compare_weights(tuning, {"merged": FolderWeights(tmp_path / "merged")}, largest_rest)["merged"]
    check = weights_check(found, Expected(r=8), alone=True)
    assert check.verdict == "pass", check.message
    assert max(t.sums.rest / largest_rest(t.type) for t in found.tensors) < 0.2
    # Without the adapter, the same precision is no excuse.
    bare = {name: tuning.load(name).base for name in tuning.names()}
    lost = compare_weights(tuning, {"lost": Held(bare)}, largest_rest)["lost"]
    assert weights_check(lost, Expected(r=8)).message == "the adapter is not in it"
