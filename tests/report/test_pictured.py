# ruff: noqa: F811  (fixtures)
"""The page of pictures: every golden picture with its question and answers, in one file, whatever is written in them."""

from __future__ import annotations

import base64
import io
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.ollama.pictured import draw
from tests.report.test_report import artifacts, recipe  # noqa: F401  (fixtures)
from toolkit.recipe.schema import Recipe
from toolkit.report.report import last_screen, report_text, write_report
from toolkit.report.summary import summarize
from toolkit.run.artifacts import Artifact

ASKED = [("What is the mileage?", "A car.", "48 213 km"), ("<b>亮的是|哪个灯？</b>", "车。", "机油灯")]


@pytest.fixture
def seeing(artifacts: dict[str, Artifact[Any]], tmp_path: Path) -> dict[str, Artifact[Any]]:
    """The run's artifacts, where two of three goldens are about pictures."""
    folder = artifacts["golden"].folder
    rows = []
    for number, (question, before, after) in enumerate(ASKED):
        picture = f"images/{number}.png"
        draw(folder / picture, (1200, 700) if number else (300, 500), number)
        parts = [{"type": "text", "text": question}, {"type": "image", "image": picture}]
        rows.append({
            "messages": [{"role": "user", "content": parts}], "base_completion": before, "completion": after,
            "stopped": True, "pictures": [{"image": picture, "grid": [1, 2, 2], "tokens": 1024}],
        })  # fmt: skip
    text = {
        "messages": [{"role": "user", "content": "Hello?"}],
        "base_completion": "a",
        "completion": "b",
        "stopped": True,
    }
    written = "".join(json.dumps(row) + "\n" for row in [*rows, text])
    (folder / "golden.jsonl").write_text(written, encoding="utf-8")
    served = {
        "name": "health:v2", "kind": "served", "file": "f", "file_type": "Ollama", "counts": "everything", "served": True,
        "checks": [{
            "name": "answers", "verdict": "pass", "message": "the same", "measures": [],
            "details": {"texts": ["48 213 km", "油温灯", "b"], "warned": ["/api/generate shows the picture before the text"]},
        }],
    }  # fmt: skip
    (artifacts["create"].folder / "served.json").write_text(json.dumps(served), encoding="utf-8")
    return artifacts


def test_the_page_holds_pictures_and_answers(
    recipe: Recipe,
    seeing: dict[str, Artifact[Any]],
    tmp_path: Path,
) -> None:
    out = tmp_path / "report"
    out.mkdir()
    write_report(recipe, seeing, out)
    page = (out / "pictures.html").read_text(encoding="utf-8")
    urls = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    sizes = [Image.open(io.BytesIO(base64.b64decode(url))).size for url in urls]
    assert sizes == [(288, 480), (480, 280)]  # no larger than they are shown
    assert "48 213 km" in page and "油温灯" in page
    assert "&lt;b&gt;亮的是|哪个灯？&lt;/b&gt;" in page and "<b>亮的是" not in page
    assert "1 of 2" in page  # served word for word
    assert "/api/generate shows the picture before the text" in page
    assert "http" not in page.replace("http-equiv", "")  # nothing is fetched
    assert sorted(p.name for p in (out / "pictures").iterdir()) == ["1.png", "2.png"]


def test_report_md_has_a_table_with_pictures(recipe: Recipe, seeing: dict[str, Artifact[Any]]) -> None:
    text = report_text(summarize(recipe, seeing), {}, ["pictures/1.png", "pictures/2.png"])
    rows = [line for line in text.splitlines() if "pictures/" in line]
    assert rows[0] == "| ![0.png](pictures/1.png) | What is the mileage? | A car. | 48 213 km | 48 213 km |"
    assert rows[1] == "| ![1.png](pictures/2.png) | <b>亮的是\\|哪个灯？</b> | 车。 | 机油灯 | 油温灯 |"
    assert "**What is the mileage? (0.png)**" in text


def test_the_last_screen_names_the_file_of_a_picture(recipe: Recipe, seeing: dict[str, Artifact[Any]]) -> None:
    from rich.console import Console

    target = io.StringIO()
    Console(file=target, width=120).print(last_screen(recipe, seeing))
    assert "What is the mileage? (0.png)" in target.getvalue()


def test_a_model_of_texts_has_no_such_page(
    recipe: Recipe,
    artifacts: dict[str, Artifact[Any]],
    tmp_path: Path,
) -> None:
    write_report(recipe, artifacts, tmp_path)
    assert not (tmp_path / "pictures.html").exists()
    assert "What it sees" not in (tmp_path / "report.md").read_text(encoding="utf-8")
    assert replace(summarize(recipe, artifacts), pictured=[]) == summarize(recipe, artifacts)
