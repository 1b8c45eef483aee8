"""What a comparison of weights says: which fault, whose link, and nothing about a right export."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch

from toolkit.parity.checks.weights import Expected, weights_check
from toolkit.parity.comparison import Comparison, TensorSums
from toolkit.parity.sums import Sums, sums_of

GENERATOR = torch.Generator().manual_seed(4)
PLAIN = Expected(r=8)


def _random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=GENERATOR)


@dataclass
class Case:
    """Two layers with two modules each that an adapter changes, a norm that it does not, and a trained head."""

    strengths: dict[str, float]
    noise: dict[str, float]
    original: float | None = None

    def comparison(self, head: bool = False) -> Comparison:
        rows = []
        for layer in (0, 1):
            for module in ("self_attn.o_proj", "mlp.up_proj"):
                rows.append(self._row(f"model.layers.{layer}.{module}.weight", True))
            rows.append(self._row(f"model.layers.{layer}.input_layernorm.weight", False))
        if head:
            rows.append(self._row("lm_head.weight", True))
        return Comparison(tensors=rows)

    def _row(self, name: str, touched: bool) -> TensorSums:
        strength = next((s for key, s in self.strengths.items() if key in name), 1.0)
        noise = next((n for key, n in self.noise.items() if key in name), 0.0)
        base = _random(64, 64)
        change = (0.1 if touched else 0.0) * _random(64, 64)
        tuned, o = base + change, 0.1 * _random(64, 64)
        export = base + strength * change + noise * _random(64, 64) + (self.original or 0.0) * o
        other = None if self.original is None or not touched else (tuned + o, o)
        return TensorSums(
            name, "F32", touched, sums_of(base, tuned, export, change, other), "other values" if noise else ""
        )


def check(
    expected: Expected = PLAIN, head: bool = False, original: float | None = None, **faults: dict[str, float]
) -> object:
    case = Case(faults.get("strengths", {}), faults.get("noise", {}), original)
    return weights_check(case.comparison(head), expected)


def told(found: object) -> tuple[str, str, str]:
    return found.verdict, found.suspect, found.message  # type: ignore[attr-defined]


@pytest.mark.parametrize("head", [False, True])
@pytest.mark.parametrize("original", [None, 0.0])
def test_a_right_export_passes(head: bool, original: float | None) -> None:
    found = check(head=head, original=original)
    assert told(found) == ("pass", "", "strength 1.0000 ± 0.0000, and nothing else but rounding")
    by_name = {m.name: m.value for m in found.measures}  # type: ignore[attr-defined]
    assert by_name["strength in the weights"] == pytest.approx(1, abs=1e-5)
    assert by_name["largest rest, as a share of its type's limit"] < 0.1


@pytest.mark.parametrize(
    ("expected", "factor", "said"),
    [
        (PLAIN, 0.0, "the adapter is not in it"),
        (PLAIN, 0.9, "the adapter is there 0.900 times: alpha is wrong"),
        (PLAIN, 2.0, "the adapter was applied twice"),
        (Expected(r=4), 2.0, "the adapter was applied twice, or scaled as rsLoRA (at r = 4 both double it)"),
        (PLAIN, math.sqrt(8), "was scaled as rsLoRA (alpha / sqrt(r)), but trained as LoRA"),
        (Expected(8, use_rslora=True), 1 / math.sqrt(8), "was scaled as LoRA (alpha / r), but trained with rsLoRA"),
        (Expected(), 0.5, "what training changed is there 0.500 times"),
    ],
)
def test_a_wrong_scale_is_named(expected: Expected, factor: float, said: str) -> None:
    verdict, suspect, message = told(check(expected, strengths={"proj": factor}))
    assert (verdict, suspect) == ("fail", "merge")
    assert said in message


@pytest.mark.parametrize(
    ("strengths", "said"),
    [
        ({"layers.1.": 0.0}, "layer 1 of 2: the adapter is missing there (strength 0.000)"),
        ({"layers.0.self_attn.o_proj": 0.0}, "layer 0 of 2: the adapter of o_proj is missing there"),
        ({"up_proj": 0.0}, "layers 0-1 of 2: the adapter of up_proj is missing there"),
        ({"layers.1.": 0.7}, "layer 1 of 2: the adapter has another strength there (strength 0.700)"),
    ],
)
def test_a_part_of_the_adapter_is_named(strengths: dict[str, float], said: str) -> None:
    verdict, suspect, message = told(check(strengths=strengths))
    assert (verdict, suspect) == ("fail", "merge")
    assert said in message


def test_a_head_that_outweighs_the_layers_hides_nothing() -> None:
    verdict, _, message = told(check(head=True, strengths={"layers": 0.0}))
    assert (verdict, message) == ("fail", "the adapter is not in it")
    verdict, suspect, message = told(check(head=True, strengths={"lm_head": 0.0}))
    assert (verdict, suspect) == ("fail", "merge")
    assert "outside of the layers is not there whole, once: lm_head.weight 0.000 times" in message


def test_another_base_and_damage_are_told_apart() -> None:
    verdict, suspect, message = told(check(noise={"layernorm": 0.1}))
    assert (verdict, suspect) == ("fail", "merge")
    assert "another base, or another revision of it: 2 of 2 tensors that the adapter does not change differ" in message
    verdict, suspect, message = told(check(noise={"proj": 0.1}))
    assert (verdict, suspect) == ("fail", "merge")
    assert "another base, or another revision of it: 4 of 4 tensors that training changed hold neither" in message
    verdict, suspect, message = told(check(Expected(8, use_dora=True), noise={"proj": 0.1}))
    assert (verdict, suspect) == ("fail", "merge")
    assert "not applied as DoRA" in message
    verdict, suspect, message = told(check(noise={"layers.0.mlp.up_proj": 0.1}))
    assert (verdict, suspect) == ("fail", "conversion")
    assert "1 of 6 tensors are damaged; layer 0's up_proj (F32): other values" in message


def test_a_model_of_no_known_base_is_judged_by_its_values() -> None:
    no_base = Expected(has_base=False)
    same = _random(8, 8)
    nothing = torch.zeros(8, 8)
    names = [f"model.layers.{layer}.mlp.up_proj.weight" for layer in range(4)]

    def tensors(wrong: int) -> Comparison:
        damaged = [same + _random(8, 8) if i < wrong else same for i in range(len(names))]
        rows = [
            TensorSums(name, "F32", True, sums_of(same, same, export, nothing), "other values" if i < wrong else "")
            for i, (name, export) in enumerate(zip(names, damaged))
        ]
        return Comparison(tensors=rows)

    right = weights_check(tensors(0), no_base)
    assert (right.verdict, right.message) == ("pass", "every tensor is the tuned one but for rounding")
    assert "strength in the weights" not in {m.name for m in right.measures}
    verdict, suspect, message = told(weights_check(tensors(1), no_base))
    assert (verdict, suspect) == ("fail", "conversion")
    assert "1 of 4 tensors are damaged; layer 0's up_proj (F32): other values" in message
    verdict, suspect, message = told(weights_check(tensors(4), no_base))
    assert (verdict, suspect) == ("fail", "conversion")
    assert message == f"it was made from another model: 4 of 4 tensors hold other values, first {names[0]}"


def test_the_original_weights_under_a_qlora_adapter_are_named() -> None:
    verdict, suspect, message = told(check(original=1.0))
    assert (verdict, suspect) == ("fail", "merge")
    assert "not onto the NF4 weights that it was trained on (share of the original base 1.00)" in message


def test_too_few_weights_are_not_judged() -> None:
    found = Comparison(tensors=[TensorSums("model.layers.0.self_attn.o_proj.weight", "Q4_K", True, Sums(
        count=20, tuned=100, plain=1, along=1, along_export=0.8, alone=1, together=0.8, changed=0.9
    ))])  # fmt: skip
    measures = {m.name: m for m in weights_check(found, PLAIN).measures}
    strength = measures["strength in the weights"]
    assert (strength.value, strength.verdict) == (0.8, None)
    assert measures["its error"].value == pytest.approx(2 * math.sqrt((0.9 - 2 * 0.8 * 0.8 + 0.64) / 20))
    alone = weights_check(found, PLAIN, alone=True)
    assert alone.verdict == "inconclusive"
    assert alone.message.startswith("strength 0.8000 ± 0.2")
    assert alone.message.endswith("too wide to tell whether the adapter is there whole")


def test_a_folder_that_stored_nothing_of_the_training_is_not_proved() -> None:
    base, tuned = torch.ones(8, 8), torch.ones(8, 8) + 1e-9
    sums = sums_of(base, base, base, tuned.double() - 1)
    found = Comparison(tensors=[TensorSums("model.layers.0.mlp.up_proj.weight", "BF16", True, sums)])
    assert weights_check(found, PLAIN).verdict == "pass"
    alone = weights_check(found, PLAIN, alone=True)
    assert (alone.verdict, alone.message.startswith("nothing that training changed is left")) == ("inconclusive", True)
    assert weights_check(found, Expected(has_base=False), alone=True).verdict == "pass"


@pytest.mark.parametrize(
    ("kind", "strength", "importance_matrix", "verdict"),
    [
        ("Q2_K", 1.0, False, "pass"),
        ("Q2_K", 0.9, False, None),
        ("Q2_K", 0.934, True, "pass"),
        ("Q2_K", 0.839, True, "fail"),
        ("Q3_K", 0.971, False, "pass"),
        ("Q3_K", 0.9, False, "fail"),
        ("Q4_K", 0.9, True, "fail"),
    ],
)
def test_only_a_file_that_tells_of_an_importance_matrix_has_its_room(
    kind: str, strength: float, importance_matrix: bool, verdict: str | None
) -> None:
    base, change = _random(256, 256), 0.1 * _random(256, 256).flip(0)
    sums = sums_of(base, base + change, base + strength * change, change)
    found = Comparison(tensors=[TensorSums("model.layers.0.mlp.up_proj.weight", kind, True, sums)])
    (measure, *_) = weights_check(found, PLAIN, importance_matrix=importance_matrix).measures
    assert (measure.value, measure.verdict) == (pytest.approx(strength, abs=1e-3), verdict)
