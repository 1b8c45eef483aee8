"""What another tool trained or exported: judge it, or take it the whole way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from toolkit.commands.options import (
    PATH,
    as_json_option,
    chat_template_kwargs_option,
    load,
    load_in_4bit_option,
    print_facts,
    print_json,
    recipe_options,
    settings_option,
)

ADOPTED = ("train", "merge", "golden", "convert", "quantize", "verify", "create", "evaluate", "report")
"""The stages of an adapter that was trained elsewhere; spelled out, because importing `stages` takes time."""


@click.command()
@click.argument("recipe", type=PATH, required=False)
@recipe_options
@click.option("--force", is_flag=True, help="With a recipe alone: redo it even when it is current.")
@click.option("--adapter", type=PATH, help="A PEFT adapter: what was trained, by any tool.")
@click.option("--base", default="", help="Its base model; by default what the adapter's own config names.")
@load_in_4bit_option
@chat_template_kwargs_option
@click.option("--hf", type=PATH, help="A merged folder; without --adapter, what the others are compared with.")
@click.option("--gguf", "ggufs", type=PATH, multiple=True, help="A GGUF file to judge; may be given more than once.")
@click.option(
    "--against", "others", type=PATH, multiple=True, help="Another export of the same model, judged beside it."
)
@click.option("--mmproj", type=PATH, help="The GGUF file that sees, beside that of the language model.")
@click.option("--ollama", default="", metavar="NAME:TAG", help="A model of the running Ollama to judge.")
@click.option(
    "--repair",
    type=PATH,
    metavar="OUT.gguf",
    help="Where Ollama would serve the --gguf otherwise than trained: write a copy that it serves rightly.",
)
@click.option("--system", default="", help="The system text that the adapter was trained with.")
@click.option("--prompts", type=PATH, help="Golden prompts, one a line, or JSONL with a key prompt.")
@click.option("--out", type=PATH, help="Folder for the certificate; by default runs/<name>/checked.")
@as_json_option
def verify(
    recipe: Path | None, profile: str | None, settings: tuple[str, ...], force: bool, out: Path | None, as_json: bool,
    **asked: Any,
) -> None:  # fmt: skip
    """Say whether what runs is what was trained, and which link broke: a recipe's own files, or anybody's.

    Exit code 0: pass, 6: fail, 7: inconclusive.

    \b
    Example:  tune2ollama verify recipes/medical.yaml
    Example:  tune2ollama verify --adapter outputs/checkpoint-60 --gguf model-Q4_K_M.gguf
    Example:  tune2ollama verify --adapter outputs/checkpoint-60 --ollama mymodel:latest --json
    Example:  tune2ollama verify --adapter outputs/checkpoint-60 --gguf ours.gguf --against theirs.gguf
    Example:  tune2ollama verify --adapter outputs/checkpoint-60 --gguf model.gguf --repair mended.gguf
    Example:  tune2ollama verify --adapter outputs/checkpoint-60 --gguf model.gguf --mmproj mmproj.gguf
    """
    from toolkit.parity.asked import Asked, refuse_ignored
    from toolkit.parity.tool import check, raise_unless_passed, verify_recipe

    these = Asked.of(**asked)
    refuse_ignored(these, recipe is not None, {"--profile": profile, "--set": settings, "--force": force})
    resolved = load(recipe, profile, settings) if recipe else None
    if resolved is not None and not these.exports:
        certificate = verify_recipe(resolved, force, out)
    else:
        certificate = check(resolved, these, out)
    try:
        if as_json:
            print_json(certificate)
        else:
            from rich.console import Console
            from rich.text import Text

            from toolkit.report.certificate_table import certificate_table

            Console().print(certificate_table(certificate))
            for warning in certificate["warnings"]:
                Console(stderr=True, highlight=False).print(Text(f"Warning: {warning}", style="yellow"), soft_wrap=True)
    finally:  # the exit code is the verdict, also where nobody reads to the end (| head)
        raise_unless_passed(certificate, these, resolved)


@click.command()
@click.argument("adapter", type=PATH)
@click.option("--name", required=True, help="Name of the run and of the Ollama model.")
@click.option("--base", default="", help="Base model; by default what the adapter's own config names.")
@load_in_4bit_option
@chat_template_kwargs_option
@click.option("--prompts", type=PATH, help="Golden prompts, one a line.")
@click.option("--system", default="", help="The system text that the adapter was trained with.")
@click.option("--file-type", "file_types", multiple=True, help="GGUF file types to make; the last one is served.")
@click.option("--modelfile", type=PATH, help="A partial Modelfile to complete.")
@click.option(
    "--then", type=PATH, multiple=True, help="An adapter that was trained on top, with ADAPTER merged; in order."
)
@settings_option
@click.option("--latest", is_flag=True, help="ADAPTER is an output folder: take its newest complete checkpoint.")
@click.option("--upto", type=click.Choice(ADOPTED), default="report", help="Stage to run, with all that it needs.")
@as_json_option
def export(adapter: Path, name: str, base: str, latest: bool, upto: str, as_json: bool, **options: Any) -> None:
    """Take a PEFT adapter that any tool trained all the way: GGUF, certificate and Ollama.

    \b
    Example:  tune2ollama export outputs/checkpoint-60 --name mymodel --base ./Qwen2.5-0.5B-Instruct
    Example:  tune2ollama export outputs --latest --name mymodel --set golden.max_new_tokens=200
    """
    if latest:
        from toolkit.models.adapter_files import latest as newest

        adapter = newest(adapter)
        click.echo(f"Taking {adapter}", err=True)
    from toolkit.recipe.adopted import recipe_for_adapter

    recipe = recipe_for_adapter(adapter, name, base, **options)
    from toolkit.run import pipeline

    artifacts = pipeline.run(recipe, upto=upto)
    if as_json:
        print_facts(artifacts)
    elif upto == "report":
        from toolkit.report.report import print_last_screen

        print_last_screen(recipe, artifacts)
