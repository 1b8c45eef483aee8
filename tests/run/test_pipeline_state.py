"""What is current, what is not and why, and what is checked before anything runs; no stage is run here."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest

from tests.small_models import base_facts, tiny_adapter, tiny_llama
from toolkit.errors import ResourceError, ToolkitError, UsageError
from toolkit.models import bases, hub
from toolkit.recipe.adopted import recipe_for_adapter
from toolkit.recipe.schema import Recipe
from toolkit.run import pipeline
from toolkit.run.artifacts import Artifact, Cost, publish
from toolkit.run.facts import AdapterFacts, DatasetFacts, Facts, OllamaFacts
from toolkit.run.keys import make_key
from toolkit.run.locks import only_run
from toolkit.run.pipeline import find_current, plan_of_stages
from toolkit.run.stages import STAGE_NAMES, stages_of


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("tiny") / "base", layers=1)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rows.csv").write_text("ask,answer\nWhy?,Because.\n", encoding="utf-8")
    Path("golden.txt").write_text("Is it?\n", encoding="utf-8")


def _recipe(base: Path | str, **keys: Any) -> Recipe:
    tree = {
        "name": "small",
        "base": str(base),
        "data": {"path": "rows.csv"},
        "golden": {"prompts": "golden.txt"},
        "ollama": {"model": "small"},
    }
    return Recipe.model_validate(tree | keys)


def _finish(recipe: Recipe, stage: str, facts: Facts, have: dict[str, Artifact[Any]]) -> dict[str, Artifact[Any]]:
    """Leave an artifact as a run of that stage would."""
    (row,) = (s for s in stages_of(recipe) if s.name == stage)
    folder = Path("runs") / recipe.name / stage
    partial = folder.with_name(f"{stage}.partial")
    partial.mkdir(parents=True)
    (partial / "file").write_text(stage, encoding="utf-8")
    return {**have, stage: publish(partial, folder, facts, make_key(row, recipe, have), Cost())}


def _prepared(recipe: Recipe) -> dict[str, Artifact[Any]]:
    facts = DatasetFacts(rows={}, read=1, kept=1, dropped={}, repaired={}, encodings={}, language="en")
    return _finish(recipe, "prepare", facts, {})


def _trained(recipe: Recipe, base: Path) -> dict[str, Artifact[Any]]:
    facts = AdapterFacts(
        method="lora", base=base_facts(base), base_dtype="float32", quantization=None, chat_template_sha256="", system="",
        trained_here=True,
    )  # fmt: skip
    return _finish(recipe, "train", facts, _prepared(recipe) if recipe.adapter is None else {})


def test_rows_are_divided_again_when_the_golden_prompts_change(tiny: Path) -> None:
    recipe = _recipe(tiny)
    _prepared(recipe)
    assert plan_of_stages(recipe)[0] == ("prepare", "current")
    Path("golden.txt").write_text("Is it?\nWhy?\n", encoding="utf-8")
    assert plan_of_stages(recipe)[0] == ("prepare", "runs: golden.txt changed")
    Path("golden.txt").write_text("Is it?\n", encoding="utf-8")
    in_place = _recipe(tiny, golden={"prompts": ["Is it?"]})
    assert plan_of_stages(in_place)[0][1] == ("runs: the recipe's golden.prompts changed: golden.txt → ['Is it?']")
    more = _recipe(tiny, golden={"prompts": "golden.txt", "from_test": 4})
    assert plan_of_stages(more)[0][1] == "runs: the recipe's golden.from_test changed: 0 → 4"


def test_an_adopted_adapter_is_redone_when_its_base_changes(tiny: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(tiny, tmp_path / "base"))
    recipe = recipe_for_adapter(tiny_adapter(base, tmp_path / "adapter"), "other", str(base))
    have = _trained(recipe, base)
    assert plan_of_stages(recipe)[0] == ("train", "current")
    (convert,) = (stage for stage in stages_of(recipe) if stage.name == "convert")
    converted = make_key(convert, recipe, have)
    (base / "generation_config.json").write_text("{}", encoding="utf-8")
    assert plan_of_stages(recipe)[0] == ("train", "runs: base changed")
    # The adopted files are the same ones, so their digest is; what is made with the base is new all the same.
    facts = have["train"].facts.model_copy(update={"base": base_facts(base)})
    again = Artifact(have["train"].folder, facts, have["train"].digest, {}, Cost())
    assert make_key(convert, recipe, {"train": again}) != converted


def test_the_base_of_an_adopted_adapter_is_fetched_before_the_stages_go_offline(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[str] = []
    monkeypatch.setattr(hub, "fetch", lambda name, *_: fetched.append(name) or tiny)
    recipe = recipe_for_adapter(tiny_adapter(tiny, tmp_path / "adapter"), "other", "tiny/llama@main")
    key = make_key(stages_of(recipe)[0], recipe, {})
    assert fetched == ["tiny/llama"]
    assert key["files"]["base"] == bases.check_folder(tiny)


def test_a_dry_run_fetches_nothing(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "fetch", lambda *_: pytest.fail("a dry run asked the hub"))
    monkeypatch.setattr(bases.embedded, "build", lambda *_: pytest.fail("a dry run rebuilt the base"))
    recipe = _recipe("tiny/llama@main")
    _prepared(recipe)
    assert plan_of_stages(recipe)[:3] == [
        ("prepare", "current"),
        ("train", "runs: the base is not here yet"),
        ("golden", "runs: an earlier stage runs"),
    ]
    monkeypatch.setenv("TUNE2OLLAMA_HOME", "empty")
    assert plan_of_stages(_recipe("embedded:smollm2-135m-instruct"))[1][1] == "runs: the base is not here yet"


def test_create_is_current_only_while_ollama_has_the_model(tiny: Path) -> None:
    recipe = _recipe(tiny)
    stage = next(s for s in stages_of(recipe) if s.name == "create")
    facts = OllamaFacts(model="small", digest="12", server_version="1", published=True, remaining=[])
    made = Artifact(Path("runs"), facts, "", {}, Cost())
    have = {"train": made, "golden": made, "verify": made}
    _finish(recipe, "create", facts, have)
    key = make_key(stage, recipe, have)
    assert find_current(stage, Path("runs/small"), key) == (None, "Ollama has no small any more")


class _Checked(Exception):
    """The checks were reached."""


def _checked_with(recipe: Recipe, monkeypatch: pytest.MonkeyPatch, upto: str = "report") -> set[str]:
    """The stages that `run` has checked, because they will run."""
    told: list[set[str]] = []

    def preflight(recipe: Recipe, folder: Path, runs: Collection[str], rewards: Path | None) -> list[str]:
        told.append(set(runs))
        raise _Checked

    monkeypatch.setattr(pipeline, "preflight", preflight)
    with pytest.raises(_Checked):
        pipeline.run(recipe, upto)
    return told[0]


def test_what_is_out_of_date_counts_as_work(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = _recipe(tiny)
    _trained(recipe, tiny)
    assert _checked_with(recipe, monkeypatch) == set(STAGE_NAMES) - {"prepare", "train"}
    other = _recipe(tiny, lora={"r": 4})
    assert _checked_with(other, monkeypatch) == set(STAGE_NAMES) - {"prepare"}
    assert _checked_with(other, monkeypatch, "golden") == {"train", "golden"}
    assert _checked_with(other, monkeypatch, "quantize") == {
        "train",
        "convert",
        "quantize",
    }  # who wants files waits for no answers
    # The rows will most likely be the same ones: memory for training is not asked for.
    Path("golden.txt").write_text("Is it so?\n", encoding="utf-8")
    assert _checked_with(recipe, monkeypatch) == set(STAGE_NAMES) - {"train"}


def test_all_faults_are_told_before_the_first_stage(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fault_of(recipe: Recipe) -> ToolkitError:
        monkeypatch.setattr(pipeline, "_run_stage", lambda *_: pytest.fail("a stage was run"))
        with pytest.raises(ToolkitError) as caught:
            pipeline.run(recipe)
        return caught.value

    broken = Path(shutil.copytree(tiny, "broken"))
    (broken / "model.safetensors").rename(broken / "pytorch_model.bin")
    modelfile = Path("modelfile")
    modelfile.write_text("ADAPTER ./x\n", encoding="utf-8")
    keys = {"golden": {"prompts": "gone.txt"}, "ollama": {"model": "small", "modelfile": "modelfile"}}
    fault = fault_of(_recipe(broken, **keys))
    lines = fault.message.splitlines()
    assert "only as pickle (pytorch_model.bin)" in lines[0]
    assert lines[1] == "golden.prompts: there is no file gone.txt"
    assert lines[2].startswith("modelfile: remove ADAPTER")
    assert fault.hint.splitlines()[1:] == ["Name a text file with a prompt a line.", "Mend modelfile and run again."]
    assert "there is no base model" in fault_of(_recipe("./gone")).message


def test_a_stage_is_not_refused_for_what_only_later_ones_need(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "_run_stage", lambda *_: "done")
    assert pipeline.run(_recipe("./gone"), upto="prepare") == {"prepare": "done"}


def test_an_adopted_adapter_has_no_rows_to_prepare(tiny: Path, tmp_path: Path) -> None:
    recipe = recipe_for_adapter(tiny_adapter(tiny, tmp_path / "adapter"), "other", str(tiny))
    with pytest.raises(UsageError, match="other has no stage prepare: its adapter is trained already"):
        pipeline.run(recipe, upto="prepare")


def test_a_second_run_is_told_how_to_go_its_own_way(tiny: Path) -> None:
    with only_run(Path("runs/small"), ""), pytest.raises(ResourceError) as caught:
        pipeline.run(_recipe(tiny))
    assert caught.value.message == "another run is working in runs/small"
    assert "--set name=… --set ollama.model=…" in caught.value.hint
