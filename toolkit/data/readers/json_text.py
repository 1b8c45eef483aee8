"""JSON in every layout that rows are kept in: a list, an object a line, objects one after the other, a list inside an object."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from toolkit.data.readers.header import by_position
from toolkit.data.readers.table import Dropped, Records, Row
from toolkit.errors import DataError

NOT_AN_OBJECT = "not a JSON object"
_SPACE = re.compile(r"[\s,]*")
_DEEPEST = 6


def json_rows(text: str, name: str, notes: list[str]) -> Records:
    """The rows of a JSON or JSON Lines file, whatever its name says.

    Args:
        notes: gets a line about lists that were found beside the one that is read.

    Raises:
        DataError: what is no JSON, with its line.
    """
    if text.lstrip().startswith("["):
        first = text.lstrip().partition("\n")[0].strip()
        if not (_parses(first) and text.strip() != first):  # else: a list a line
            yield from _listed(text, name, text.index("["))
            return
    elif not _parses(text.lstrip().partition("\n")[0].strip().rstrip(",")):
        yield from _after_each_other(text, name, notes)
        return
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if len(lines) == 1:
        yield from _inside(json.loads(lines[0][1].strip().rstrip(",")), text, name, lines[0][0], notes)
        return
    for number, line in lines:
        try:
            yield _row(json.loads(line.strip().rstrip(",")), name, number)
        except (ValueError, RecursionError):
            yield Dropped(name, number, NOT_AN_OBJECT, line)


def _parses(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict | list)
    except (ValueError, RecursionError):
        return False


def _row(value: Any, name: str, line: int) -> Row | Dropped:
    """A value of a list: an object, a text, a list of turns, or cells without names."""
    if isinstance(value, str):
        return Row(name, line, {"text": value})
    if isinstance(value, dict) and set(value) == {"row", "row_idx", "truncated_cells"}:  # as the hub's viewer answers
        value = value["row"]
    if isinstance(value, dict):
        return Row(name, line, value)
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        return Row(name, line, {"messages": value})
    if isinstance(value, list) and len(value) > 1 and all(isinstance(item, str) for item in value):
        return Row(name, line, dict(zip(by_position(len(value)), value)))
    return Dropped(name, line, NOT_AN_OBJECT, json.dumps(value, ensure_ascii=False))


def _values(text: str, name: str, position: int, within: str) -> Iterator[tuple[int, Any]]:
    """Values and the lines where they start, from `position` to the closing mark, or to the end."""
    decoder = json.JSONDecoder()
    counted, line = 0, 1
    while True:
        position = _SPACE.match(text, position).end()  # type: ignore[union-attr]
        line, counted = line + text.count("\n", counted, position), position
        if (within and text[position : position + 1] == within) or (not within and position == len(text)):
            return
        try:
            value, position = decoder.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            at = getattr(error, "pos", position)
            message = getattr(error, "msg", "nested too deep")
            raise DataError(
                f"{name}:{line + text.count(chr(10), counted, at)}: not JSON: {message}",
                "Mend it, or save one object a line.",
            ) from error
        yield line, value


def _listed(text: str, name: str, start: int) -> Records:
    on_one_line = "\n" not in text[start:].strip()
    for number, (line, value) in enumerate(_values(text, name, start + 1, "]"), 1):
        yield _row(value, name, number if on_one_line else line)


def _after_each_other(text: str, name: str, notes: list[str]) -> Records:
    values = _values(text, name, 0, "")
    first = next(values, None)
    second = next(values, None)
    if first is not None and second is None:
        yield from _inside(first[1], text, name, first[0], notes)
        return
    for line, value in filter(None, (first, second)):
        yield _row(value, name, line)
    for line, value in values:
        yield _row(value, name, line)


def _inside(value: Any, text: str, name: str, line: int, notes: list[str]) -> Records:
    """The rows of a file that holds one object: the longest list of objects in it, columns, or the object itself."""
    if not isinstance(value, dict):
        yield from _listed(text, name, text.index("["))
        return
    if any(isinstance(inner, list) and inner and _are_turns(inner) for inner in value.values()):
        yield _row(value, name, line)  # a file of one conversation
        return
    lists = _lists_in(value, ())
    if not lists:
        yield from _by_key(value, name, line)
        return
    path, rows = max(lists, key=lambda found: len(found[1]))
    keys = _keys(rows)
    alike = [found for found in lists if found[0][:-1] == path[:-1] and _keys(found[1]) == keys]
    notes.append(f"{name}: its rows are in {_told(alike)}")
    if others := [found for found in lists if found not in alike]:
        notes.append(f"{name}: also holds {_told(others)}, which is not read")
    for found in alike:
        where = _place(text, found[0][-1], found[1])
        if where is None:
            yield from (_row(row, name, number) for number, row in enumerate(found[1], 1))
        else:
            yield from _listed(text, name, where)


def _are_turns(values: list[Any]) -> bool:
    return all(isinstance(value, dict) and ("role" in value or "from" in value) for value in values)


def _told(lists: list[tuple[tuple[str, ...], list[Any]]]) -> str:
    return " and ".join(f"{'.'.join(path)} ({len(rows):,})" for path, rows in lists)


def _keys(rows: list[Any]) -> set[str]:
    return set(rows[0]) if isinstance(rows[0], dict) else {str(type(rows[0]))}


def _lists_in(value: dict[str, Any], path: tuple[str, ...]) -> list[tuple[tuple[str, ...], list[Any]]]:
    """Lists of rows, with where they are. A list of turns is no list of rows: it is one row's."""
    found: list[tuple[tuple[str, ...], list[Any]]] = []
    for key, inner in value.items():
        if isinstance(inner, dict) and len(path) < _DEEPEST:
            found += _lists_in(inner, (*path, key))
        elif isinstance(inner, list) and inner and (_are_rows(inner) or _are_conversations(inner)):
            found.append(((*path, key), inner))
    return found


def _are_rows(held: list[Any]) -> bool:
    if not all(isinstance(item, dict) for item in held):
        return False
    return not any({"role", "from"} & set(item) or item.get("type") == "function" for item in held)


def _are_conversations(held: list[Any]) -> bool:
    lists = [item for item in held if isinstance(item, list) and item]
    return len(lists) == len(held) and all(isinstance(turn, dict) for turns in lists for turn in turns)


def _place(text: str, key: str, rows: list[Any]) -> int | None:
    """Where a list begins in the text; None: it cannot be told."""
    for opening in re.finditer(re.escape(json.dumps(key, ensure_ascii=False)) + r"\s*:\s*\[", text):
        try:
            if json.JSONDecoder().raw_decode(text, opening.end() - 1)[0] == rows:
                return opening.end() - 1
        except ValueError:
            continue
    return None


def _by_key(value: dict[str, Any], name: str, line: int) -> Records:
    """An object of columns (lists, or objects by row), of rows by key, of `columns` and `data`; or one row."""
    names, data = value.get("columns"), value.get("data")
    if isinstance(names, list) and isinstance(data, list) and all(isinstance(row, list) for row in data):
        for number, row in enumerate(data, 1):
            yield Row(name, number, dict(zip(map(str, names), row)))
        return
    inner = list(value.values())
    if len(inner) == 1 and isinstance(inner[0], dict):
        yield from _by_key(inner[0], name, line)
        return
    if inner and all(isinstance(column, list) for column in inner):
        lengths = {len(column) for column in inner}
        if (
            len(inner) > 1
            and len(lengths) == 1
            and not any(isinstance(cell, dict) for column in inner for cell in column)
        ):
            for number, cells in enumerate(zip(*inner), 1):
                yield Row(name, number, dict(zip(value, cells)))
            return
    if len(inner) > 1 and all(isinstance(column, dict) for column in inner):
        if set(inner[0]) == set(inner[1]) and all(str(key).isdigit() for key in inner[0]):  # pandas: columns by row
            for number, key in enumerate(inner[0], 1):
                yield Row(name, number, {column: cells.get(key) for column, cells in value.items()})
        else:
            yield from (_row(row, name, number) for number, row in enumerate(inner, 1))
        return
    tables = {key: held for key, held in value.items() if isinstance(held, dict)}
    found = [list(_by_key(held, name, line)) for held in tables.values()]
    rows = max(found, key=len, default=[])
    if len(rows) > 1:
        yield from rows
    else:
        yield Row(name, line, value)
