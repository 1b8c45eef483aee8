"""`inspect` shows rows as they are trained, within 80 columns, and writes the same as a page that runs nothing."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from toolkit.data.inspect import Inspection, inspect
from toolkit.recipe.init import recipe_to_look
from toolkit.report.inspected import as_json, screen, write_page

BASE = "embedded:smollm2-135m-instruct"


def look(path: Path, *settings: str) -> Inspection:
    return inspect(recipe_to_look(str(path), BASE, settings))


def shown(found: Inspection) -> str:
    target = io.StringIO()
    Console(file=target, width=80, color_system=None, highlight=False).print(screen(found))
    return target.getvalue()


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    said = [f"{i + 1}." + " And more." * (300 if i == 7 else 0) for i in range(30)]
    made = [
        {
            "id": i,
            "messages": [
                {"role": "user", "content": f"What is {i} <b>plus</b> one?"},
                {"role": "assistant", "content": a},
            ],
        }
        for i, a in enumerate(said)
    ]
    made += [made[0], {"id": 31, "messages": [{"role": "narrator", "content": "x"}]}]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, made)))
    return tmp_path / "x.jsonl"


def test_rows_are_shown_as_they_are_trained(rows: Path) -> None:
    found = look(rows)
    assert (found.loaded.read, found.kept, len(found.rows)) == (32, 30, 5)
    assert sorted((d.line, d.reason) for d in found.dropped) == [
        (31, "exact duplicate"),
        (32, "unknown role 'narrator'"),
    ]
    context, answer = found.rows[0].pieces
    assert context[0].endswith("<|im_start|>user\nWhat is 0 <b>plus</b> one?<|im_end|>\n<|im_start|>assistant\n")
    assert (context[1], answer) == (False, ("1.<|im_end|>\n", True))
    assert found.lengths is not None
    assert found.lengths.where == "x.jsonl:8" and found.lengths.longest > 900 and found.lengths.too_long == 1
    assert sum(count for *_, count in found.lengths.bars) == 30
    assert found.near > 9 and set(found.resembling) == {"validation", "test"}


def test_the_screen_fits_and_says_it_all(rows: Path) -> None:
    text = shown(look(rows))
    assert max(map(len, text.splitlines())) <= 80
    for part in ("messages, since messages holds lists of turns", "not used  id", "1 exact duplicate, first at x.jsonl:31",
                 "▐1.<|im_end|>▌", "1 rows at train.max_length = 512", "HTML left over"):  # fmt: skip
        assert part in text, part


def test_the_page_escapes_what_rows_hold(rows: Path, tmp_path: Path) -> None:
    page = write_page(look(rows), tmp_path / "rows.html").read_text(encoding="utf-8")
    assert "&lt;b&gt;plus&lt;/b&gt;" in page and "<b>plus</b>" not in page
    assert "<mark>1.&lt;|im_end|&gt;" in page
    assert "default-src &#39;none&#39;" in page or "default-src 'none'" in page


def test_for_machines(rows: Path) -> None:
    found = as_json(look(rows, "train.max_length=64"))
    assert json.loads(json.dumps(found)) and found["lengths"]["max_length"] == 64
    assert found["files"]["x.jsonl"]["format"] == "messages" and found["dropped"]["exact duplicate"] == 1


def test_rows_of_other_methods_are_looked_at_too(tmp_path: Path) -> None:
    pairs = [{"prompt": "a", "chosen": "b", "rejected": "c"}, {"prompt": "a", "chosen": "b", "rejected": "b"}]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    text = shown(look(tmp_path / "x.jsonl"))
    assert (
        "from these learn dpo, orpo, simpo, reward" in text
        and "1 chosen and rejected are equal, first at x.jsonl:2" in text
    )


def test_looking_at_rows_imports_no_torch(tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.jsonl"
    row = {"prompt": "Is the sea blue?", "chosen": "Yes, it is.", "rejected": "No."}
    pairs.write_text("".join(json.dumps({**row, "prompt": f"{row['prompt']} {n}"}) + "\n" for n in range(30)))
    program = (
        "import sys; from toolkit.cli import main\n"
        f"sys.argv = ['tune2ollama', 'inspect', {str(pairs)!r}]\n"
        "try: main()\n"
        "finally: print('torch:', 'torch' in sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False).stdout
    assert "preference" in shown and shown.splitlines()[-1] == "torch: False"
