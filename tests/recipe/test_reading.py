"""Recipes are strict, and every fault is told at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from toolkit.errors import UsageError
from toolkit.recipe.reading import load_recipe, pick_profile, write_resolved
from toolkit.recipe.schema import Recipe
from toolkit.run.hardware import Hardware

GB = 2**30
CPU = Hardware(2, 24 * GB, 20 * GB, "", 0)
MINIMAL = """\
name: small
base: embedded:smollm2-135m-instruct
data:
  path: rows.csv
ollama:
  model: small
"""


def _write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_minimal_recipe_takes_the_defaults_of_the_field(tmp_path: Path) -> None:
    recipe = load_recipe(_write(tmp_path, MINIMAL), hardware=CPU)
    assert (recipe.lora.r, recipe.lora.lora_alpha) == (16, 16)
    assert len(recipe.lora.target_modules) == 7
    assert (recipe.train.per_device_train_batch_size, recipe.train.gradient_accumulation_steps) == (2, 4)
    assert (recipe.train.method, recipe.train.num_train_epochs) == ("qlora", 3.0)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            MINIMAL + "train:\n  learning_rat: 1.0e-4\n",
            ["small.yaml:8", "train.learning_rat", "did you mean learning_rate"],
        ),
        (MINIMAL + "tain: {}\n", ["small.yaml:7", "unknown key tain", "did you mean train"]),
        (MINIMAL + "lora:\n  r: sixteen\n", ["small.yaml:8", "lora.r", "'sixteen'"]),
        (MINIMAL + "lora:\n  r: 0\n", ["lora.r", "greater than 0"]),
        (
            MINIMAL + "export:\n  file_types: [Q4_KM]\n",
            ["small.yaml:8", "Q4_KM is no file type", "did you mean Q4_K_M"],
        ),
        (MINIMAL + "export:\n  file_types: [F16]\n  serve: Q8_0\n", ["Q8_0 is not among"]),
        (MINIMAL + "train:\n  method: full\nlora:\n  use_dora: true\n", ["use_dora goes with"]),
        (MINIMAL + "golden:\n  from_test: 0\n", ["nothing can be proved"]),
        (MINIMAL.replace("model: small", "model: 'bad name!'"), ["small.yaml:6", "no Ollama model name"]),
        (MINIMAL.replace("base: embedded:smollm2-135m-instruct\n", ""), ["base is missing"]),
        (MINIMAL.replace("name: small", "name: ../up"), ["cannot name a folder"]),
    ],
)
def test_each_fault_names_file_line_and_key(tmp_path: Path, text: str, words: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        load_recipe(_write(tmp_path, text), hardware=CPU)
    for word in words:
        assert word in caught.value.message, caught.value.message
    assert "--dry-run" in caught.value.hint


def test_all_faults_come_in_one_message(tmp_path: Path) -> None:
    text = MINIMAL + "lora:\n  r: x\n  rank: 3\ntrain:\n  optim: adam\nexport:\n  serve: Q9\n"
    with pytest.raises(UsageError) as caught:
        load_recipe(_write(tmp_path, text), hardware=CPU)
    lines = caught.value.message.splitlines()
    assert len(lines) == 4
    assert all("small.yaml:" in line for line in lines)


def test_settings_win_over_profile_and_file(tmp_path: Path) -> None:
    text = (
        MINIMAL
        + "train:\n  max_steps: 5\nprofiles:\n  cpu:\n    train:\n      max_steps: 6\n      learning_rate: 1.0e-3\n"
    )
    path = _write(tmp_path, text)
    assert load_recipe(path, hardware=CPU).train.max_steps == 6
    recipe = load_recipe(path, settings=["train.max_steps=7", "train.learning_rate=2e-4"], hardware=CPU)
    assert recipe.train.max_steps == 7
    assert recipe.train.learning_rate == 2e-4


def test_a_setting_without_a_value_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"key\.key=value"):
        load_recipe(_write(tmp_path, MINIMAL), settings=["train.max_steps"], hardware=CPU)


def test_paths_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _write(tmp_path, MINIMAL.replace("rows.csv", "${SMALL_DATA:-here}/rows.csv"))
    monkeypatch.delenv("SMALL_DATA", raising=False)
    assert load_recipe(path, hardware=CPU).data.path == "here/rows.csv"  # type: ignore[union-attr]
    monkeypatch.setenv("SMALL_DATA", "there")
    assert load_recipe(path, hardware=CPU).data.path == "there/rows.csv"  # type: ignore[union-attr]
    path = _write(tmp_path, MINIMAL.replace("rows.csv", "${SMALL_OTHER}"))
    with pytest.raises(UsageError, match="the environment has no SMALL_OTHER"):
        load_recipe(path, hardware=CPU)


HOSTILE = [
    "${HOME} and ${NOBODY:-x}",
    "2e-4",
    "null",
    " : # ",
    "你好\n\n\tthere\u2028\x85 ",
    "'\"👩\u200d⚕️\x07",
    "no",
    "",
]


@pytest.mark.parametrize("system", HOSTILE)
def test_a_resolved_recipe_is_read_back_as_it_was(tmp_path: Path, system: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMALL_DATA", "here")
    text = (
        MINIMAL.replace("rows.csv", "${SMALL_DATA}/${SMALL_DATA}.csv")
        + "profiles:\n  gpu-8gb:\n    lora: {r: 8}\n  cpu: {}\n"
    )
    settings = ["train.learning_rate=1e-5", "golden.prompts=[1e5x, '${HOME}']", "merge.onto=16-bit"]
    recipe = load_recipe(_write(tmp_path, text), "gpu-8gb", settings, CPU).model_copy(update={"system": system})
    monkeypatch.delenv("SMALL_DATA")
    written = write_resolved(recipe, tmp_path / "run")
    assert load_recipe(written, hardware=CPU) == recipe
    assert load_recipe(written, "gpu-8gb", hardware=CPU) == recipe
    assert (recipe.profile, recipe.lora.r, recipe.train.learning_rate) == ("gpu-8gb", 8, 1e-5)
    assert load_recipe(written, settings=["lora.r=4"], hardware=CPU).lora.r == 4
    with pytest.raises(UsageError, match=r"recipe\.yaml was written by a run with profile gpu-8gb"):
        load_recipe(written, "cpu", hardware=CPU)


def test_an_export_s_recipe_is_read_back_as_it_was(tmp_path: Path) -> None:
    recipe = Recipe.model_validate(
        {"name": "x", "profile": "export", "base": "me/base@main", "adapter": "some/where", "load_in_4bit": True,
         "golden": {"prompts": ["你好"], "from_test": 0}, "ollama": {"model": "x"}}
    )  # fmt: skip
    assert load_recipe(write_resolved(recipe, tmp_path), hardware=CPU) == recipe


def test_profile_by_memory() -> None:
    profiles = {"cpu": {}, "gpu-8gb": {}, "gpu-16gb": {}, "gpu-24gb": {}}

    def picked(memory: float) -> str:
        return pick_profile(profiles, Hardware(2, 24 * GB, 20 * GB, "card", int(memory * GB)))

    assert [picked(m) for m in (0, 6, 8, 11.8, 15.7, 22.5, 80)] == [
        "cpu", "cpu", "gpu-8gb", "gpu-8gb", "gpu-16gb", "gpu-24gb", "gpu-24gb",
    ]  # fmt: skip


def test_an_unknown_profile_offers_the_nearest(tmp_path: Path) -> None:
    path = _write(tmp_path, MINIMAL + "profiles:\n  gpu-16gb: {}\n")
    with pytest.raises(UsageError, match=r"no profile gpu-16b \(did you mean gpu-16gb"):
        load_recipe(path, profile="gpu-16b", hardware=CPU)


@pytest.mark.parametrize(("text", "words"), [("", "holds no keys"), ("a: [", "is not YAML"), ("- 1", "holds no keys")])
def test_what_is_no_recipe_is_said(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        load_recipe(_write(tmp_path, text), hardware=CPU)


def test_a_missing_recipe_offers_the_list(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no recipe"):
        load_recipe(tmp_path / "none.yaml", hardware=CPU)


@pytest.mark.parametrize("path", sorted(Path("recipes").glob("*.yaml")), ids=lambda p: p.stem)
@pytest.mark.parametrize("profile", ["cpu", "gpu-8gb", "gpu-16gb", "gpu-24gb"])
def test_the_recipes_of_the_house_resolve(path: Path, profile: str) -> None:
    recipe = load_recipe(path, profile=profile, hardware=CPU)
    assert recipe.profile == profile
    if profile != "cpu":
        assert recipe.base.startswith("Qwen/Qwen2.5-") and len(recipe.base.partition("@")[2]) == 40


def test_variables_stand_in_lists_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_ROWS", "mine.csv")
    monkeypatch.delenv("NO_ROWS", raising=False)
    text = (
        "name: small\nbase: none\ndata:\n  sources:\n    - path: ${MY_ROWS:-a.csv}\n    - path: ${NO_ROWS:-b.csv}\n"
        "ollama:\n  model: small\n"
    )
    recipe = load_recipe(_write(tmp_path, text), hardware=CPU)
    assert recipe.data is not None and [source.path for source in recipe.data.sources] == ["mine.csv", "b.csv"]
    with pytest.raises(UsageError, match=r"data\.sources\[1\]\.path: the environment has no NO_ROWS"):
        load_recipe(_write(tmp_path, text.replace(":-b.csv", "")), hardware=CPU)


def test_an_earlier_step_has_of_train_what_it_leaves_out(tmp_path: Path) -> None:
    text = MINIMAL + (
        "earlier:\n  format:\n    data:\n      path: first.csv\n    train:\n      max_steps: 3\n"
        "train:\n  objective: grpo\n  rewards: [tag_counts]\n  method: lora\n  max_steps: 9\n  learning_rate: 1.0e-6\n"
        "  per_device_train_batch_size: 6\n"
    )
    recipe = load_recipe(_write(tmp_path, text), settings=["earlier.format.train.seed=5"], hardware=CPU)
    step = recipe.earlier["format"].train
    assert (step.method, step.objective, step.max_steps, step.seed) == ("lora", "sft", 3, 5)
    assert step.learning_rate == 2e-4  # its own, not that of grpo
    assert recipe.at("format").data.path == "first.csv" and recipe.at("format").golden.from_test == 0  # type: ignore[union-attr]
    with pytest.raises(UsageError, match="cannot name a step"):
        load_recipe(_write(tmp_path, text.replace("  format:", "  Format1!:")), hardware=CPU)
    with pytest.raises(UsageError, match=r"small\.yaml:\d+: unknown key earlier\.format\.train\.steps"):
        load_recipe(_write(tmp_path, text.replace("max_steps: 3", "steps: 3")), hardware=CPU)


@pytest.mark.parametrize(
    ("train", "said"),
    [
        ("  objective: grpo\n", "train.objective: grpo needs train.rewards"),
        (
            "  objective: grpo\n  rewards: [tag_counts]\n  num_generations: 5\n",
            "5 answers to a prompt do not divide the 8 of a step",
        ),
        ("  objective: kto\n  per_device_train_batch_size: 1\n", "kto needs per_device_train_batch_size above 1"),
        ("  objective: reward\n", "makes a judge of answers, nothing to chat with"),
        ("  objective: ppo\n", "train.objective: input should be"),
    ],
)
def test_objectives_that_cannot_be_are_told_when_the_recipe_is_read(tmp_path: Path, train: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_recipe(_write(tmp_path, MINIMAL + "train:\n" + train), hardware=CPU)
    assert said in caught.value.message
