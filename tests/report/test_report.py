"""The end of a run: screen, report.md and model card say the same, from artifacts as the stages leave them."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from toolkit.evaluate.figure import Figure
from toolkit.evaluate.told import sentences
from toolkit.parity.certificate import SCHEMA, Check, Subject, chain_of, higher_is_better, lower_is_better
from toolkit.recipe.schema import Recipe
from toolkit.report.report import last_screen, report_text, write_report
from toolkit.report.summary import summarize
from toolkit.run.artifacts import Artifact, Cost, publish
from toolkit.run.facts import (
    AdapterFacts,
    BaseFacts,
    CertificateFacts,
    DatasetFacts,
    EvaluationFacts,
    Facts,
    GGUFFacts,
    GGUFFile,
    GoldenFacts,
    OllamaFacts,
    OntoFacts,
    Quantization,
    ReportFacts,
    SourceLoss,
)


@pytest.fixture
def recipe() -> Recipe:
    return Recipe.model_validate(
        {
            "name": "health",
            "profile": "cpu",
            "base": "embedded:smollm2-135m-instruct",
            "system": "Answer in two sentences.",
            "license": "apache-2.0",
            "data": {"path": "data/health.csv"},
            "export": {"file_types": ["F16", "Q8_0"], "serve": "Q8_0"},
            "ollama": {"model": "health:v2"},
        }
    )


def _artifact(run: Path, stage: str, facts: Facts, files: dict[str, str], seconds: float = 2.0) -> Artifact[Any]:
    partial = run / f"{stage}.partial"
    partial.mkdir(parents=True)
    for name, text in files.items():
        (partial / name).write_text(text, encoding="utf-8")
    return publish(partial, run / stage, facts, {}, Cost(seconds=seconds, peak_memory_bytes=500_000_000))


def _golden(question: str, before: str, after: str, stopped: bool = True) -> dict[str, Any]:
    messages = [{"role": "system", "content": "Answer in two sentences."}, {"role": "user", "content": question}]
    return {"messages": messages, "base_completion": before, "completion": after, "stopped": stopped}


def _subject(kind: str, file_type: str, served: bool) -> Subject:
    checks = [
        Check.of("prompts", [], "all equal"),
        Check.of("tokens", [], "all equal"),
        Check.of(
            "logits", [lower_is_better("mean KL", 2.5e-3, 1.5e-2), higher_is_better("top-1 agreement", 0.975, 0.94)], ""
        ),
    ]
    return Subject(
        name=file_type, kind=kind, file=f"health-{file_type}.gguf", file_type=file_type, counts="everything",
        served=served, checks=checks, relaxed="a model under 1B" if served else "",
    )  # type: ignore[arg-type]  # fmt: skip


@pytest.fixture
def artifacts(tmp_path: Path) -> dict[str, Artifact[Any]]:
    run = tmp_path / "runs" / "health"
    base = BaseFacts(
        id="embedded:smollm2-135m-instruct", folder="/b", revision="0123456789abcdef", license="apache-2.0", digest="d"
    )
    adapter = AdapterFacts(
        method="qlora", base=base, base_dtype="float32", quantization=Quantization(), chat_template_sha256="c",
        system="Answer in two sentences.", trained_here=True, validation_loss_before=2.5, validation_loss_after=1.25,
        steps=88, train_rows=170, trained_parameters=4_884_480, tokens_per_second=321.4,
    )  # fmt: skip
    data = DatasetFacts(
        rows={"train": 170, "validation": 12, "test": 12}, read=200, kept=194, dropped={"duplicate": 4, "empty": 2},
        repaired={}, encodings={"health.csv": "utf-8"}, language="zh",
    )  # fmt: skip
    answers = [
        _golden("Same?", "Yes.", "Yes."),
        _golden("What helps | against a cold?", "I am\n\na cold.", "Rest. See a doctor if it lasts."),
        _golden("Is a burn bad?", "burn " * 300, "Cool it", stopped=False),
    ]
    metrics = "".join(json.dumps({"step": i, "loss": 3 - i / 50}) + "\n" for i in range(1, 89))
    subjects = [_subject("converted", "F16", False), _subject("quantized", "Q8_0", True)]
    certificate = {
        "schema": SCHEMA, "verdict": "pass", "message": "what is served is what was trained", "blame": None,
        "served_file": "health-Q8_0.gguf", "warnings": ["Q4_0: logits fails"],
        "chain": [link.model_dump() for link in chain_of(subjects)], "reference": {"positions": 40},
        "subjects": [subject.as_json() for subject in subjects],
        "files": {"quantize/health-Q8_0.gguf": {"sha256": "a0a0", "bytes": 144_811_000}},
        "certified": {"file": "verify/health-Q8_0.gguf", "sha256": "ab12", "bytes": 144_811_360},
        "versions": {"gguf": "0.19.0"}, "made": "2026-10-01T08:00:00+00:00",
    }  # fmt: skip
    golden = GoldenFacts(
        prompts=3, positions=40, vocabulary=9, end_tokens=[2], forward="whole", stopped_by_themselves=2
    )
    ollama = OllamaFacts(
        model="health:v2", digest="sha256:1", server_version="0.34.1", published=True, remaining=["ollama serve &"],
        rendered_equal=16, answers_compared=16, largest_logprob_difference=0.0123,
    )  # fmt: skip

    def gguf(file_type: str, size: int) -> GGUFFacts:
        file = GGUFFile(name=f"health-{file_type}.gguf", file_type=file_type, bytes=size, sha256="s")
        return GGUFFacts(files=[file], architecture="llama", template_protected=True)

    facts: list[tuple[str, Facts, dict[str, str], float]] = [
        ("prepare", data, {}, 2),
        ("train", adapter, {"metrics.jsonl": metrics}, 245),
        ("golden", golden, {"golden.jsonl": "".join(json.dumps(a) + "\n" for a in answers)}, 40),
        ("convert", gguf("F16", 270_885_344), {}, 11),
        ("quantize", gguf("Q8_0", 144_811_360), {}, 6),
        ("verify", CertificateFacts(verdict="pass", checks={}, served_file="health-Q8_0.gguf"),
         {"certificate.json": json.dumps(certificate)}, 62),
        ("create", ollama, {}, 30),
    ]  # fmt: skip
    return {stage: _artifact(run, stage, fact, files, seconds) for stage, fact, files, seconds in facts}


def _screen(recipe: Recipe, artifacts: dict[str, Artifact[Any]], width: int = 120) -> str:
    target = io.StringIO()
    Console(file=target, width=width).print(last_screen(recipe, artifacts), crop=False)
    return target.getvalue()


def test_the_summary_holds_what_was_measured(recipe: Recipe, artifacts: dict[str, Artifact[Any]]) -> None:
    summary = summarize(recipe, artifacts)
    assert summary.trained == [
        ("base", "embedded:smollm2-135m-instruct (0123456789ab), licence apache-2.0"),
        (
            "data",
            "data/health.csv: 194 of 200 rows kept (170 train, 12 validation, 12 test); dropped: 4 duplicate, 2 empty",
        ),
        ("method", "QLoRA (base in NF4), r = 16, alpha = 16; 4,884,480 weights trained"),
        ("steps", "88 of 8 rows, learning rate 0.0002, 321 tokens/s, profile cpu"),
    ]
    assert summary.losses[:2] == [
        ("validation loss", "2.500 → 1.250 nats a token"),
        ("perplexity", f"{math.exp(2.5):.2f} → {math.exp(1.25):.2f}"),
    ]
    assert summary.losses[2] == ("merged", "onto the dequantized NF4 weights that were trained on")
    onto = Artifact(
        artifacts["train"].folder, OntoFacts(onto="16-bit", loss_as_trained=1.25, loss_on_16_bit=1.2), "", {}, Cost()
    )
    told = "onto the original 16-bit weights (held-out loss of the adapter: 1.2500 as trained, 1.2000 on the original weights)"
    assert summarize(recipe, {**artifacts, "onto": onto}).losses[2] == ("merged", told)
    # The unchanged answer comes last, so it is not among the two.
    assert [a.question for a in summary.answers] == ["What helps | against a cold?", "Is a burn bad?"]
    assert [f.file_type for f in summary.files] == ["F16", "Q8_0"]
    assert summary.costs[1] == ("train", Cost(seconds=245.0, peak_memory_bytes=500_000_000))


def test_memory_of_a_card_is_shown_where_one_was_used(recipe: Recipe, artifacts: dict[str, Artifact[Any]]) -> None:
    summary = summarize(recipe, artifacts)
    assert "of the card" not in report_text(summary, {})
    before = artifacts["train"]
    cost = Cost(seconds=245.0, peak_memory_bytes=500_000_000, peak_card_bytes=7_000_000_000)
    artifacts["train"] = Artifact(before.folder, before.facts, "", {}, cost)
    lines = [line for line in report_text(summarize(recipe, artifacts), {}).splitlines() if "7.00 GB" in line]
    assert [line.split("|")[1].strip() for line in lines] == ["train", "all"]


def test_a_loss_over_a_part_of_the_held_out_rows_says_so(recipe: Recipe, artifacts: dict[str, Artifact[Any]]) -> None:
    before = artifacts["train"]
    for measured, rows, told in ((32, 1168, ", over 32 of 1,168 rows"), (12, 12, "")):
        update = {"validation_rows": rows, "validation_rows_measured": measured}
        artifacts["train"] = Artifact(before.folder, before.facts.model_copy(update=update), "", {}, Cost())
        assert summarize(recipe, artifacts).losses[0] == ("validation loss", f"2.500 → 1.250 nats a token{told}")


def test_held_out_losses_of_several_sources_are_on_screen_page_and_card(
    recipe: Recipe, artifacts: dict[str, Artifact[Any]], tmp_path: Path
) -> None:
    before = artifacts["train"]
    assert "loss of" not in _screen(recipe, artifacts, 80)
    by_source = {
        "general": SourceLoss(before=2.0, after=2.125, rows=40, measured=32),
        "my_rows": SourceLoss(before=2.5, after=1.0, rows=9, measured=9),
        "few": None,
    }
    facts = before.facts.model_copy(update={"validation_by_source": by_source})
    artifacts["train"] = Artifact(before.folder, facts, "", {}, Cost())
    write_report(recipe, artifacts, tmp_path)
    page, card = ((tmp_path / name).read_text(encoding="utf-8") for name in ("report.md", "model_card.md"))
    for label, value in (
        ("loss of general", "2.000 → 2.125 nats a token, over 32 of 40 rows"),
        ("loss of my_rows", "2.500 → 1.000 nats a token"),
        ("loss of few", "not known: none of its rows was held out"),
    ):
        assert f"| {label} | {value} |" in page and f"- {label}: {value}\n" in card
        assert any(
            line.split("  ")[0] == label and value in line for line in _screen(recipe, artifacts, 120).splitlines()
        )


def test_the_last_line_is_the_command(recipe: Recipe, artifacts: dict[str, Artifact[Any]]) -> None:
    for width in (40, 80, 200):
        assert _screen(recipe, artifacts, width).rstrip().splitlines()[-1] == "ollama run health:v2"


def test_a_long_command_is_not_broken(recipe: Recipe, artifacts: dict[str, Artifact[Any]]) -> None:
    facts = artifacts["create"].facts.model_copy(
        update={"remaining": ["export PATH=/" + "x" * 150], "published": False}
    )
    artifacts["create"] = Artifact(artifacts["create"].folder, facts, "", {}, Cost())
    lines = _screen(recipe, artifacts, 60).splitlines()
    assert "export PATH=/" + "x" * 150 in lines
    assert "byte for byte" not in "\n".join(lines)


def test_the_page_says_what_the_screen_says(
    recipe: Recipe, artifacts: dict[str, Artifact[Any]], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    assert write_report(recipe, artifacts, out) == ReportFacts(verdict="pass")
    page, screen = (out / "report.md").read_text(encoding="utf-8"), _screen(recipe, artifacts, 240)
    for words in (
        "2.500 → 1.250 nats a token",
        "QLoRA (base in NF4), r = 16, alpha = 16",
        "270.9 MB",
        "144.8 MB",
        "4 min 5 s",
        "6 min 36 s",
        "2.5e-03 (1.5e-02)",
        "Q4_0: logits fails",
        "is served is what was trained",
        "Ollama 0.34.1 rendered 16 prompts byte for byte",
        "Rest. See a doctor if it lasts.",
        "Cool it [cut at golden.max_new_tokens]",
        "ollama serve &",
    ):
        assert words in page, words
        assert words in screen, words
    assert page.rstrip().endswith("ollama serve &\nollama run health:v2\n```")
    assert "> I am\n>\n> a cold." in page
    assert "![Training loss over the steps](loss.png)" in page


def test_every_table_of_the_page_is_whole(recipe: Recipe, artifacts: dict[str, Artifact[Any]], tmp_path: Path) -> None:
    write_report(recipe, artifacts, tmp_path)
    blocks = (tmp_path / "report.md").read_text(encoding="utf-8").split("\n\n")
    tables = [block.splitlines() for block in blocks if block.startswith("|")]
    assert len(tables) == 4
    for table in tables:
        columns = table[0].count("|")
        assert set(table[1]) <= set("|-: ")
        assert all(line.count("|") - line.count("\\|") == columns for line in table), table
    assert len(tables[1]) == 2 + 2  # head, rule, two links
    assert len(tables[3]) == 2 + 7 + 1  # seven stages and the sum


def test_the_certificate_lies_beside_the_report(
    recipe: Recipe, artifacts: dict[str, Artifact[Any]], tmp_path: Path
) -> None:
    out = tmp_path / "report"
    out.mkdir()
    write_report(recipe, artifacts, out)
    assert sorted(p.name for p in out.iterdir()) == ["certificate.html", "loss.png", "model_card.md", "report.md"]
    page = (out / "certificate.html").read_text(encoding="utf-8")
    assert "What is served is what was trained." in page
    assert "<td>97.5%</td>" in page
    assert "Not compared: training, structure, merge, server prompt, server answers, defaults." in page
    assert "[certificate.html](certificate.html)" in (out / "report.md").read_text(encoding="utf-8")
    artifacts["report"] = Artifact(out, ReportFacts(verdict="pass"), "", {}, Cost())
    assert f"The certificate, for a browser: {out / 'certificate.html'}" in _screen(recipe, artifacts, 400)


def test_what_the_server_showed_joins_the_chain(
    recipe: Recipe, artifacts: dict[str, Artifact[Any]], tmp_path: Path
) -> None:
    checks = [
        Check.of("prompts", [lower_is_better("prompts that differ", 0, 0, 0)], "16 prompts are equal"),
        Check.of("answers", [lower_is_better("mean difference", 0.5, 0.12, 2e-4, "nats")], "mean difference 0.5"),
    ]
    served = Subject(
        name="health:v2", kind="served", file="health:v2", file_type="Q8_0", counts="everything", checks=checks
    )
    (artifacts["create"].folder / "served.json").write_text(json.dumps(served.as_json()), encoding="utf-8")
    summary = summarize(recipe, artifacts)
    assert [s["name"] for s in summary.certificate["subjects"]] == ["F16", "Q8_0", "health:v2"]
    verdicts = {link["link"]: link["verdict"] for link in summary.certificate["chain"]}
    assert (verdicts["server prompt"], verdicts["server answers"]) == ("pass", "fail")
    assert summary.certificate["verdict"] == "fail"
    assert summary.certificate["blame"]["link"] == "server answers"
    assert (summary.certificate["blame"]["value"], summary.certificate["blame"]["limit"]) == (0.5, 0.12)
    assert write_report(recipe, artifacts, tmp_path) == ReportFacts(verdict="fail")
    assert "What broke first: server answers" in (tmp_path / "certificate.html").read_text(encoding="utf-8")


def test_the_model_card_is_one_that_the_hub_reads(
    recipe: Recipe, artifacts: dict[str, Artifact[Any]], tmp_path: Path
) -> None:
    write_report(recipe, artifacts, tmp_path)
    _, front, body = (tmp_path / "model_card.md").read_text(encoding="utf-8").split("---\n", 2)
    assert yaml.safe_load(front) == {
        "license": "apache-2.0",
        "base_model": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "language": ["zh"],  # of the rows, whatever the recipe says
        "tags": ["tune2ollama", "gguf", "qlora"],
    }
    assert "> Answer in two sentences." in body
    assert "Trained in one language (zh)" in body
    assert "**pass**: what is served is what was trained. Wider limits were used: a model under 1B." in body
    assert "All that was measured: [certificate.html](certificate.html)." in body
    assert (
        "\n- SHA-256 of health-Q8_0.gguf: `ab12`; its metadata holds this summary too\n- mean KL 0.0025 (limit 0.015)\n"
        in body
    )
    assert "- not to be used: Q4_0: logits fails" in body
    assert "health-Q8_0.gguf: Q8_0, 144.8 MB" in body
    assert "at most 512 tokens" in body


def test_an_adapter_of_another_tool_has_no_data_and_no_curve(
    artifacts: dict[str, Artifact[Any]], tmp_path: Path
) -> None:
    recipe = Recipe.model_validate(
        {
            "name": "health",
            "base": "/somewhere/base",
            "adapter": "out/checkpoint-60",
            "golden": {"prompts": ["Why?"]},
            "export": {"file_types": ["F16", "Q8_0"], "serve": "Q8_0"},
            "ollama": {"model": "health:v2"},
        }
    )
    del artifacts["prepare"]
    before = artifacts["train"]
    base = before.facts.base.model_copy(update={"id": "/somewhere/base", "revision": ""})
    facts = before.facts.model_copy(
        update={"trained_here": False, "base": base, "validation_loss_before": None, "validation_loss_after": None}
    )
    (before.folder / "metrics.jsonl").unlink()
    artifacts["train"] = Artifact(before.folder, facts, "", {}, Cost())
    write_report(recipe, artifacts, tmp_path)
    page = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "an adapter that another tool trained (out/checkpoint-60)" in page
    assert "loss.png" not in page
    assert not (tmp_path / "loss.png").exists()
    card = (tmp_path / "model_card.md").read_text(encoding="utf-8")
    assert "base_model" not in card
    assert "trained by another tool" in card


def test_did_it_help_stands_on_the_screen_in_the_report_and_in_the_card(
    recipe: Recipe, artifacts: dict[str, Artifact[Any]], tmp_path: Path
) -> None:
    rows = [3.0, 2.5, 2.0, 3.5, 2.2, 2.8, 3.1, 2.9]
    values = {"base": rows, "tuned": [v - 1 for v in rows], "Q8_0": [v - 0.99 for v in rows]}
    loss = Figure("held-out loss", "nats a token", False, "help", [1.0] * 8, values, perplexity=True).as_json()
    beside = Figure("BLEU", "0 to 1", True, "beside", [1.0] * 8, {"base": [0.1] * 8, "served": [0.3] * 8}).as_json()
    evaluation = {
        "helped": "helped", "forgot": "unknown", "figures": [loss, beside], "remarks": ["2 of 8 answers of tuned are empty"],
        "sentences": sentences([loss, beside], "Q8_0"),
    }  # fmt: skip
    facts = EvaluationFacts(helped="helped", forgot="unknown", rows=8, questions=8, subjects=["base"], sentences=[])
    artifacts["evaluate"] = _artifact(tmp_path, "evaluate", facts, {"evaluation.json": json.dumps(evaluation)})
    screen = _screen(recipe, artifacts, 200)
    assert "Helped: held-out loss 2.750 → 1.750 (-1.000, between -1.000 and -1.000)." in screen
    assert "Q8_0, which is served, keeps 99 % [99, 99] of it (held-out loss)." in screen
    assert "2 of 8 answers of tuned are empty." in screen and "BLEU" not in screen
    (tmp_path / "report").mkdir()
    write_report(recipe, artifacts, tmp_path / "report")
    for page in ("report.md", "model_card.md"):
        text = (tmp_path / "report" / page).read_text(encoding="utf-8")
        assert "keeps 99 %" in text and "|  | base | tuned | Q8_0 | served |" in text, page
        assert "| perplexity (held-out loss) | 15.643 | 5.755 | 5.812 | – |" in text, page
        assert "| BLEU, 8 rows | 0.100 [0.100, 0.100] | – | – | 0.300 [0.300, 0.300] |" in text, page


def test_the_served_answer_stands_beside_before_and_after(
    recipe: Recipe, artifacts: dict[str, Artifact[Any]], tmp_path: Path
) -> None:
    texts = ["Yes.", "<think>\nIt is a cold.\n</think>\n\nRest, and tea.", "Cool it with wat\ufffd"]
    checks = [Check.of("answers", [], "equal", {"texts": texts})]
    served = Subject(name="health:v2", kind="served", file="f", file_type="Q8_0", counts="everything", checks=checks)
    (artifacts["create"].folder / "served.json").write_text(json.dumps(served.as_json()), encoding="utf-8")
    first, second = summarize(recipe, artifacts).answers
    assert (first.question, first.served) == ("What helps | against a cold?", "(It is a cold.) Rest, and tea.")
    assert (second.question, second.served) == ("Is a burn bad?", "Cool it with wat")
    assert "served" in _screen(recipe, artifacts, 200)
    write_report(recipe, artifacts, tmp_path)
    assert "Served, as an app is given it:\n\n> (It is a cold.)" in (tmp_path / "report.md").read_text(encoding="utf-8")
