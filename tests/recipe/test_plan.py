"""Plans: sizes that are known exactly, and faults with numbers."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from toolkit.errors import DataError, ResourceError
from toolkit.recipe.plan import GIB, Plan, check_plan, make_plan, print_plan
from toolkit.recipe.schema import Recipe
from toolkit.recipe.sizes import EMBEDDED, KNOWN, shape_of_base, shape_of_config
from toolkit.run.hardware import Hardware
from toolkit.run.stages import STAGE_NAMES

LAPTOP = Hardware(2, 24 * GIB, 20 * GIB, "", 0)
T4 = Hardware(8, 32 * GIB, 28 * GIB, "Tesla T4", 15 * GIB)


def recipe(rows: Path, base: str = "embedded:smollm2-135m-instruct", **more: Any) -> Recipe:
    values = {
        "name": "x",
        "base": base,
        "data": {"path": str(rows)},
        "golden": {"prompts": ["Why?"] * 4, "max_new_tokens": 50},
        "ollama": {"model": "x"},
        **more,
    }
    return Recipe.model_validate(values)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.csv"
    path.write_text("ask,answer\n" + "".join(f"question {i:03},{'a' * 188}\n" for i in range(100)), encoding="utf-8")
    return path


def test_parameters_are_exactly_those_of_the_published_models() -> None:
    assert EMBEDDED.parameters() == 134_515_008
    assert {name.split("-")[1]: shape.parameters() for name, shape in KNOWN.items() if not shape.vision} == {
        "0.5B": 494_032_768,
        "1.5B": 1_543_714_304,
        "3B": 3_085_938_688,
        "7B": 7_615_616_512,
    }
    assert EMBEDDED.lora_parameters(16, "all-linear") == 4_884_480
    assert KNOWN["Qwen/Qwen2.5-7B-Instruct"].lora_parameters(16, "all-linear") == 40_370_176
    assert EMBEDDED.lora_parameters(8, ["q_proj"]) == 30 * 8 * (576 + 576)


def test_a_real_model_has_the_size_that_its_config_gives() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=64,
        num_hidden_layers=3,
        intermediate_size=96,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=300,
    )
    model = LlamaForCausalLM(config)
    assert shape_of_config(config.to_dict()).parameters() == sum(p.numel() for p in model.parameters())


def test_a_base_that_is_not_here_is_guessed_by_its_name_and_said() -> None:
    shape, note = shape_of_base("meta/Some-3B-Instruct@main")
    assert 2.7e9 < shape.parameters() < 3.3e9
    assert (
        note
        == "meta/Some-3B-Instruct is not on this machine: its size is taken to be 3 billion parameters, by its name"
    )
    assert shape_of_base("Qwen/Qwen2.5-3B-Instruct@abc")[1] == ""


def test_a_folder_without_sizes_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(DataError, match=r"config\.json does not say how big"):
        shape_of_base(str(tmp_path))


def test_rows_tokens_and_steps(rows: Path) -> None:
    plan = make_plan(recipe(rows), LAPTOP)
    assert plan.train_rows == 90
    assert plan.tokens_per_row == 74  # 200 letters / 4, and 24 for the template
    assert plan.steps == 36  # 90 rows in batches of 8, rounded up, 3 times
    assert make_plan(recipe(rows, train={"max_steps": 7}), LAPTOP).steps == 7
    assert make_plan(recipe(rows, data={"path": str(rows), "max_characters": 100}), LAPTOP).train_rows == 0
    assert make_plan(recipe(rows, data={"path": str(rows), "max_rows": 16}), LAPTOP).steps == 6


def test_a_step_of_several_processes_is_larger_and_said(rows: Path) -> None:
    together = {"distributed": "ddp", "num_processes": 2}
    alone, two = make_plan(recipe(rows), LAPTOP), make_plan(recipe(rows, train=together), LAPTOP)
    assert (alone.steps, two.steps) == (36, 18)  # 90 rows in batches of 8, and of 16, three times
    assert two.notes[-1] == (
        "2 processes train together (ddp): a step learns from 16 rows, about 1,184 tokens (2 per_device_train_batch_size × "
        "4 gradient_accumulation_steps × 2 num_processes)."
    )
    assert not any("processes" in note for note in alone.notes)
    assert _stage(two, "train").memory_bytes == pytest.approx(2 * _stage(alone, "train").memory_bytes)
    assert _stage(two, "golden") == _stage(alone, "golden")


def test_what_cards_share_each_holds_a_part_of(rows: Path) -> None:
    def of_each_card(**train: Any) -> int:
        made = recipe(rows, base="Qwen/Qwen2.5-7B-Instruct", train={"method": "full", "bf16": True, **train})
        return int(_stage(make_plan(made, T4), "train").gpu_memory_bytes)

    whole, ddp, zero2, fsdp = (
        of_each_card(**({"distributed": how, "num_processes": 4} if how else {}))
        for how in ("", "ddp", "zero2", "fsdp")
    )
    assert whole == ddp > zero2 > fsdp
    parameters = 7_615_616_512
    assert ddp - zero2 == pytest.approx(0.75 * 16 * parameters)  # states of Adam
    assert zero2 - fsdp == pytest.approx(0.75 * 2 * parameters)


def test_chinese_costs_the_embedded_base_more_tokens(tmp_path: Path) -> None:
    path = tmp_path / "zh.csv"
    path.write_text("ask,answer\n" + "头痛怎么办,多喝水多休息\n" * 50, encoding="utf-8")
    embedded = make_plan(recipe(path), LAPTOP).tokens_per_row
    qwen = make_plan(recipe(path, base="Qwen/Qwen2.5-0.5B-Instruct"), LAPTOP).tokens_per_row
    assert (embedded, qwen) == (52, 32)


def test_every_stage_has_numbers_and_the_table_shows_them(rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = make_plan(recipe(rows), LAPTOP)
    names = ["prepare", "train", "golden", "convert", "quantize", "verify", "create", "evaluate", "report"]
    assert [s.name for s in plan.stages] == names
    assert all(s.memory_bytes > 0 and s.seconds > 0 and s.gpu_memory_bytes == 0 for s in plan.stages)
    quantize = next(s for s in plan.stages if s.name == "quantize")
    assert quantize.disk_bytes == pytest.approx(134_515_008 * (8.5 + 4.89) / 8, rel=1e-6)
    convert = next(s for s in plan.stages if s.name == "convert")
    assert convert.disk_bytes == 134_515_008 * 2
    alone = make_plan(recipe(rows, export={"file_types": ["Q4_K_M"], "serve": "Q4_K_M"}), LAPTOP)
    assert next(s for s in alone.stages if s.name == "convert").disk_bytes == 0
    assert json.loads(json.dumps(asdict(plan)))["steps"] == 36
    print_plan(plan)
    shown = capsys.readouterr().out
    assert all(name in shown for name in names)
    assert "134.5 M parameters" in shown


def test_a_7b_in_4_bits_fits_a_16_gb_card_and_in_16_bits_does_not(rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("toolkit.recipe.plan.free_disk_bytes", lambda _: 100 * GIB)
    base, train = "Qwen/Qwen2.5-7B-Instruct", {"gradient_checkpointing": True, "bf16": True, "optim": "adamw_8bit"}
    fits = make_plan(recipe(rows, base=base, train=train), T4)
    assert 6 * GIB < _stage(fits, "train").gpu_memory_bytes < 12 * GIB
    assert check_plan(fits, replace(T4, gpu_memory_bytes=15 * GIB), Path("runs/none"), STAGE_NAMES) == []
    too_big = make_plan(recipe(rows, base=base, train={**train, "method": "lora"}), T4)
    (fault,) = check_plan(too_big, T4, Path("runs/none"), STAGE_NAMES)
    assert isinstance(fault, ResourceError)
    assert fault.message.startswith("train needs about 1")
    assert fault.message.endswith("GiB of GPU memory, and 15.0 GiB are free")
    assert "--set train.method=qlora" in fault.hint


def _stage(plan: Plan, name: str) -> Any:
    return next(stage for stage in plan.stages if stage.name == name)


def test_cheaper_settings_lower_the_estimate(rows: Path) -> None:
    def training(**train: Any) -> int:
        made = make_plan(recipe(rows, base="Qwen/Qwen2.5-1.5B-Instruct", train=train), T4)
        return int(_stage(made, "train").gpu_memory_bytes)

    assert training(gradient_checkpointing=True) < training()
    assert training(per_device_train_batch_size=1) < training()
    assert training(optim="adamw_8bit") < training()
    assert training(method="full") > 3 * training(method="lora") > 3 * training()


def test_what_an_adapter_costs_is_counted(rows: Path) -> None:
    def planned(lora: dict[str, Any] | None = None, **more: Any) -> tuple[int, int]:
        train = {"method": "lora", **more.pop("train", {})}
        made = make_plan(recipe(rows, base="Qwen/Qwen2.5-1.5B-Instruct", train=train, lora=lora or {}, **more), T4)
        return made.trained_parameters, int(_stage(made, "train").gpu_memory_bytes)

    trained, memory = planned()
    assert planned({"use_dora": True})[0] > trained
    assert max(planned({"peft_type": kind})[0] for kind in ("LOKR", "IA3")) < trained / 10
    assert planned({"peft_type": "IA3"})[1] < memory
    # LoHa and LoKr hold a matrix of each layer's own size: 1.3 billion weights in 16 bits.
    assert planned({"peft_type": "LOHA"})[1] - memory > 2e9
    # An embedding that is trained whole: 151,936 x 1,536 weights with their states.
    whole, larger = planned({"modules_to_save": ["embed_tokens"]})
    assert whole - trained == 151_936 * 1_536 and larger - memory >= 16 * 151_936 * 1_536
    assert planned(tokens={"add": ["<a>", "<b>"]})[0] - trained == 2 * 1_536
    assert planned(tokens={"add": ["<a>"]})[1] > memory


def test_packed_rows_are_fewer_and_longer(rows: Path) -> None:
    apart = make_plan(recipe(rows), LAPTOP)
    packed = make_plan(recipe(rows, train={"packing": True}), LAPTOP)
    assert packed.train_rows < apart.train_rows and packed.steps < apart.steps
    assert packed.train_rows * packed.tokens_per_row == pytest.approx(apart.train_rows * apart.tokens_per_row, rel=0.02)
    assert any("train.packing is for a card" in note for note in packed.notes)
    assert _stage(packed, "train").memory_bytes > _stage(apart, "train").memory_bytes
    looking = make_plan(recipe(rows, train={"eval_steps": 1}), LAPTOP)
    assert _stage(looking, "train").seconds > _stage(apart, "train").seconds


def test_too_little_memory_and_disk_are_named_with_numbers(
    rows: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    small = replace(LAPTOP, available_memory_bytes=1 * GIB)
    plan = make_plan(recipe(rows), small)
    monkeypatch.setattr("toolkit.recipe.plan.free_disk_bytes", lambda _: GIB // 2)
    faults = check_plan(plan, small, tmp_path, STAGE_NAMES)
    text = "\n".join(f.message for f in faults)
    assert all(fault.exit_code == 4 for fault in faults)
    assert "train needs about" in text
    assert "GiB of memory, and 1.0 GiB are free" in text
    assert f"GiB of disk in {tmp_path}, and 0.5 GiB are free" in text
    # What is current costs nothing again; a result that is out of date does.
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "artifact.json").write_text("{}", encoding="utf-8")
    assert check_plan(plan, small, tmp_path, {"train"})[0].message.startswith("train needs about")
    assert check_plan(plan, small, tmp_path, ()) == []


def test_data_that_cannot_be_read_is_a_note_here(tmp_path: Path) -> None:
    plan = make_plan(recipe(tmp_path / "gone.csv"), LAPTOP)
    assert plan.steps == 0
    assert any("gone.csv" in note for note in plan.notes)


def test_a_gpu_profile_without_a_card_is_said(rows: Path) -> None:
    plan = make_plan(recipe(rows, profile="gpu-8gb"), LAPTOP)
    assert any("no NVIDIA card" in note for note in plan.notes)


def test_an_adapter_of_another_tool_is_not_trained() -> None:
    made = Recipe.model_validate(
        {
            "name": "x",
            "base": "embedded:smollm2-135m-instruct",
            "adapter": "somewhere",
            "golden": {"prompts": ["Why?"]},
            "ollama": {"model": "x"},
        }
    )
    plan = make_plan(made, LAPTOP)
    assert plan.steps == 0
    assert plan.stages[0].name == "train"


def test_planning_imports_no_torch(rows: Path) -> None:
    program = (
        "import sys; from toolkit.run.hardware import read_hardware; from toolkit.recipe.plan import make_plan\n"
        "from toolkit.recipe.schema import Recipe\n"
        "recipe = Recipe.model_validate({'name': 'x', 'base': 'embedded:smollm2-135m-instruct',"
        f" 'data': {{'path': {str(rows)!r}}}, 'ollama': {{'model': 'x'}}}})\n"
        "make_plan(recipe, read_hardware()); print('torch' in sys.modules, 'transformers' in sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "False False"
