"""The README in two languages: what a reader types, opens and sees is the same in both."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[([^]]*)\]\(([^)\s]+)\)")
TRANSLATED = "README.md", "README.zh.md"


class Readme(NamedTuple):
    """What does not depend on the language."""

    blocks: list[list[str]]
    """Of each code block its lines, without what is said about them."""
    links: list[str]
    inline: Counter[str]
    """`code` in the text: its order is the language's."""
    headings: list[str]
    tables: list[int]
    """Cells of each row of a table."""


def read(name: str) -> Readme:
    text = (ROOT / name).read_text(encoding="utf-8")
    prose = BLOCK.sub("", text)
    lines = prose.splitlines()
    return Readme(
        [without_words(block) for block in BLOCK.findall(text)],
        [link for _, link in LINK.findall(prose) if link not in TRANSLATED],
        Counter(" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose)),
        [found[0] for line in lines if (found := re.match(r"#+(?= )", line))],
        [line.count("|") - 1 for line in lines if line.startswith("|")],
    )


def without_words(block: str) -> list[str]:
    """The lines of a block without comments; of the list of folders only the names."""
    lines = block.splitlines()
    if lines[0] == "toolkit/":
        return [found[0] for line in lines if (found := re.match(r" {0,2}[a-z].*?(?=  |$)", line))]
    return [re.sub(r"\s+# .*", "", line) for line in lines]


@pytest.fixture(scope="module")
def english() -> Readme:
    return read("README.md")


@pytest.mark.parametrize("part", Readme._fields)
def test_both_languages_say_the_same(english: Readme, part: str) -> None:
    assert getattr(read("README.zh.md"), part) == getattr(english, part)


def test_the_comparison_sees_what_a_reader_types(english: Readme) -> None:
    lines = [line for block in english.blocks for line in block]
    for line in ("make medical", "tune2ollama inspect my/questions.xlsx", "  parity/", "runs/", "ollama run medical"):
        assert line in lines
    assert "docs/data.md" in english.links and len(english.headings) > 5 and len(english.tables) > 20


def test_each_is_linked_from_the_first_lines_of_the_other() -> None:
    for name, other in (TRANSLATED, TRANSLATED[::-1]):
        first = (ROOT / name).read_text(encoding="utf-8").splitlines()[:4]
        assert f"({other})" in "\n".join(first)
