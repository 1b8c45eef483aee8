"""Around a run: write a recipe, look at the machine and at the cost, chat, list, clean."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from toolkit.commands.options import PATH, RECIPE, as_json_option, load, print_json, recipe_options, settings_option


@click.command()
@click.argument("data")
@click.option("--name", help="Name of the recipe and of the Ollama model; by default the file's.")
@click.option("--out", type=PATH, help="Where to write it; by default recipes/<name>.yaml.")
@settings_option
@as_json_option
def init(data: str, name: str | None, out: Path | None, settings: tuple[str, ...], as_json: bool) -> None:
    """Write a recipe for your own file by looking at its rows.

    \b
    Example:  tune2ollama init questions.csv --name helpdesk
    Example:  tune2ollama init table.csv --set data.header=false --set data.encoding=cp1252
    """
    from toolkit.recipe.init import write_recipe
    from toolkit.run.places import own_command

    path, told = write_recipe(data, name, out, settings)
    if as_json:
        print_json({"recipe": str(path), "told": told})
        return
    for line in told:
        click.echo(line, err=True)
    click.echo(path)
    click.echo(f"Look through it, then: {own_command()} run {path}", err=True)


@click.command(name="inspect")
@click.argument("rows", metavar="FILE")
@click.option("--base", default="embedded:smollm2-135m-instruct", help="The base whose template shows the rows.")
@click.option("--html", type=PATH, help="Also write a page with a histogram.")
@settings_option
@as_json_option
def inspect_rows(rows: str, base: str, html: Path | None, settings: tuple[str, ...], as_json: bool) -> None:
    """See rows as the model will: FILE is a file, a folder, hub:OWNER/NAME@COMMIT, or a recipe.

    \b
    Example:  tune2ollama inspect questions.csv
    Example:  tune2ollama inspect recipes/helpdesk.yaml --html rows.html
    """
    from toolkit.data.inspect import inspect
    from toolkit.recipe.init import recipe_to_look
    from toolkit.report.inspected import as_json as json_of
    from toolkit.report.inspected import print_screen, write_page

    found = inspect(recipe_to_look(rows, base, settings))
    if html is not None:
        click.echo(write_page(found, html), err=True)
    if as_json:
        print_json(json_of(found))
    else:
        print_screen(found)


@click.command(name="list")
@as_json_option
def list_recipes(as_json: bool) -> None:
    """List the recipes and runs here, and how far each run has come.

    \b
    Example:  tune2ollama list
    """
    from toolkit.recipe.listing import list_rows

    rows = list_rows(Path("recipes"), Path("runs"))
    if as_json:
        print_json(rows)
        return
    for row in rows:
        click.echo(f"{row['recipe']:<28}{row['about']}\n{'':<28}{row['state']}")


@click.command()
@click.option("--base", default="", help="Also ask whether this base model can become a GGUF.")
@as_json_option
def doctor(base: str, as_json: bool) -> None:
    """Check versions, compiler, GPU, bitsandbytes, WSL2, disk, Ollama, and that llama.cpp decodes one token here.

    \b
    Example:  tune2ollama doctor
    Example:  tune2ollama doctor --base ./Qwen3-0.6B
    """
    from toolkit.setup.base_finding import of_base
    from toolkit.setup.doctor import diagnose, print_findings

    findings = diagnose()
    if base:
        findings.append(of_base(base))
    if as_json:
        from dataclasses import asdict

        print_json([asdict(finding) for finding in findings])
    else:
        print_findings(findings)
    if any(finding.status == "missing" for finding in findings):
        sys.exit(5)


@click.command()
@RECIPE
@recipe_options
@as_json_option
def plan(recipe: Path, profile: str | None, settings: tuple[str, ...], as_json: bool) -> None:
    """Estimate memory, disk and time of every stage, before anything is spent.

    \b
    Example:  tune2ollama plan recipes/medical.yaml --profile gpu-16gb
    """
    from toolkit.recipe.plan import make_plan, print_plan
    from toolkit.run.hardware import read_hardware

    made = make_plan(load(recipe, profile, settings), read_hardware())
    if as_json:
        from dataclasses import asdict

        print_json(asdict(made))
    else:
        print_plan(made)


@click.command()
@click.argument("model", required=False)
@click.option(
    "--think",
    type=click.Choice(["yes", "no", "low", "medium", "high"]),
    help="Ask for thoughts, or for none; by default nothing is said.",
)
def chat(model: str | None, think: str | None) -> None:
    """Chat with a published model, or with a GGUF file.

    \b
    Example:  tune2ollama chat medical
    """
    from toolkit.ollama.chat import chat_with

    chat_with(model, {"yes": True, "no": False}.get(think or "", think))


@click.command()
@click.argument("name", required=False)
@click.option("--cache", is_flag=True, help="Also remove rebuilt bases; compiled wheels and servers stay.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@as_json_option
def clean(name: str | None, cache: bool, yes: bool, as_json: bool) -> None:
    """Remove the results of one run, or without a name of all. Published Ollama models stay.

    \b
    Example:  tune2ollama clean medical
    """
    from toolkit.recipe.listing import remove, what_to_clean

    folders = what_to_clean(name, cache)
    for folder in folders:
        click.echo(folder, err=True)
    if folders and not yes:
        click.confirm("Remove these?", abort=True, err=True)
    remove(folders)
    if as_json:
        print_json({"removed": [str(folder) for folder in folders]})
    elif not folders:
        click.echo("Nothing to remove.", err=True)
