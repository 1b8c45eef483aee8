"""What to do after a certificate that does not pass: always a command."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from toolkit.ollama.files import MISSING
from toolkit.parity.asked import Asked
from toolkit.parity.golden.goldens import GOES_ON
from toolkit.recipe.reading import RESOLVED_FILE
from toolkit.recipe.schema import Recipe
from toolkit.run.facts import CertificateFacts
from toolkit.run.places import own_command

_NO_TEMPLATE = "TEMPLATE {{ .Prompt }}"
"""What `ollama show` writes of a model whose file brings its own chat template; created with this line, it would get none."""
_STAGE_OF = {"training": "train", "quantization": "quantize"}
"""The stage that makes a link; of the others `convert`, which writes the file that all is made from."""
MORE_PROMPTS = 32


def after_run(recipe: Recipe, facts: CertificateFacts, folder: Path) -> str:
    """The last lines of a run whose certificate does not pass.

    Args:
        folder: of the run.
    """
    resolved, command = folder / RESOLVED_FILE, own_command()
    if facts.passing:
        return (
            f"{facts.passing} passes. Serve that file:\n  {command} run {resolved} --set export.serve={facts.passing}"
        )
    if facts.verdict == "inconclusive":
        if "inconclusive" in (facts.checks.get("adapter: ends"), facts.checks.get("tuned model: ends")):
            tokens = GOES_ON**2 * recipe.golden.max_new_tokens
            return f"Longer golden answers may decide:\n  {command} run {resolved} --set golden.max_new_tokens={tokens}"
        if recipe.data is None:
            return f"More golden prompts may decide, one a line in a file:\n  {command} run {resolved} --set golden.prompts=FILE"
        count = max(MORE_PROMPTS, 2 * recipe.golden.from_test)
        return f"More golden prompts may decide:\n  {command} run {resolved} --set golden.from_test={count}"
    finest = recipe.export.converted
    if facts.link == "quantization" and finest not in recipe.export.file_types:
        serve = recipe.export.settings_to_serve(finest)
        return (
            f"No file type of the recipe passes. Serve one that is not quantized:\n  {command} run {resolved} {serve}"
        )
    stage = _STAGE_OF.get(facts.link, "convert")
    if stage == "train" and recipe.adapter is not None:
        return f"The adapter itself is at fault. Train it again, then:\n  {command} run {resolved}"
    return f"Make it anew from there, then judge it again:\n  {command} {stage} {resolved} --force\n  {command} run {resolved}"


def after_check(certificate: dict[str, Any], asked: Asked, recipe: Recipe | None, run_folder: Path) -> str:
    """The last lines of `verify` for files of any origin, whose certificate does not pass.

    Args:
        run_folder: of the recipe's run.
    """
    command = own_command()
    right = [
        subject for subject in certificate["subjects"]
        if subject["kind"] in ("converted", "quantized") and subject["verdict"] == "pass"
    ]  # fmt: skip
    if certificate["verdict"] == "inconclusive":
        whose = f"{run_folder / RESOLVED_FILE} {_named(asked)} --set golden.prompts=FILE"
        named = whose if recipe is not None else f"{_named(asked)} --prompts FILE"
        return f"More golden prompts may decide, one a line in a file:\n  {command} verify {named}"
    blame = certificate["blame"] or {}
    link = blame.get("link", "")
    if blame.get("measure") == MISSING:
        files = f"{asked.ggufs[0] if asked.ggufs else 'MODEL.gguf'} {asked.mmproj or 'MMPROJ.gguf'}"
        made = f"printf 'FROM %s\\n' {files} > Modelfile"
        if recipe is not None:
            made = f"{command} modelfile {run_folder / RESOLVED_FILE} > Modelfile"
        return f"Create it from both files:\n  {made}\n  ollama create {asked.ollama} -f Modelfile"
    if link == "defaults" and asked.ollama:
        return (
            "Take the lines out of its Modelfile, or make them milder:\n"
            f"  ollama show --modelfile {asked.ollama} | grep -vxF '{_NO_TEMPLATE}' > Modelfile\n"
            f"  ollama create {asked.ollama} -f Modelfile"
        )
    if right and len(asked.ggufs) > 1:
        return (
            f"{right[0]['file']} passes. Serve that file; the whole story:\n  {command} verify {_named(asked)} --json"
        )
    if link == "template" and len(asked.ggufs) == 1 and recipe is None:
        return (
            "A copy with the template that was trained with:\n"
            f"  {command} verify {_named(asked)} --repair {asked.ggufs[0].stem}-mended.gguf"
        )
    if recipe is not None:
        return f"Make it anew from the recipe:\n  {command} run {run_folder / RESOLVED_FILE}"
    if asked.adapter is not None:
        base = f" --base {asked.base}" if asked.base else ""
        return f"Export it anew from the adapter:\n  {command} export {asked.adapter} --name NAME{base}"
    return f"Export it anew from the merged folder:\n  {command} export {asked.hf} --name NAME"


def after_serving(link: str, recipe: Recipe, folder: Path) -> str:
    """The last lines of `create`, where the server showed another model than the trained one.

    Args:
        folder: of the run.
    """
    again = f"{own_command()} create {folder / RESOLVED_FILE}"
    if link == "defaults":
        where = recipe.ollama.modelfile or "the recipe's Modelfile"
        return f"Take the lines out of {where}, or make them milder; then:\n  {again}"
    return f"Mend the server (its own settings, its version), then:\n  {again}"


def _named(asked: Asked) -> str:
    """The files as they were named."""
    options = [("--adapter", asked.adapter), ("--base", asked.base), ("--hf", asked.hf)]
    options += [("--gguf", file) for file in asked.ggufs]
    options += [("--ollama", asked.ollama), ("--system", f'"{asked.system}"' if asked.system else "")]
    return " ".join(f"{name} {value}" for name, value in options if value)
