"""JSON that somebody else wrote: damage, and nesting that no reader bears, become words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from toolkit.errors import DataError


def parse_object(text: str | bytes) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ValueError: no JSON, nested too deeply to be read, or something other than an object.
    """
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply, as no such file is") from None
    if not isinstance(value, dict):
        raise ValueError("it holds no JSON object")
    return value


def read_object(path: Path, hint: str) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        FileNotFoundError: there is no such file.
        DataError: with `hint`; see `parse_object`.
    """
    try:
        return parse_object(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as JSON: {error}", hint) from error
