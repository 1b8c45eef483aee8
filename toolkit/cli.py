"""The `tune2ollama` command: parse, call one function, print the artifact and the next command.

Only the standard library, click and `errors` are imported at the top, so that `--help` is instant.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from toolkit.errors import INTERRUPTED, MAKE_ROOM, StageFailed, ToolkitError

if TYPE_CHECKING:
    from toolkit.artifacts import Artifact
    from toolkit.recipe import Recipe

Command = Callable[..., None]

RECIPE = click.argument("recipe", type=click.Path(path_type=Path))


def _recipe_options(command: Command) -> Command:
    """--profile and --set, the same for every command that reads a recipe."""
    command = click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Change a key of the recipe.")(
        command
    )
    return click.option("--profile", help="cpu, gpu-8gb, …; by default what this machine can hold.")(command)


_as_json = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON, for machines.")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="tune2ollama")
@click.option("--debug", is_flag=True, envvar="TUNE2OLLAMA_DEBUG", help="Show the traceback of an error.")
@click.pass_context
def cli(context: click.Context, debug: bool) -> None:
    """A fine-tune that you can `ollama run`, with proof that what runs is what was trained.

    \b
    Start:   tune2ollama run recipes/medical.yaml
    Then:    ollama run medical
    """
    context.obj = {"debug": debug}
    if debug:
        os.environ["TUNE2OLLAMA_DEBUG"] = "1"


def _load(recipe: Path, profile: str | None, settings: tuple[str, ...]) -> Recipe:
    from toolkit.recipe_file import load_recipe

    return load_recipe(recipe, profile, settings)


def _print_json(value: Any) -> None:
    click.echo(json.dumps(value, ensure_ascii=False, indent=2))


def _print_facts(artifacts: dict[str, Artifact[Any]]) -> None:
    """What each stage found, for machines."""
    _print_json({name: artifact.facts.model_dump(mode="json") for name, artifact in artifacts.items()})


@cli.command()
@RECIPE
@_recipe_options
@click.option("--dry-run", is_flag=True, help="Show the resolved recipe, and what would run and why.")
@_as_json
def run(recipe: Path, profile: str | None, settings: tuple[str, ...], dry_run: bool, as_json: bool) -> None:
    """Go the whole way: data → train → merge → GGUF → quantize → certificate → Ollama.

    What is current is skipped; a run that was cut short goes on where it was.

    \b
    Example:  tune2ollama run recipes/medical.yaml
    Example:  tune2ollama run recipes/medical.yaml --set train.max_steps=60 --dry-run
    """
    from toolkit import pipeline

    resolved = _load(recipe, profile, settings)
    if dry_run:
        rows = pipeline.plan_of_stages(resolved)
        if as_json:
            _print_json({"recipe": resolved.model_dump(mode="json"), "stages": dict(rows)})
            return
        import yaml

        click.echo(yaml.safe_dump(resolved.model_dump(mode="json"), sort_keys=False, allow_unicode=True))
        for name, reason in rows:
            click.echo(f"{name:<9}{reason}")
        return
    artifacts = pipeline.run(resolved)
    if as_json:
        _print_facts(artifacts)
        return
    from toolkit.report.report import print_last_screen

    print_last_screen(resolved, artifacts)


def _stage_command(stage: str, text: str, following: str) -> None:
    """Add the command of one stage; it brings the stages before it up to date first."""

    @RECIPE
    @_recipe_options
    @click.option("--force", is_flag=True, help="Redo it even when it is current.")
    @_as_json
    def command(recipe: Path, profile: str | None, settings: tuple[str, ...], force: bool, as_json: bool) -> None:
        from toolkit import pipeline

        resolved = _load(recipe, profile, settings)
        artifacts = pipeline.run(resolved, upto=stage, force=stage if force else "")
        artifact = artifacts[stage]
        if as_json:
            _print_json(
                {"folder": str(artifact.folder), "digest": artifact.digest, **artifact.facts.model_dump(mode="json")}
            )
            return
        click.echo(artifact.folder)
        if following:
            from toolkit.places import own_command
            from toolkit.recipe_file import RESOLVED_FILE

            as_it_ran = pipeline.run_folder(resolved) / RESOLVED_FILE
            click.echo(f"Next: {own_command()} {following} {as_it_ran}", err=True)

    command.__doc__ = f"{text}\n\n    \b\n    Example:  tune2ollama {stage} recipes/medical.yaml\n    "
    cli.command(name=stage)(command)


for _name, _text, _following in (
    ("prepare", "Read, clean and split the recipe's data into prompt/completion rows.", "train"),
    ("train", "Train the adapter, from the last complete checkpoint when there is one.", "golden"),
    ("golden", "Record what the tuned model answers to the golden prompts, with fp32 reference logits.", "merge"),
    ("merge", "Merge the adapter into its base, one tensor at a time.", "convert"),
    ("convert", "Write the merged model as a GGUF file.", "quantize"),
    ("quantize", "Write the recipe's quantized GGUF files.", "verify"),
    ("create", "Publish to Ollama: a candidate first, checked as it is served, then the name.", "report"),
    ("report", "Write report.md and the model card.", ""),
):
    _stage_command(_name, _text, _following)


_PATH = click.Path(path_type=Path)
_ADOPTED = ("train", "golden", "merge", "convert", "quantize", "verify", "create", "report")
"""The stages of an adapter that was trained elsewhere; spelled out, because importing `stages` takes time."""


@cli.command()
@click.argument("recipe", type=_PATH, required=False)
@_recipe_options
@click.option("--force", is_flag=True, help="With a recipe alone: redo it even when it is current.")
@click.option("--adapter", type=_PATH, help="A PEFT adapter: what was trained, by any tool.")
@click.option("--base", default="", help="Its base model; by default what the adapter's own config names.")
@click.option(
    "--load-in-4bit/--no-load-in-4bit", default=None, help="Whether the adapter was trained on an NF4 base (QLoRA)."
)
@click.option("--hf", type=_PATH, help="A merged folder; without --adapter, what the others are compared with.")
@click.option("--gguf", "ggufs", type=_PATH, multiple=True, help="A GGUF file to judge; may be given more than once.")
@click.option(
    "--against", "others", type=_PATH, multiple=True, help="Another export of the same model, judged beside it."
)
@click.option("--ollama", default="", metavar="NAME:TAG", help="A model of the running Ollama to judge.")
@click.option(
    "--repair",
    type=_PATH,
    metavar="OUT.gguf",
    help="Where Ollama would serve the --gguf otherwise than trained: write a copy that it serves rightly.",
)
@click.option("--system", default="", help="The system text that the adapter was trained with.")
@click.option("--prompts", type=_PATH, help="Golden prompts, one a line, or JSONL with a key prompt.")
@click.option("--out", type=_PATH, help="Folder for the certificate; by default runs/<name>/checked.")
@_as_json
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
    """
    from toolkit.parity.asked import Asked, refuse_ignored
    from toolkit.parity.tool import check, raise_unless_passed, verify_recipe

    these = Asked.of(**asked)
    refuse_ignored(these, recipe is not None, {"--profile": profile, "--set": settings, "--force": force})
    resolved = _load(recipe, profile, settings) if recipe else None
    if resolved is not None and not these.exports:
        certificate = verify_recipe(resolved, force, out)
    else:
        certificate = check(resolved, these, out)
    try:
        if as_json:
            _print_json(certificate)
        else:
            from rich.console import Console

            from toolkit.parity.table import certificate_table

            Console().print(certificate_table(certificate))
    finally:  # the exit code is the verdict, also where nobody reads to the end (| head)
        raise_unless_passed(certificate)


@cli.command()
@click.argument("adapter", type=click.Path(path_type=Path))
@click.option("--name", required=True, help="Name of the run and of the Ollama model.")
@click.option("--base", default="", help="Base model; by default what the adapter's own config names.")
@click.option(
    "--load-in-4bit/--no-load-in-4bit", default=None, help="Whether the adapter was trained on an NF4 base (QLoRA)."
)
@click.option("--prompts", type=click.Path(path_type=Path), help="Golden prompts, one a line.")
@click.option("--system", default="", help="The system text that the adapter was trained with.")
@click.option("--file-type", "file_types", multiple=True, help="GGUF file types to make; the last one is served.")
@click.option("--modelfile", type=click.Path(path_type=Path), help="A partial Modelfile to complete.")
@click.option("--upto", type=click.Choice(_ADOPTED), default="report", help="Last stage to run.")
@_as_json
def export(adapter: Path, name: str, base: str, upto: str, as_json: bool, **options: Any) -> None:
    """Take a PEFT adapter that any tool trained through merge, GGUF, certificate and Ollama.

    \b
    Example:  tune2ollama export outputs/checkpoint-60 --name mymodel --base ./Qwen2.5-0.5B-Instruct
    """
    from toolkit import pipeline
    from toolkit.train.adopt import recipe_for_adapter

    recipe = recipe_for_adapter(adapter, name, base, **options)
    artifacts = pipeline.run(recipe, upto=upto)
    if as_json:
        _print_facts(artifacts)
    elif upto == "report":
        from toolkit.report.report import print_last_screen

        print_last_screen(recipe, artifacts)


@cli.command()
@RECIPE
@_recipe_options
@_as_json
def modelfile(recipe: Path, profile: str | None, settings: tuple[str, ...], as_json: bool) -> None:
    """Print the complete Modelfile of a recipe, FROM the file that the certificate lets go.

    Brings all stages up to `verify` up to date first; without a passing certificate there is no such file.

    Exit code 0: pass, 6: fail, 7: inconclusive.

    \b
    Example:  tune2ollama modelfile recipes/medical.yaml > Modelfile
    """
    from toolkit import pipeline
    from toolkit.ollama.publish import modelfile_of
    from toolkit.stages import certified_file

    resolved = _load(recipe, profile, settings)
    artifacts = pipeline.run(resolved, upto="verify")
    text = modelfile_of(resolved, certified_file(artifacts["verify"]))
    if as_json:
        _print_json({"modelfile": text})
    else:
        click.echo(text, nl=False)


@cli.command()
@click.argument("data", type=click.Path(path_type=Path))
@click.option("--name", help="Name of the recipe and of the Ollama model; by default the file's.")
@click.option("--out", type=click.Path(path_type=Path), help="Where to write it; by default recipes/<name>.yaml.")
@_as_json
def init(data: Path, name: str | None, out: Path | None, as_json: bool) -> None:
    """Write a recipe for your own file by looking at its columns.

    \b
    Example:  tune2ollama init questions.csv --name helpdesk
    """
    from toolkit.init import write_recipe
    from toolkit.places import own_command

    path = write_recipe(data, name, out)
    if as_json:
        _print_json({"recipe": str(path)})
        return
    click.echo(path)
    click.echo(f"Look through it, then: {own_command()} run {path}", err=True)


@cli.command(name="list")
@_as_json
def list_recipes(as_json: bool) -> None:
    """List the recipes and runs here, and how far each run has come.

    \b
    Example:  tune2ollama list
    """
    from toolkit.listing import list_rows

    rows = list_rows(Path("recipes"), Path("runs"))
    if as_json:
        _print_json(rows)
        return
    for row in rows:
        click.echo(f"{row['recipe']:<28}{row['about']}\n{'':<28}{row['state']}")


@cli.command()
@_as_json
def doctor(as_json: bool) -> None:
    """Check versions, compiler, GPU, bitsandbytes, WSL2, disk, Ollama, and that llama.cpp decodes one token here.

    \b
    Example:  tune2ollama doctor
    """
    from toolkit.doctor import diagnose, print_findings

    findings = diagnose()
    if as_json:
        from dataclasses import asdict

        _print_json([asdict(finding) for finding in findings])
    else:
        print_findings(findings)
    if any(finding.status == "missing" for finding in findings):
        sys.exit(5)


@cli.command()
@RECIPE
@_recipe_options
@_as_json
def plan(recipe: Path, profile: str | None, settings: tuple[str, ...], as_json: bool) -> None:
    """Estimate memory, disk and time of every stage, before anything is spent.

    \b
    Example:  tune2ollama plan recipes/medical.yaml --profile gpu-16gb
    """
    from toolkit.hardware import read_hardware
    from toolkit.plan import make_plan, print_plan

    made = make_plan(_load(recipe, profile, settings), read_hardware())
    if as_json:
        from dataclasses import asdict

        _print_json(asdict(made))
    else:
        print_plan(made)


@cli.command()
@click.argument("model", required=False)
def chat(model: str | None) -> None:
    """Chat with a published model, or with a GGUF file.

    \b
    Example:  tune2ollama chat medical
    """
    from toolkit.chat import chat_with

    chat_with(model)


@cli.command()
@click.argument("name", required=False)
@click.option("--cache", is_flag=True, help="Also remove rebuilt bases; compiled wheels and servers stay.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@_as_json
def clean(name: str | None, cache: bool, yes: bool, as_json: bool) -> None:
    """Remove the results of one run, or without a name of all. Published Ollama models stay.

    \b
    Example:  tune2ollama clean medical
    """
    from toolkit.listing import remove, what_to_clean

    folders = what_to_clean(name, cache)
    for folder in folders:
        click.echo(folder, err=True)
    if folders and not yes:
        click.confirm("Remove these?", abort=True, err=True)
    remove(folders)
    if as_json:
        _print_json({"removed": [str(folder) for folder in folders]})
    elif not folders:
        click.echo("Nothing to remove.", err=True)


@cli.command(name="stage-process", hidden=True)
def stage_process() -> None:
    """Run one stage in this process, as ordered on standard input (used by `run`)."""
    from toolkit.pipeline import run_stage_here
    from toolkit.processes import die_with_parent

    order = json.load(sys.stdin)
    die_with_parent(signal.SIGKILL, order["parent"])()
    run_stage_here(order)


def _tell(error: ToolkitError) -> None:
    if not isinstance(error, StageFailed):
        click.secho("Error: ", fg="red", bold=True, err=True, nl=False)
    click.echo(error.message, err=True)
    if error.hint:
        click.echo(error.hint, err=True)


def main() -> None:
    """Run the command; the one place where an error becomes text and an exit code."""
    from toolkit.processes import keep_interrupts

    # A polite `kill` ends like Ctrl-C: locks are released, started servers are stopped.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    keep_interrupts()
    debug = "--debug" in sys.argv or bool(os.environ.get("TUNE2OLLAMA_DEBUG"))
    try:
        cli.main(standalone_mode=False)
    except ToolkitError as error:
        if debug:
            raise
        _tell(error)
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        if "stage-process" not in sys.argv:  # the command that started it says so
            click.echo("\nInterrupted. Finished stages stay; run the same command again to go on.", err=True)
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        sys.exit(0)
    except Exception as error:
        if debug:
            raise
        _tell(_translate(error))
        sys.exit(_translate(error).exit_code)


def _translate(error: Exception) -> ToolkitError:
    """An error that no part of the toolkit expected, in words."""
    import errno

    from toolkit.errors import ResourceError
    from toolkit.safetensors_file import no_space

    if reason := no_space(error):
        return ResourceError(
            f"the disk is full: {getattr(error, 'filename', None) or 'while writing'} ({reason})",
            f"{MAKE_ROOM}; then run the same command again.",
        )
    if isinstance(error, OSError) and error.errno in {errno.EACCES, errno.EROFS}:
        return ResourceError(f"{error.filename} cannot be written or read: {error.strerror}", "Mend its permissions.")
    if isinstance(error, MemoryError):
        return ResourceError("memory ran out", "Close other programs, or take a smaller base: tune2ollama plan …")
    return ToolkitError(
        f"{type(error).__name__}: {error}", "This was not foreseen. For the traceback: tune2ollama --debug …"
    )


if __name__ == "__main__":
    main()
