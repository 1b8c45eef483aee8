"""After a certificate that does not pass there is always a command, and it can be copied as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest

from tests.parity_chain import recipe
from toolkit.errors import UsageError
from toolkit.parity.asked import Asked
from toolkit.parity.certificate import Check, LinkName, Measure, Subject
from toolkit.parity.choice import served_as, served_type, smallest_that_passes
from toolkit.parity.next_step import after_check, after_run, after_serving
from toolkit.parity.subjects import GGUFUnderTest
from toolkit.recipe.schema import Export, Recipe
from toolkit.run.facts import CertificateFacts

FOLDER = Path("runs/tiny")


def facts(link: str = "", passing: str = "", verdict: Any = "fail") -> CertificateFacts:
    return CertificateFacts(verdict=verdict, checks={}, served_file="f", link=link, passing=passing)


def made(file_types: list[str], serve: str) -> Recipe:
    return recipe(file_types, serve, Path("base"))


def commands(text: str) -> list[str]:
    """Lines that can be copied: two spaces before them, nothing behind."""
    return [line.strip() for line in text.splitlines() if line.startswith("  ")]


def test_a_better_file_type_is_served_with_one_command() -> None:
    text = after_run(made(["F16", "Q4_K_M"], "Q4_K_M"), facts("quantization", "F16"), FOLDER)
    (command,) = commands(text)
    assert command.endswith("run runs/tiny/recipe.yaml --set export.serve=F16") and "F16 passes" in text


@pytest.mark.parametrize("link", get_args(LinkName))
def test_every_link_has_a_command(link: str) -> None:
    chosen = made(["Q8_0"], "Q8_0")
    assert commands(after_run(chosen, facts(link), FOLDER))
    assert commands(after_serving(link, chosen, FOLDER))[-1].endswith("create runs/tiny/recipe.yaml")
    for asked in (
        Asked(adapter=Path("a"), ggufs=(Path("f.gguf"),)), Asked(adapter=Path("a"), ollama="m"), Asked(hf=Path("h"), ollama="m"),
    ):  # fmt: skip
        certificate = {"verdict": "fail", "blame": {"link": link}, "subjects": []}
        assert commands(after_check(certificate, asked, None, Path()))
        assert commands(after_check(certificate, asked, chosen, FOLDER))


def test_what_a_type_that_is_not_made_yet_costs_is_one_command() -> None:
    (command,) = commands(after_run(made(["Q4_K_M", "Q8_0"], "Q8_0"), facts("quantization"), FOLDER))
    assert command.endswith("--set export.file_types=[F16,Q4_K_M,Q8_0] --set export.serve=F16")


def test_an_open_verdict_asks_for_more_prompts() -> None:
    chosen = made(["Q8_0"], "Q8_0")
    assert commands(after_run(chosen, facts(verdict="inconclusive"), FOLDER))[0].endswith("--set golden.prompts=FILE")
    endless = facts(verdict="inconclusive").model_copy(update={"checks": {"adapter: ends": "inconclusive"}})
    assert commands(after_run(chosen, endless, FOLDER))[0].endswith("--set golden.max_new_tokens=384")
    asked = Asked(adapter=Path("a"), base="b", ggufs=(Path("f.gguf"),), system="Be brief.")
    certificate = {"verdict": "inconclusive", "blame": None, "subjects": []}
    (command,) = commands(after_check(certificate, asked, None, Path()))
    assert command.endswith('verify --adapter a --base b --gguf f.gguf --system "Be brief." --prompts FILE')
    (command,) = commands(after_check(certificate, Asked(ollama="m"), chosen, FOLDER))
    assert command.endswith("verify runs/tiny/recipe.yaml --ollama m --set golden.prompts=FILE")


def test_lines_of_a_modelfile_are_taken_out_of_it() -> None:
    certificate = {"verdict": "fail", "blame": {"link": "defaults"}, "subjects": []}
    told = commands(after_check(certificate, Asked(adapter=Path("a"), ollama="mine:v2"), None, Path()))
    shown = "ollama show --modelfile mine:v2 | grep -vxF 'TEMPLATE {{ .Prompt }}' > Modelfile"
    assert told == [shown, "ollama create mine:v2 -f Modelfile"]


def subject(file_type: str, verdict: Any, check: str = "logits") -> Subject:
    kind: Any = "converted" if file_type == "F16" else "quantized"
    checks = [Check(name=check, verdict=verdict, message="")]
    return Subject(name=file_type, kind=kind, file=file_type, file_type=file_type, counts="everything", checks=checks)


@pytest.mark.parametrize(
    ("verdicts", "smallest"),
    [
        ({"F16": "pass", "Q8_0": "pass", "Q4_K_M": "pass"}, "Q4_K_M"),
        ({"F16": "pass", "Q8_0": "pass", "Q4_K_M": "fail"}, "Q8_0"),
        ({"F16": "pass", "Q8_0": "inconclusive", "Q4_K_M": "fail"}, "F16"),
        ({"F16": "inconclusive", "Q8_0": "pass", "Q4_K_M": "fail"}, "Q8_0"),
        ({"F16": "fail", "Q8_0": "pass", "Q4_K_M": "pass"}, ""),  # what they are made from is broken
    ],
)
def test_the_smallest_that_could_be_served(tmp_path: Path, verdicts: dict[str, Any], smallest: str) -> None:
    files, subjects = [], []
    for size, (file_type, verdict) in enumerate(reversed(verdicts.items()), 1):
        (tmp_path / file_type).write_bytes(bytes(size))
        files.append(GGUFUnderTest(tmp_path / file_type, file_type, file_type))
        subjects.append(subject(file_type, verdict))
    chosen = made(list(verdicts), "auto")
    assert smallest_that_passes(chosen, subjects, files) == smallest
    only = made(["Q8_0", "Q4_K_M"], "auto")  # F16 is made all the same, but nobody asked for it
    assert smallest_that_passes(only, subjects, files) != "F16"
    marked = {one.name: (one.served, one.counts) for one in served_as("Q8_0", chosen, subjects)}
    assert marked == {"F16": (False, "ancestor"), "Q8_0": (True, "everything"), "Q4_K_M": (False, "text only")}


def measured(file_type: str, mean_kl: float, kept: float) -> Subject:
    one = subject(file_type, "pass")
    measures = [Measure(name="mean KL", value=mean_kl), Measure(name="share of the gain kept", value=kept)]
    return one.model_copy(update={"checks": [one.checks[0].model_copy(update={"measures": measures})]})


@pytest.mark.parametrize(
    ("bounds", "chosen"),
    [
        ({}, "Q4_K_M"),
        ({"max_kl": 0.01}, "Q8_0"),
        ({"max_kl": 1e-4}, "F16"),
        ({"min_kept": 0.9}, "Q4_K_M"),
        ({"min_kept": 0.97}, "Q8_0"),
        ({"max_bytes": 2}, "Q8_0"),  # the nearest of those that fit
        ({"max_bytes": "1 KB"}, "F16"),
        ({"max_bytes": 2, "min_kept": 0.5}, "Q4_K_M"),
        ({"max_bytes": 2, "max_kl": 1e-4}, None),
    ],
)
def test_chosen_by_what_was_measured(tmp_path: Path, bounds: dict[str, Any], chosen: str | None) -> None:
    found = {"Q4_K_M": (0.05, 0.95), "Q8_0": (0.003, 0.99), "F16": (1e-6, 1.0)}
    files, subjects = [], []
    for size, (file_type, values) in enumerate(found.items(), 1):
        (tmp_path / file_type).write_bytes(bytes(size))
        files.append(GGUFUnderTest(tmp_path / file_type, file_type, file_type))
        subjects.append(measured(file_type, *values))
    recipe = made(list(found), "auto")
    export = Export.model_validate({**recipe.export.model_dump(), **bounds})
    recipe = recipe.model_copy(update={"export": export})
    if chosen is None:
        with pytest.raises(UsageError) as raised:
            served_type(recipe, subjects, files)
        told = "no file that passes keeps to export.max_bytes 2, max_kl 0.0001: "
        assert raised.value.message.startswith(told + "Q4_K_M: 0 MB, mean KL 0.05 nats, 95.0% of the gain kept; Q8_0: ")
        return
    assert served_type(recipe, subjects, files) == chosen


def test_bounds_go_with_auto() -> None:
    with pytest.raises(ValueError, match="max_kl chooses among file_types: it goes with serve: auto, not Q8_0"):
        Export.model_validate({"serve": "Q8_0", "max_kl": 0.1})
