"""The tuned model's settings as its folder would hold them, and where its answers end: made once, and kept by content.

transformers has to be asked (tokenizer, chat template, generation config), and takes seconds to be imported.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.errors import DataError
from toolkit.models.bases import CONFIG_FILES, PROCESSOR_FILES, TOKENIZER_FILES, read_chat_template
from toolkit.run.artifacts import file_sha256, text_sha256, write_json
from toolkit.run.places import cache_home

if TYPE_CHECKING:
    from toolkit.export.merge import Tuned

_PROGRAMS = ("export/settings.py", "export/merge.py", "models/ends.py", "models/chat_template.py")
_ENDS = "ends.json"


@dataclass(frozen=True)
class Settings:
    """What a tuned model's folder holds besides its weights."""

    folder: Path
    """config.json (as of float32), generation config, processor, tokenizer and chat template."""
    end: int | None
    """The tokenizer's end token."""
    ends: list[int]
    """Every token at which an answer ends; the one that closes a turn first."""
    told: str
    """A sentence about a turn's end that the base does not list; empty where it does."""
    template: str
    """The chat template, writing as in training whatever a server tells it; see `toolkit.models.chat_template.as_trained`."""


def settings_of(tuned: Tuned, adapter: Path, fields: Mapping[str, Any]) -> Settings:
    """The settings of a tuned model, from the cache or made now.

    Args:
        tuned: its base, and what the adapter makes of head and vocabulary.
        adapter: holds the tokenizer that was trained with, where it is not the base's.
        fields: what the chat template was told in training.

    Raises:
        DataError: there is no chat template.
    """
    folder = cache_home() / "settings" / _key(tuned, adapter, fields)[:40]
    if not (folder / _ENDS).is_file():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".made-") as scratch:
            made = Path(scratch) / "settings"
            made.mkdir()
            _make(tuned, adapter, fields, made)
            if not folder.exists():  # who was faster has written the same
                made.replace(folder)
    return Settings(folder, **json.loads((folder / _ENDS).read_text(encoding="utf-8")))


def _make(tuned: Tuned, adapter: Path, fields: Mapping[str, Any], out: Path) -> None:
    from toolkit.export.merge import copy_settings
    from toolkit.models.chat_template import as_trained
    from toolkit.models.ends import ends_of
    from toolkit.models.tokenizer import load_tokenizer

    told = copy_settings(tuned, adapter, "float32", out)
    tokenizer = load_tokenizer(out)
    ends = ends_of(out, tokenizer)
    turn = ends.turn.token if ends.turn else None
    template = read_chat_template(out)
    if template is None:
        raise DataError(f"{tuned.folder} has no chat template", "Put the base's chat_template.jinja into its folder.")
    first = sorted(ends.tokens, key=lambda token: token != turn)
    found = Settings(out, tokenizer.eos_token_id, first, told, as_trained(template, fields))
    write_json(out / _ENDS, {key: value for key, value in asdict(found).items() if key != "folder"})


def _key(tuned: Tuned, adapter: Path, fields: Mapping[str, Any]) -> str:
    tokenizer = adapter if (adapter / "tokenizer_config.json").is_file() else tuned.folder
    files = [tuned.folder / name for name in (*CONFIG_FILES, *PROCESSOR_FILES)]
    files += [tokenizer / name for name in TOKENIZER_FILES]
    package = Path(__file__).parents[1]
    asked = [
        [(path.name, file_sha256(path)) for path in files if path.is_file()],
        [tuned.tied_head, tuned.has(tuned.head), tuned.vocabulary, dict(fields)],
        [version(name) for name in ("transformers", "tokenizers")],
        [file_sha256(package / name) for name in _PROGRAMS],
    ]
    return text_sha256(json.dumps(asked, sort_keys=True))
