"""The tokenizer and the chat template that a GGUF file brings itself, in the form of a transformers tokenizer."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import llama_cpp

from toolkit.errors import DataError
from toolkit.models.chat_template import Messages
from toolkit.parity.candidate import Candidate

_CONTROL, _USER_DEFINED = 1 << 3, 1 << 4  # llama.h, llama_token_attr


class FileTokenizer:
    """What rows are written with where nothing but the file is known. Use as a context manager.

    Raises:
        DataError: the file cannot be read, or has no chat template.
    """

    def __init__(self, path: Path) -> None:
        self._file = Candidate(path, vocab_only=True)
        template = self._file.chat_template
        if template is None:
            raise DataError(f"{path} has no chat template", "Name an export of an instruct model, or its adapter.")
        self.chat_template = template
        self.bos_token_id = self._file.bos if self._file.bos >= 0 else None
        self.eos_token_id = self._file.eos if self._file.eos >= 0 else None
        self.added_tokens_decoder = {
            token: SimpleNamespace(content=self._text(token), special=bool(kind & _CONTROL))
            for token in range(self._file.vocabulary)
            if (kind := llama_cpp.llama_vocab_get_attr(self._file._vocab, token)) & (_CONTROL | _USER_DEFINED)
        }

    def __enter__(self) -> FileTokenizer:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.__exit__()

    def _text(self, token: int | None) -> str:
        return self._file.piece(token).decode("utf-8", errors="replace") if token is not None else ""

    def get_chat_template(self, _template: str | None = None, tools: Any = None) -> str:
        """The file's template."""
        return self.chat_template

    def apply_chat_template(
        self, messages: Messages, tokenize: bool = False, add_generation_prompt: bool = False,
        tools: list[dict[str, Any]] | None = None, chat_template: str | None = None, **fields: Any,
    ) -> str:  # fmt: skip
        """A conversation as transformers renders it. Raises as it does where the template refuses."""
        from transformers.utils.chat_template_utils import render_jinja_template

        rendered, _ = render_jinja_template(
            conversations=[messages], tools=tools, chat_template=chat_template or self.chat_template,
            add_generation_prompt=add_generation_prompt, bos_token=self._text(self.bos_token_id),
            eos_token=self._text(self.eos_token_id), **fields,
        )  # fmt: skip
        return str(rendered[0])

    def __call__(self, text: str, add_special_tokens: bool = True, verbose: bool = False) -> dict[str, list[int]]:
        """Token ids; special tokens that are spelled in the text are such."""
        return {"input_ids": self._file.tokenize(text, add_special=add_special_tokens)}

    def decode(self, ids: list[int], skip_special_tokens: bool = False, **_: Any) -> str:
        """The text of tokens."""
        return self._file.text(ids, special=not skip_special_tokens)

    def convert_ids_to_tokens(self, index: int) -> str:
        """A token's text in the vocabulary."""
        return self._file.token_text(index)
