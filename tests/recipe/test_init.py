"""Recipes written from a look at a file: they load with every profile, and the data reader can use them."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import yaml

from toolkit.data.prepare import prepare_dataset
from toolkit.errors import UsageError
from toolkit.recipe.init import write_recipe as write
from toolkit.recipe.reading import load_recipe
from toolkit.recipe.schema import Recipe

PROFILES = ("cpu", "gpu-4gb", "gpu-6gb", "gpu-8gb", "gpu-16gb", "gpu-24gb")


def write_recipe(data: Path, name: str | None = None, out: Path | None = None, settings: tuple[str, ...] = ()) -> Path:
    return write(str(data), name, out, settings).path


@pytest.fixture
def questions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    words = random.Random(1)
    letters = "abcdefghijklmnopqrstuvwxyz"
    # Unlike each other: near duplicates would all go to the same side of the split.
    rows = [
        " ".join("".join(words.choices(letters, k=6)) for _ in range(8))
        + "?,Hold "
        + "".join(words.choices(letters, k=40))
        for _ in range(200)
    ]
    Path("Our Questions.csv").write_text("Question,Answer\n" + "\n".join(rows) + "\n", encoding="utf-8")
    return Path("Our Questions.csv")


@pytest.mark.parametrize("profile", PROFILES)
def test_the_recipe_loads_with_every_profile(questions: Path, profile: str) -> None:
    path = write_recipe(questions, None, None)
    assert path == Path("recipes/our-questions.yaml")
    recipe = load_recipe(path, profile)
    assert recipe.profile == profile
    assert recipe.name == recipe.ollama.model == "our-questions"
    assert recipe.data is not None
    assert (recipe.data.path, recipe.data.format, recipe.data.language) == ("Our Questions.csv", "columns", "en")
    assert (recipe.data.columns.prompt, recipe.data.columns.completion) == ("Question", "Answer")
    assert (recipe.data.validation, recipe.data.test, recipe.golden.from_test) == (0.1, 0.15, 16)
    assert recipe.system == "You are a helpful assistant. Answer briefly."


def test_the_data_stage_takes_it_as_it_is(questions: Path, tmp_path: Path) -> None:
    recipe = load_recipe(write_recipe(questions, "reset", None), "cpu")
    out = tmp_path / "prepared"
    out.mkdir()
    facts = prepare_dataset(recipe, out)
    assert facts.read == 200
    first = json.loads((out / "train.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert first["prompt"][1]["content"].endswith("?")


def test_chinese_rows_in_gb18030_with_chinese_column_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lines = "\n".join(f"第{i}次头痛应该怎么办呢,请多休息多喝水第{i}天还痛就去看医生" for i in range(40))
    Path("问答.csv").write_text(f"问题,回答\n{lines}\n", encoding="gb18030")
    path = write_recipe(Path("问答.csv"))
    assert path == Path("recipes/mymodel.yaml")
    cpu, gpu = load_recipe(path, "cpu"), load_recipe(path, "gpu-8gb")
    assert cpu.data is not None and gpu.data is not None
    assert (gpu.data.columns.prompt, gpu.data.columns.completion, gpu.data.language) == ("问题", "回答", "zh")
    # The embedded base spends about three tokens on a character, so shorter pairs fit.
    assert (cpu.data.max_characters, gpu.data.max_characters) == (140, 440)
    assert (gpu.data.test, gpu.golden.from_test) == (0.2, 1)  # 8 of 40 rows, give or take
    assert "乐于助人" in gpu.system


def test_rows_in_the_alpaca_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    row = {"instruction": "Name a colour.", "input": "", "output": "Blue."}
    Path("tasks.jsonl").write_text((json.dumps(row) + "\n") * 3, encoding="utf-8")
    recipe = load_recipe(write_recipe(Path("tasks.jsonl")), "cpu")
    assert recipe.data is not None
    assert recipe.data.format == "alpaca"


def test_columns_that_nobody_can_guess(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("t.csv").write_text("x1,x2,x3\n1,2,3\n", encoding="utf-8")
    with pytest.raises(UsageError, match="has the columns x1, x2, x3"):
        write_recipe(Path("t.csv"))
    recipe = load_recipe(
        write_recipe(Path("t.csv"), settings=("data.columns.prompt=x1", "data.columns.completion=x3")), "cpu"
    )
    assert recipe.data is not None and recipe.data.columns.completion == "x3"
    Path("two.csv").write_text("left side,right: side\n1,2\n", encoding="utf-8")
    recipe = load_recipe(write_recipe(Path("two.csv")), "cpu")
    assert recipe.data is not None
    assert (recipe.data.columns.prompt, recipe.data.columns.completion) == ("left side", "right: side")


def test_nothing_is_overwritten(questions: Path) -> None:
    path = write_recipe(questions, "mine", None)
    path.write_text("# edited\n", encoding="utf-8")
    with pytest.raises(UsageError, match="is not overwritten"):
        write_recipe(questions, "mine", None)
    assert path.read_text(encoding="utf-8") == "# edited\n"
    assert write_recipe(questions, "mine", Path("elsewhere.yaml")) == Path("elsewhere.yaml")


@pytest.mark.parametrize("name", ["a/b", "", "..", "naïve name"])
def test_a_name_that_cannot_be_one(questions: Path, name: str) -> None:
    with pytest.raises(UsageError, match="cannot name a recipe"):
        write_recipe(questions, name, None)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"gone\.csv"):
        write_recipe(tmp_path / "gone.csv", "x", tmp_path / "x.yaml")
    assert not (tmp_path / "x.yaml").exists()


def test_the_bases_are_those_of_the_medical_recipe(questions: Path) -> None:
    medical = yaml.safe_load((Path(__file__).parents[2] / "recipes" / "medical.yaml").read_text(encoding="utf-8"))
    written = yaml.safe_load(write_recipe(questions).read_text(encoding="utf-8"))
    assert list(written["profiles"]) == list(PROFILES)
    bases = {name: profile["base"] for name, profile in written["profiles"].items()}
    assert bases == {name: profile["base"] for name, profile in medical["profiles"].items()}


def test_the_comments_say_how_to_run_it(questions: Path) -> None:
    text = write_recipe(questions).read_text(encoding="utf-8")
    assert text.startswith("# Our Questions.csv → `ollama run our-questions`.\n")
    assert "tune2ollama run recipes/our-questions.yaml" in text
    assert "200 rows: columns, since its columns are called Question and Answer; half of the rows" in text
    assert set(yaml.safe_load(text)) <= {*Recipe.model_fields, "profiles"}


def test_one_screen_says_what_was_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x.csv").write_text('"What is tea made of?","Leaves.",7\n"What is jam made of?","Fruit and sugar.",8\n')
    path, told = write("x.csv", None, None, ["data.columns.prompt=1", "data.columns.completion=2"])
    assert "header: false" in path.read_text(encoding="utf-8")
    assert told[-1] == "2 of 2 rows can be learnt from" and "x.csv: not used: 3" in told
    rows = [{"system": f"You are desk {i % 2}.", "conversations": [{"from": "human", "value": f"q{i}"},
             {"from": "gpt", "value": "a"}]} for i in range(4)]  # fmt: skip
    Path("y.json").write_text(json.dumps(rows))
    path, told = write("y.json")
    recipe = load_recipe(path, "cpu")
    assert recipe.data is not None and (recipe.data.system, recipe.system) == ("row", "")
    assert "2 system texts of their own" in told[-1]
    with pytest.raises(UsageError, match="only keys of data"):
        write("y.json", "z", None, ["train.max_steps=3"])
