"""A plan of rows that show pictures: their tokens, and what these cost."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.seeing_models import seeing_model
from toolkit.recipe.plan import GIB, Plan, make_plan
from toolkit.recipe.reading import load_recipe
from toolkit.recipe.schema import Recipe
from toolkit.recipe.sizes import KNOWN, SMALL_VISION, shape_of_config
from toolkit.run.hardware import Hardware
from toolkit.train.memory import settings_to_lower

LAPTOP = Hardware(2, 24 * GIB, 20 * GIB, "", 0)
CARD = Hardware(8, 64 * GIB, 60 * GIB, "NVIDIA L4", 22 * GIB)
SMALL = "embedded:qwen2.5-vl-small"
SIZES = {"small": (224, 140), "turned": (140, 224), "fitting": (1120, 840), "large": (4000, 3000)}
TOKENS = {"small": 1066, "turned": 1066, "fitting": 1200, "large": 4015}
"""Under Ollama: at least 1024, at most 4096, in steps of 28 pixels. The large one is first reduced to 2048 pixels."""


def recipe(path: Path, base: str = SMALL, **more: Any) -> Recipe:
    values = {
        "name": "x", "base": base, "data": {"path": str(path), "validation": 0, "test": 0}, "golden": {"prompts": ["Why?"]},
        "ollama": {"model": "x"}, "train": {"max_length": 4608}, **more,
    }  # fmt: skip
    return Recipe.model_validate(values)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four rows of each size; the second kind is turned by its EXIF."""
    folder = tmp_path_factory.mktemp("pictured")
    exif = Image.Exif()
    exif[0x0112] = 6
    with (folder / "rows.csv").open("w", newline="", encoding="utf-8") as stream:
        write = csv.writer(stream).writerow
        write(["photo", "ask", "answer"])
        for name, size in SIZES.items():
            image = Image.new("RGB", size, "red")
            image.save(folder / f"{name}.png", **({"exif": exif} if name == "turned" else {}))
            for number in range(4):
                write([f"{name}.png", f"What is it? {number}", "Red."])
    return folder / "rows.csv"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return seeing_model(tmp_path_factory.mktemp("seeing") / "base", "qwen2_5_vl", width=64)


def planned(made: Recipe, hardware: Hardware = LAPTOP) -> Plan:
    return make_plan(made, hardware)


def stage(plan: Plan, name: str) -> Any:
    return next(one for one in plan.stages if one.name == name)


def test_a_row_has_the_tokens_of_its_pictures(rows: Path) -> None:
    plan = planned(recipe(rows))
    assert plan.train_rows == 16
    assert plan.picture_tokens_per_row == round(sum(TOKENS.values()) / 4)
    assert 20 < plan.tokens_per_row - plan.picture_tokens_per_row < 50
    (note,) = (note for note in plan.notes if "show pictures" in note)
    assert note == (
        "16 of 16 rows show pictures, which take 1,200 tokens of a row in the middle, 4,015 at most: the server takes 1,024 to "
        "4,096 for each."
    )


def test_what_is_counted_is_what_rows_have_once_they_are_prepared(rows: Path, tmp_path: Path) -> None:
    from toolkit.data.prepare import prepare_dataset
    from toolkit.models.bases import settings_folder
    from toolkit.models.pictures import rules_of, size_of_picture
    from toolkit.models.seen import picture_names
    from toolkit.run.artifacts import read_jsonl

    made = recipe(rows)
    prepare_dataset(made, tmp_path)
    rules = rules_of(settings_folder(SMALL))
    assert rules is not None
    prepared = read_jsonl(tmp_path / "train.jsonl")
    assert len(prepared) > 10
    for row in prepared:
        (name,) = picture_names(row["prompt"])
        drawn = [*TOKENS][(row["source"]["line"] - 2) // 4]
        assert rules.tokens(*size_of_picture(tmp_path / name)) == TOKENS[drawn]


@pytest.mark.parametrize(
    "lora",
    [
        {},
        {"finetune_vision_layers": False},
        {"finetune_language_layers": False},
        {"finetune_attention_modules": False},
        {"finetune_mlp_modules": False, "r": 4},
        {"target_modules": ["q_proj", "down_proj"]},
    ],
)
def test_the_adapter_of_what_sees_is_counted(base: Path, rows: Path, lora: dict[str, Any]) -> None:
    from transformers import AutoConfig, AutoModelForImageTextToText

    from toolkit.train.adapter import put_adapter

    made = recipe(
        rows, str(base), lora={"target_modules": "all-linear", **lora}, train={"method": "lora", "max_length": 4608}
    )
    model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(base))
    tuned, _ = put_adapter(model, made.lora, "CAUSAL_LM")
    trained = sum(p.numel() for p in tuned.parameters() if p.requires_grad)
    assert planned(made).trained_parameters == trained


def test_pictures_cost_time_and_memory(rows: Path) -> None:
    seeing = planned(recipe(rows))
    blind = planned(recipe(rows, data={**recipe(rows).data.model_dump(), "columns": {"image": False}}))  # type: ignore[union-attr]
    assert blind.picture_tokens_per_row == 0 and seeing.steps == blind.steps
    for name in ("train", "golden", "verify", "create"):
        assert stage(seeing, name).seconds > stage(blind, name).seconds, name
    assert stage(seeing, "train").memory_bytes > stage(blind, "train").memory_bytes + GIB // 2
    assert stage(seeing, "prepare").disk_bytes > stage(blind, "prepare").disk_bytes


def test_what_sees_is_not_kept_where_it_is_not_trained(rows: Path) -> None:
    whole = stage(planned(recipe(rows)), "train").memory_bytes
    frozen = stage(planned(recipe(rows, lora={"finetune_vision_layers": False})), "train").memory_bytes
    assert frozen < whole


def test_rows_of_pictures_that_are_longer_than_max_length_are_told(rows: Path) -> None:
    notes = planned(recipe(rows, train={"max_length": 2048})).notes
    assert any("--set train.max_length=4527" in note for note in notes), notes


def test_without_rows_a_plan_says_what_a_picture_takes(tmp_path: Path) -> None:
    said = "A row's picture will take 1,024 to 4,096 tokens, by its size."
    assert said in planned(recipe(tmp_path / "gone.csv")).notes
    assert said in planned(Recipe.model_validate({**recipe(tmp_path).model_dump(), "data": None, "adapter": "x"})).notes
    assert said not in planned(recipe(tmp_path / "gone.csv", base="embedded:smollm2-135m-instruct")).notes


def test_the_sample_on_a_cpu_and_on_cards() -> None:
    # By its file: the pictures of the workbook take 1064 tokens in the mean, as `prepare` writes them.
    small = make_plan(load_recipe(Path("recipes/car_insurance.yaml"), "cpu"), LAPTOP)
    assert (small.train_rows, small.picture_tokens_per_row, small.steps) == (180, 1064, 130)
    card = make_plan(load_recipe(Path("recipes/car_insurance.yaml"), "gpu-24gb"), CARD)
    assert card.parameters == pytest.approx(8_292_166_656, rel=0.001) and card.picture_tokens_per_row == 1064
    assert any("is not on this machine: its pictures are counted as those of a Qwen2.5-VL" in n for n in card.notes)
    assert 8 * GIB < stage(card, "train").gpu_memory_bytes < 22 * GIB
    eight = make_plan(load_recipe(Path("recipes/car_insurance.yaml"), "gpu-8gb"), CARD)
    assert 4 * GIB < stage(eight, "train").gpu_memory_bytes < 8 * GIB


def test_a_base_that_sees_none_is_shown_none(rows: Path) -> None:
    assert planned(recipe(rows, base="embedded:smollm2-135m-instruct")).picture_tokens_per_row == 0


def test_advice_does_not_cut_pictures(rows: Path) -> None:
    advice = "\n".join(settings_to_lower(recipe(rows)))
    assert "max_length" not in advice
    assert "--set lora.finetune_vision_layers=false" in advice
    assert "smaller pictures: one of 896 × 896 pixels takes 1,024 tokens" in advice


def test_models_that_see_have_the_size_that_is_published() -> None:
    for size, parameters in (("3B", 3_754_622_976), ("7B", 8_292_166_656)):
        shape = KNOWN[f"Qwen/Qwen2.5-VL-{size}-Instruct"]
        assert shape.vision is not None
        assert shape.parameters() + shape.vision.parameters() == pytest.approx(parameters, rel=0.001)


def test_what_sees_is_read_from_a_configuration() -> None:
    import json

    from toolkit.models.bases import settings_folder

    config = json.loads((settings_folder(SMALL) / "config.json").read_text(encoding="utf-8"))
    assert shape_of_config(config).vision == SMALL_VISION.vision
    # As Qwen2-VL, Qwen3-VL and Gemma 3 write them.
    text = {
        "hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 96, "num_attention_heads": 4, "vocab_size": 300,
    }  # fmt: skip
    for seen, width, matrices, whole in (
        ({"embed_dim": 1280, "hidden_size": 1536, "depth": 32, "mlp_ratio": 4, "num_heads": 16}, 1280, 2, 32),
        ({"hidden_size": 1024, "depth": 24, "intermediate_size": 4096, "num_heads": 16}, 1024, 2, 24),
        ({"hidden_size": 1152, "num_hidden_layers": 27, "intermediate_size": 4304, "num_attention_heads": 16}, 1152, 2, 27),
    ):  # fmt: skip
        vision = shape_of_config({"text_config": text, "vision_config": seen}).vision
        assert vision is not None
        assert (vision.hidden_size, vision.matrices, vision.whole) == (width, matrices, whole)


def test_planning_pictures_imports_no_torch(rows: Path) -> None:
    program = (
        "import sys; from toolkit.run.hardware import read_hardware; from toolkit.recipe.plan import make_plan\n"
        "from pathlib import Path; from toolkit.recipe.reading import load_recipe\n"
        "plan = make_plan(load_recipe(Path('recipes/car_insurance.yaml'), 'cpu'), read_hardware())\n"
        "print(plan.picture_tokens_per_row, 'torch' in sys.modules, 'transformers' in sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "1064 False False"
