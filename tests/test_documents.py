"""What documents, recipes and messages name is there: links, keys of a recipe, commands and their options, files, benches."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, get_args, get_origin

import pytest
import yaml

from tests.test_readme import LINK, ROOT
from toolkit.cli import cli
from toolkit.recipe.schema import Recipe
from toolkit.recipe.section import Section


def found(pattern: str) -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for path in ROOT.glob(pattern))


PAGES = [*found("*.md"), "data/README.md", *found("docs/*.md")]
SPEAKING = [*PAGES, *found("docs/*.yaml"), *found("recipes/*.yaml")]
"""What names commands to people."""
MESSAGES = found("toolkit/**/*.py")

BLOCK = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`([^`\n]+)`")
SET = re.compile(r"--set ['\"]?([a-z_0-9]+(?:\.[a-z_0-9]+)*)=")
KEY = re.compile(r"([a-z_]+(?:\.[a-z_0-9]+)+)(?:$|[:= ].*)")
FILE = re.compile(r"(?<![\w./-])(?:toolkit|tests|recipes|modelfiles|data|docs)/[\w.*/-]*[\w/]")
NAME = re.compile(r"(?<![\w./-])(?:toolkit|tests)(?:\.\w+)+")
VERB = re.compile(r"(?<![\w/.\[-])tune2ollama ([a-z][a-z-]*)(.*)")
TYPED = re.compile(r"^[#\s$]*(?:\w+=\S+ )?(?:\.venv/bin/)?tune2ollama .*", re.MULTILINE)
OPTION = re.compile(r"(?<=\s)(--?[a-z][a-z0-9-]*)")
TO_BE_WRITTEN = "recipes/helpdesk.yaml"
"""What the documents' own commands make."""
OTHERS = "distributed_type"
"""A block of YAML with this key is Accelerate's."""


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def code(text: str) -> Iterator[str]:
    """Blocks, then what stands between single marks."""
    yield from (block for _, block in BLOCK.findall(text))
    yield from INLINE.findall(BLOCK.sub("", text))


def unknown(tree: Any, kind: Any, where: str = "") -> list[str]:
    """Keys of a tree, or of a part of one, that a recipe does not have."""
    arms = [kind, *get_args(kind)] if get_origin(kind) not in (dict, list) else [kind]
    if isinstance(tree, list):
        inner = [get_args(arm)[0] for arm in arms if get_origin(arm) is list and get_args(arm)]
        return [fault for item in tree for one in inner for fault in unknown(item, one, where)]
    if not isinstance(tree, dict):
        return []
    free = [get_args(arm)[1] for arm in arms if get_origin(arm) is dict]
    fields = {name: field.annotation for arm in sections(arms) for name, field in arm.model_fields.items()}
    faults = []
    for key, value in tree.items():
        if key in fields or free:
            faults += unknown(value, fields.get(key) or free[0], f"{where}{key}.")
        else:
            faults.append(f"{where}{key}")
    return faults


def sections(arms: list[Any]) -> Iterator[type[Section]]:
    for arm in arms:
        if isinstance(arm, type) and issubclass(arm, Section):
            yield arm
        elif get_origin(arm) is not None and get_origin(arm) not in (dict, list):
            yield from sections(list(get_args(arm)))


def as_tree(key: str) -> dict[str, Any]:
    head, _, rest = key.partition(".")
    return {head: as_tree(rest) if rest else None}


def anchors(text: str) -> set[str]:
    """Of the headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", BLOCK.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name: str) -> None:
    for label, link in LINK.findall(read(name)):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / name).parent / path if path else ROOT / name
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.read_text(encoding="utf-8")), link
        assert label == link or not label.startswith("docs/"), label


@pytest.mark.parametrize("name", [*SPEAKING, *MESSAGES])
def test_keys_of_a_recipe_are_keys(name: str) -> None:
    text = read(name)
    keys = SET.findall(text)
    if name in PAGES:
        keys += [key[1] for piece in code(text) if (key := KEY.fullmatch(piece)) and is_key(key[1])]
        blocks = [yaml.safe_load(block) for language, block in BLOCK.findall(text) if language == "yaml"]
        assert [fault for tree in blocks if OTHERS not in tree for fault in unknown(tree, Recipe)] == []
    assert [fault for key in keys for fault in unknown(as_tree(key), Recipe)] == []


def is_key(dotted: str) -> bool:
    """Not `train.jsonl`, nor a key of `config.json`."""
    return dotted.partition(".")[0] in Recipe.model_fields and not dotted.endswith((".jsonl", ".json", ".txt", ".md"))


@pytest.mark.parametrize("name", SPEAKING)
def test_commands_have_the_options_that_are_typed(name: str) -> None:
    text = read(name).replace("\\\n", " ")
    typed = [*TYPED.findall(text), *(piece for piece in INLINE.findall(BLOCK.sub("", text)) if "tune2ollama " in piece)]
    for line in typed:
        for verb, rest in VERB.findall(line.partition("  #")[0]):
            command = cli.commands[verb]
            options = {option for one in command.params for option in (*one.opts, *one.secondary_opts)} | {"--help"}
            assert set(OPTION.findall(rest)) <= options, line


@pytest.mark.parametrize("name", MESSAGES)
def test_messages_name_verbs_that_there_are(name: str) -> None:
    assert {verb for verb, _ in VERB.findall(read(name))} <= set(cli.commands)


@pytest.mark.parametrize("name", [*SPEAKING, *MESSAGES])
def test_files_and_functions_are_where_they_are_said_to_be(name: str) -> None:
    text = read(name)
    pieces = list(code(text)) if name in PAGES else [text]
    for piece in pieces:
        for path in FILE.findall(piece):
            assert path == TO_BE_WRITTEN or list(ROOT.glob(path)), path
        for dotted in NAME.findall(piece):
            assert is_there(dotted), dotted
        for target in re.findall(r"^make (\w+)", piece if name in PAGES else "", re.MULTILINE):
            assert re.search(rf"^{target}:", read("Makefile"), re.MULTILINE), target


def is_there(dotted: str) -> bool:
    """A package, a module, or what a module defines."""
    path = ROOT / dotted.replace(".", "/")
    if path.is_dir() or path.with_suffix(".py").is_file():
        return True
    modules = [folder for folder in path.parents if ROOT in folder.parents and folder.with_suffix(".py").is_file()]
    if not modules:
        return False
    name = path.relative_to(modules[0]).parts[0]
    text = modules[0].with_suffix(".py").read_text(encoding="utf-8")
    return re.search(rf"^(def|class) {name}\b|^{name}\b.* = ", text, re.MULTILINE) is not None


def test_it_would_be_seen() -> None:
    assert unknown({"data": {"sources": [{"path": "a", "wieght": 1}]}}, Recipe) == ["data.sources.wieght"]
    assert unknown(as_tree("earlier.format.train.max_step"), Recipe) == ["earlier.format.train.max_step"]
    assert unknown(as_tree("train.chat_template_kwargs.enable_thinking"), Recipe) == []
    assert not is_there("toolkit.estimates") and is_there("toolkit.parity.verify.verify")
    assert anchors("## What a sample can decide\n") == {"what-a-sample-can-decide"}
