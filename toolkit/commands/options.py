"""What several commands share: options, and printing for machines."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from toolkit.recipe.schema import Recipe
    from toolkit.run.artifacts import Artifact

Command = Callable[..., None]

PATH = click.Path(path_type=Path)
RECIPE = click.argument("recipe", type=PATH)
as_json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON, for machines.")
load_in_4bit_option = click.option(
    "--load-in-4bit/--no-load-in-4bit", default=None, help="Whether the adapter was trained on an NF4 base (QLoRA)."
)
settings_option = click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="Change a key of the recipe."
)


def _told(_context: Any, _parameter: Any, text: str) -> dict[str, Any]:
    """A mapping, as YAML writes one."""
    import yaml

    try:
        found = yaml.safe_load(text) if text else {}
    except yaml.YAMLError:
        found = None
    if not isinstance(found, dict):
        raise click.BadParameter(f"{text!r} is no mapping: write it like '{{enable_thinking: false}}'")
    return found


chat_template_kwargs_option = click.option(
    "--chat-template-kwargs", default="", callback=_told, metavar="MAPPING",
    help="What the chat template was told in training, e.g. '{enable_thinking: false}'.",
)  # fmt: skip


rewards_option = click.option(
    "--rewards", type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="FILE.py",
    help="Rewards of your own for grpo and rloo; the file is run.",
)  # fmt: skip


def recipe_options(command: Command) -> Command:
    """--profile and --set, the same for every command that reads a recipe."""
    profile = click.option("--profile", help="cpu, gpu-8gb, …; by default what this machine can hold.")
    return profile(settings_option(command))


def load(recipe: Path, profile: str | None, settings: tuple[str, ...]) -> Recipe:
    """The recipe as the options have it."""
    from toolkit.recipe.reading import load_recipe

    return load_recipe(recipe, profile, settings)


def print_json(value: Any) -> None:
    """A result, for machines."""
    click.echo(json.dumps(value, ensure_ascii=False, indent=2))


def print_facts(artifacts: dict[str, Artifact[Any]]) -> None:
    """What each stage found, for machines."""
    print_json({name: artifact.facts.model_dump(mode="json") for name, artifact in artifacts.items()})
