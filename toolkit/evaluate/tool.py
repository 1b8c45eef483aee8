"""`evaluate` as a tool of its own: any adapter, GGUF file or Ollama model, on any rows."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from toolkit.errors import DataError, UsageError
from toolkit.evaluate.names import BASE, TUNED
from toolkit.recipe.schema import Recipe
from toolkit.run.artifacts import read_jsonl
from toolkit.run.processes import waiting

_NAME_ONE = "Name one: --adapter FOLDER, --gguf FILE or --ollama NAME; or a recipe."


@dataclass(frozen=True)
class Asked:
    """What the user wants measured."""

    adapter: Path | None = None
    gguf: Path | None = None
    ollama: str = ""
    base: str = ""
    """Of a GGUF file or an Ollama model: what it is compared with; of an adapter: what it sits on."""
    data: str = ""
    system: str = ""
    load_in_4bit: bool | None = None
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    rows: int = 16
    max_new_tokens: int = 96
    max_length: int = 2048
    forgetting: bool = True
    settings: tuple[str, ...] = ()
    """For reading the data, as `--set` takes them."""

    @property
    def name(self) -> str:
        """Of the subject."""
        return TUNED if self.adapter is not None else self.gguf.name if self.gguf is not None else self.ollama


@dataclass
class Subject:
    """What is measured, ready to read: its tokenizer, itself and its base."""

    tokenizer: Any
    readers: Iterator[tuple[str, Any]]
    system: str = ""
    """That a server brings itself."""
    client: Any = None


def check(asked: Asked) -> None:
    """Raises UsageError where nothing can be measured, or more than one thing is named."""
    named = [bool(asked.adapter), bool(asked.gguf), bool(asked.ollama)]
    if sum(named) != 1:
        told = "nothing to measure is named" if not any(named) else "more than one thing to measure is named"
        raise UsageError(told, _NAME_ONE)
    if asked.gguf is not None and not asked.gguf.is_file():
        raise UsageError(f"there is no file {asked.gguf}", "Name a GGUF file.")
    if not asked.data and not asked.forgetting:
        raise UsageError("there is nothing to measure on", "Name rows that were not trained on: --data FILE")


def measure(asked: Asked, out: Path | None = None) -> dict[str, Any]:
    """The figures of one subject, with its base beside it where that is known.

    Args:
        out: gets evaluation.json and answers.jsonl.

    Returns:
        As evaluation.json holds it.

    Raises:
        UsageError, DataError: rows or models that cannot be read; a base that is another.
        ExternalToolError: the Ollama that was named does not answer.
    """
    check(asked)
    os.environ.update(waiting(os.environ))  # before torch is imported
    from toolkit.evaluate.general_texts import read_general
    from toolkit.evaluate.held_out import HeldOut, of_rows
    from toolkit.evaluate.seen import Seen, look, look_at_served
    from toolkit.evaluate.stage import evaluation_of, figures_json, write

    rows = rows_of(asked) if asked.data else []
    with contextlib.ExitStack() as stack:
        subject = stack.enter_context(_subject(asked))
        fields = asked.chat_template_kwargs
        held_out = of_rows(rows, subject.tokenizer, asked.max_length, asked.rows, fields) if rows else HeldOut()
        if rows and not held_out.rows:
            raise DataError(
                f"{asked.data}: none of {len(rows)} rows fits into {asked.max_length} tokens", "Raise it: --max-length"
            )
        general = read_general(subject.tokenizer) if asked.forgetting else None
        seen: dict[str, Seen] = {}
        for name, reader in subject.readers:
            seen[name] = look(reader, held_out, general, asked.max_new_tokens, subject.tokenizer, {})
        if subject.client is not None and held_out.questions:
            served = look_at_served(
                subject.client, asked.ollama, held_out, subject.system, asked.max_new_tokens, subject.tokenizer
            )
            seen.setdefault(asked.ollama, Seen()).said_by(served)
    seen = dict(sorted(seen.items(), key=lambda one: one[0] != BASE))
    figures = figures_json(held_out, general, seen, {})
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        write(figures, held_out, seen, "", out, asked.name)
    return evaluation_of(figures, held_out, seen, "", asked.name)


def measure_tasks(asked: Asked, tasks: str, folder: Path | None, limit: int | None) -> dict[str, Any]:
    """lm-eval's own figures for a subject, without its base; see `toolkit.evaluate.lm_eval_bridge.run`."""
    check(replace(asked, forgetting=True))
    from toolkit.evaluate.lm_eval_bridge import require, run

    require()
    with _subject(replace(asked, base=asked.base if asked.adapter else "")) as subject:
        name, reader = next(subject.readers)
        return {"subject": name, **run(reader, subject.tokenizer, tasks, folder, limit)}


def rows_of(asked: Asked) -> list[dict[str, Any]]:
    """The rows of a file, whatever its format; those of a split that `prepare` wrote are taken as they are.

    Raises:
        UsageError, DataError: it cannot be read, or no row is left.
    """
    from toolkit.data.loading import load
    from toolkit.data.prepare import kept_rows
    from toolkit.recipe.init import recipe_to_look

    path = Path(asked.data)
    if path.suffix == ".jsonl" and path.is_file() and path.parent.name == "prepare":
        return _of_words(read_jsonl(path))
    recipe = recipe_to_look(asked.data, "embedded:smollm2-135m-instruct", asked.settings)
    if recipe.data is None:
        raise UsageError(f"{asked.data} has no data", "Name a file with rows.")
    system = asked.system or recipe.system
    data = recipe.data if system else recipe.data.model_copy(update={"system": "row"})
    found = kept_rows(load(data), data, system)
    if not found.examples:
        raise DataError(f"{asked.data}: no row is left", f"Look at it: tune2ollama inspect {asked.data}")
    return _of_words([example.record() for example in found.examples])


def _of_words(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    from toolkit.train.fits import shows_pictures
    from toolkit.train.rows import place_of

    showing = next((row for row in rows if shows_pictures(row)), None)
    if showing is not None:
        raise UsageError(
            f"{place_of(showing)}the row shows a picture, and this command reads words alone",
            "Run the recipe: its stage evaluate shows everybody the pictures. Or measure the words alone: --set "
            "data.columns.image=false",
        )
    return rows


@contextlib.contextmanager
def _subject(asked: Asked) -> Iterator[Subject]:
    if asked.adapter is not None:
        yield _of_adapter(asked)
        return
    if asked.gguf is not None:
        with _of_file(asked, asked.gguf, asked.gguf.name) as subject:
            yield subject
        return
    from toolkit.ollama.served_model import served_model

    log = Path("runs") / "ollama-server.log"
    log.parent.mkdir(exist_ok=True)
    with (
        served_model(asked.ollama, log, ()) as model,
        _of_file(asked, model.file, asked.ollama) as subject,
    ):
        subject.client, subject.system = model.client, asked.system or str(model.shown.get("system", ""))
        yield subject


def _of_adapter(asked: Asked) -> Subject:
    from toolkit.evaluate.readers import tuned_and_base
    from toolkit.models.ends import end_tokens
    from toolkit.models.tokenizer import load_tokenizer
    from toolkit.run import pipeline

    adapter = pipeline.run(_recipe_of(asked), upto="train")["train"]
    tokenizer = load_tokenizer(adapter.folder, adapter.facts.base.folder)
    return Subject(tokenizer, tuned_and_base(adapter, end_tokens(adapter, tokenizer).tokens))


def _recipe_of(asked: Asked) -> Recipe:
    from toolkit.recipe.adopted import recipe_for_adapter

    assert asked.adapter is not None  # noqa: S101
    told = f"{asked.adapter.resolve()} {asked.base} {asked.load_in_4bit} {dict(asked.chat_template_kwargs)}"
    slug = re.sub(r"[^A-Za-z0-9._-]+", "-", asked.adapter.resolve().name).strip("-._") or "model"
    name = f"evaluate-{slug[:40]}-{hashlib.sha256(told.encode()).hexdigest()[:8]}"
    return recipe_for_adapter(
        asked.adapter, name, asked.base, system=asked.system, load_in_4bit=asked.load_in_4bit,
        chat_template_kwargs=asked.chat_template_kwargs,
    )  # fmt: skip


@contextlib.contextmanager
def _of_file(asked: Asked, path: Path, name: str) -> Iterator[Subject]:
    from toolkit.evaluate.file_tokenizer import FileTokenizer
    from toolkit.parity.probe import probe

    probe(path)
    with FileTokenizer(path) as tokenizer:
        yield Subject(tokenizer, _file_and_base(asked.base, path, name, tokenizer))


def _file_and_base(base: str, path: Path, name: str, tokenizer: Any) -> Iterator[tuple[str, Any]]:
    from toolkit.evaluate.readers import FileReader, base_reader
    from toolkit.models.bases import resolve_base
    from toolkit.models.tokenizer import load_tokenizer

    if base:
        folder = Path(resolve_base(base).folder)
        _same_tokens(load_tokenizer(folder), tokenizer, base, path)
        yield BASE, base_reader(folder)
    yield name, FileReader(path)


def _same_tokens(of_base: Any, of_file: Any, base: str, path: Path) -> None:
    from toolkit.evaluate.general_texts import rows_of as general_rows
    from toolkit.parity.checks.tokens import encode

    for row in general_rows("paragraphs"):
        if encode(of_base, row["text"]) != encode(of_file, row["text"]):
            raise DataError(
                f"{base} and {path} read {row['text'][:40]!r} as other tokens, so their losses cannot be compared",
                "Name the base that the file was made of.",
            )
