"""A recipe's way: the whole, and stage by stage."""

from __future__ import annotations

from pathlib import Path

import click

from toolkit.commands.options import (
    RECIPE,
    as_json_option,
    load,
    print_facts,
    print_json,
    recipe_options,
    rewards_option,
)


@click.command()
@RECIPE
@recipe_options
@rewards_option
@click.option("--dry-run", is_flag=True, help="Show the resolved recipe, and what would run and why.")
@as_json_option
def run(
    recipe: Path, profile: str | None, settings: tuple[str, ...], rewards: Path | None, dry_run: bool, as_json: bool
) -> None:
    """Go the whole way: data → train → GGUF → quantize → certificate → Ollama.

    What is current is skipped; a run that was cut short goes on where it was.

    \b
    Example:  tune2ollama run recipes/medical.yaml
    Example:  tune2ollama run recipes/medical.yaml --set train.max_steps=60 --dry-run
    """
    from toolkit.run import pipeline

    resolved = load(recipe, profile, settings)
    if dry_run:
        rows = pipeline.plan_of_stages(resolved, rewards)
        if as_json:
            print_json({"recipe": resolved.model_dump(mode="json"), "stages": dict(rows)})
            return
        import yaml

        click.echo(yaml.safe_dump(resolved.model_dump(mode="json"), sort_keys=False, allow_unicode=True))
        for name, reason in rows:
            click.echo(f"{name:<9} {reason}")
        return
    artifacts = pipeline.run(resolved, rewards=rewards)
    if as_json:
        print_facts(artifacts)
        return
    from toolkit.report.report import print_last_screen

    print_last_screen(resolved, artifacts)


def _stage_command(stage: str, text: str, following: str) -> click.Command:
    """The command of one stage; it brings the stages before it up to date first."""

    @RECIPE
    @recipe_options
    @rewards_option
    @click.option("--force", is_flag=True, help="Redo it even when it is current.")
    @as_json_option
    def command(
        recipe: Path,
        profile: str | None,
        settings: tuple[str, ...],
        rewards: Path | None,
        force: bool,
        as_json: bool,
    ) -> None:
        from toolkit.run import pipeline

        resolved = load(recipe, profile, settings)
        artifacts = pipeline.run(resolved, upto=stage, force=stage if force else "", rewards=rewards)
        artifact = artifacts[stage]
        if as_json:
            print_json(
                {"folder": str(artifact.folder), "digest": artifact.digest, **artifact.facts.model_dump(mode="json")}
            )
            return
        click.echo(artifact.folder)
        if stage == "convert" and not artifact.facts.files:
            more = resolved.export.settings_to_make(resolved.export.converted)
            click.echo(
                f"No file type of 16 or 32 bits is asked for: quantize needs none. To have one: {more}", err=True
            )
        if following:
            from toolkit.recipe.reading import RESOLVED_FILE
            from toolkit.run.places import own_command

            as_it_ran = pipeline.run_folder(resolved) / RESOLVED_FILE
            click.echo(f"Next: {own_command()} {following} {as_it_ran}", err=True)

    command.__doc__ = f"{text}\n\n    \b\n    Example:  tune2ollama {stage} recipes/medical.yaml\n    "
    return click.command(name=stage)(command)


STAGE_COMMANDS = [
    _stage_command(name, text, following)
    for name, text, following in (
        ("prepare", "Read, clean and split the recipe's data into prompt/completion rows.", "train"),
        ("train", "Train the adapter, from the last complete checkpoint when there is one.", "golden"),
        ("golden", "Record what the tuned model answers to the golden prompts, with fp32 reference logits.", "convert"),
        ("merge", "Write the merged model as a folder, for vLLM and others; a run makes its files without one.", ""),
        (
            "convert",
            "Write the tuned model as a GGUF file of 16 or 32 bits, where the recipe needs one, straight from base and adapter.",
            "quantize",
        ),
        ("quantize", "Write the recipe's quantized GGUF files, all in one go.", "verify"),
        ("create", "Publish to Ollama: a candidate first, checked as it is served, then the name.", "evaluate"),
        ("report", "Write report.md and the model card.", ""),
    )
]


@click.command()
@RECIPE
@recipe_options
@as_json_option
def modelfile(recipe: Path, profile: str | None, settings: tuple[str, ...], as_json: bool) -> None:
    """Print the complete Modelfile of a recipe, FROM the file that the certificate lets go.

    Brings all stages up to `verify` up to date first; without a passing certificate there is no such file.

    Exit code 0: pass, 6: fail, 7: inconclusive.

    \b
    Example:  tune2ollama modelfile recipes/medical.yaml > Modelfile
    """
    from toolkit.ollama.files import certified_files
    from toolkit.ollama.publish import modelfile_of
    from toolkit.run import pipeline

    resolved = load(recipe, profile, settings)
    artifacts = pipeline.run(resolved, upto="verify")
    ends = artifacts["golden"].facts.end_tokens
    text = modelfile_of(resolved, certified_files(artifacts["verify"], artifacts["train"].facts), ends)
    if as_json:
        print_json({"modelfile": text})
    else:
        click.echo(text, nl=False)
