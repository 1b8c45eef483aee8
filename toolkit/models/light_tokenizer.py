"""A base's tokenizer without the libraries that train: half a second instead of ten, for looking at rows.

It has of transformers' tokenizers what `toolkit.train.rows` asks for; the template is rendered by transformers' own function.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from toolkit.errors import DataError
from toolkit.models.bases import read_chat_template
from toolkit.models.chat_template import Messages


class LightTokenizer:
    """tokenizer.json and the chat template of a base's folder.

    Args:
        template: taken instead of the base's own.
    """

    def __init__(self, folder: Path, template: str | None = None) -> None:
        """Raises DataError: the folder has no tokenizer.json, or no chat template."""
        from tokenizers import Tokenizer

        file = folder / "tokenizer.json"
        template = template if template is not None else read_chat_template(folder)
        if not file.is_file():
            raise DataError(f"{folder} has no tokenizer.json", "Look at the rows with another base: --base …")
        if template is None:
            raise DataError(
                "the base's tokenizer has no chat template, so rows cannot be written as it was taught to read them",
                "Choose an instruct base: --base …",
            )
        self._tokenizer = Tokenizer.from_file(str(file))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.chat_template = template
        config = folder / "tokenizer_config.json"
        told = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
        self._marks = {name: _text(told.get(name)) for name in ("bos_token", "eos_token", "pad_token", "unk_token")}
        self.eos_token_id: int | None = self._tokenizer.token_to_id(self._marks["eos_token"])
        self.added_tokens_decoder = {
            index: SimpleNamespace(content=token.content)
            for index, token in self._tokenizer.get_added_tokens_decoder().items()
        }

    def get_chat_template(self, _template: str | None = None, tools: Any = None) -> str:
        """The base's template."""
        return self.chat_template

    def apply_chat_template(
        self, messages: Messages, tokenize: bool = False, add_generation_prompt: bool = False,
        tools: list[dict[str, Any]] | None = None, chat_template: str | None = None, **fields: Any,
    ) -> str:  # fmt: skip
        """A conversation as transformers renders it. Raises as it does where the template refuses."""
        from transformers.utils.chat_template_utils import render_jinja_template

        rendered, _ = render_jinja_template(
            conversations=[messages], tools=tools, chat_template=chat_template or self.chat_template,
            add_generation_prompt=add_generation_prompt, **self._marks, **fields,
        )  # fmt: skip
        return str(rendered[0])

    def __call__(self, text: str, add_special_tokens: bool = False, verbose: bool = False) -> dict[str, list[int]]:
        """Token ids of a text that brings its special tokens itself."""
        return {"input_ids": self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids}

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text; other threads may run meanwhile."""
        return [len(found.ids) for found in self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of tokens, special ones too."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False))

    def convert_ids_to_tokens(self, index: int) -> str:
        """A token's text in the vocabulary."""
        return str(self._tokenizer.id_to_token(index))


def _text(token: Any) -> str:
    return str(token.get("content", "")) if isinstance(token, dict) else str(token or "")
