"""The part of a recipe that says where rows are and which are kept."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from toolkit.recipe.section import Section, nearest


class Columns(Section):
    """Which columns of the user's file hold what; None: found by their names, else by what is in them."""

    prompt: str | None = None
    completion: str | None = None
    thinking: str | None = None
    """The thought before the answer, where a column holds it; a `<think>…</think>` in the answer itself is found without."""
    label: str | None = None
    """Whether the answer is a good one: true or false, or what `Reading.labels` says."""
    image: str | Literal[False] | None = None
    """The picture or pictures of a row; false: the rows are learnt without theirs."""

    @field_validator("*", mode="before")
    @classmethod
    def _by_position(cls, value: Any) -> Any:
        # Columns without a header are called 1, 2, …
        return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


FORMATS = Literal["auto", "columns", "alpaca", "messages", "sharegpt", "preference", "unpaired", "text"]


class Reading(Section):
    """How a file, or a folder of files, is read."""

    path: str = ""
    """A file, a folder of files (encodings may differ from file to file), or hub:OWNER/NAME@COMMIT."""
    format: FORMATS = "auto"
    """What the rows of a file are (see `toolkit.data.formats`); auto: told from each file's columns and first rows."""
    columns: Columns = Columns()
    encoding: str | None = None
    """Of the files that have no byte-order mark and are not UTF-8 (gb18030, big5, cp1252 …); None: told from their bytes."""
    header: bool | Annotated[int, Field(gt=0)] | None = None
    """Of tables: true: the first line; false: there is none, columns are called 1, 2, …; a number: that line; None: found."""
    sheet: str | None = None
    """Of a workbook; None: the one with the most rows, and those that have the same columns."""
    labels: dict[str, bool] = {}
    """Of answers that are judged: which words in the column of labels mean a good answer (gut: true, schlecht: false); rows with
    other words are dropped. Empty: true and false, 1 and 0 or -1, yes and no, good and bad, 好 and 坏."""

    @field_validator("labels", mode="before")
    @classmethod
    def _words(cls, value: Any) -> Any:
        # YAML reads stars and yes as a number and a boolean.
        return {str(key): said for key, said in value.items()} if isinstance(value, dict) else value

    @field_validator("encoding")
    @classmethod
    def _known_encoding(cls, value: str | None) -> str | None:
        try:
            if value is not None:
                "".encode(value)
        except LookupError:
            known = ["utf-8", "gb18030", "gbk", "big5", "utf-16-le", "utf-16-be", "cp1252", "euc_kr", "shift_jis"]
            raise ValueError(f"{value!r} is no encoding{nearest(str(value), known)}, e.g. {', '.join(known)}") from None
        return value


class Source(Reading):
    """One of several sources of rows."""

    name: str = ""
    """Written into each of its rows; empty: the path's last part."""
    weight: Annotated[float, Field(ge=0)] | None = None
    """Its share among the sources that have a weight: the largest mix with these shares is taken, no row twice."""
    count: Annotated[int, Field(gt=0)] | None = None
    """So many of its rows at most."""

    @model_validator(mode="after")
    def _possible(self) -> Source:
        if not self.path:
            raise ValueError("a source needs a path")
        if self.weight is not None and self.count is not None:
            raise ValueError(f"{self.path}: give a weight or a count, not both")
        return self

    @property
    def called(self) -> str:
        """Its name, or what stands for it."""
        return self.name or re.split(r"[/\\]", self.path.rstrip("/\\"))[-1].partition("@")[0].partition(".")[0]


FOUND = Literal["boilerplate", "cut", "html", "personal"]
"""What is looked for in rows, and dropped on request only; see `toolkit.data.findings`."""


class Data(Reading):
    """Where the rows are and which are kept."""

    sources: list[Source] = []
    """Instead of `path`: several, mixed by weight or by count."""
    learn: Literal["all", "last"] = "all"
    """Of a conversation: every answer, or the last."""
    system: Literal["recipe", "row", "both"] = "recipe"
    """recipe: the recipe's system text in every row; row: the row's own, and the recipe's where it has none; both: the
    recipe's, then the row's own."""
    tags: bool = False
    """An answer in GSM8K's form, `steps #### result`, is written as <reasoning>steps</reasoning><answer>result</answer>, the form
    that rewards look for; rows without `####` are dropped."""
    remove: list[FOUND] = []
    """Drop the rows in which these are found; without, they are only reported."""
    language: str = "en"
    """Two-letter code, for the model's metadata; rows that are plainly Chinese, or plainly not, overrule it."""
    max_characters: Annotated[int, Field(gt=0)] | None = None
    """Pairs (prompt + completion) with more characters are dropped."""
    max_rows: Annotated[int, Field(gt=0)] | None = None
    """Keep at most so many rows of the training split, chosen by their content, not their place."""
    validation: Annotated[float, Field(ge=0, lt=1)] = 0.05
    test: Annotated[float, Field(ge=0, lt=1)] = 0.05
    max_dropped: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Stop when a larger share of the rows than this is dropped."""

    @model_validator(mode="after")
    def _one_place(self) -> Data:
        if bool(self.path) == bool(self.sources):
            raise ValueError("give a path, or several sources, not both" if self.path else "path is missing")
        told_here = [k for k, f in Reading.model_fields.items() if k != "path" and getattr(self, k) != f.default]
        if self.sources and told_here:
            raise ValueError(f"{', '.join(told_here)}: say it of each of the sources")
        names = [source.called for source in self.sources]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"sources: two are called {twice!r}: give them names")
        weights = [source.weight for source in self.sources if source.weight is not None]
        if weights and sum(weights) == 0:
            raise ValueError("sources: the weights sum to zero, so no row would be taken: give one a weight above 0")
        return self

    @property
    def readings(self) -> list[Source]:
        """The sources; where there is a path alone, it is the only one, without a name."""
        if self.sources:
            return self.sources
        return [Source(**{key: getattr(self, key) for key in Reading.model_fields})]

    @property
    def place(self) -> str:
        """For messages."""
        return self.path or ", ".join(source.path for source in self.sources)
