"""Pictures of a golden prompt, as a server is sent them and as llama.cpp reads them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.ollama.asked import encoded, read_picture


@dataclass(frozen=True)
class Pictures:
    """The pictures of one prompt, in their order."""

    files: tuple[Path, ...] = ()
    block: str = ""
    """What the training template writes for one; see `toolkit.models.picture_block.picture_block`."""

    def __bool__(self) -> bool:
        return bool(self.files)

    def bytes(self) -> list[bytes]:
        """The files."""
        return [read_picture(file) for file in self.files]

    def marked(self, text: str) -> str:
        """A rendered prompt as `/api/generate` takes it with `raw`: a mark of Ollama's in the place of each block.

        llm/llama_server.go, Completion: the marks are numbered from 0.
        """
        if not self:
            return text
        first, *rest = text.split(self.block)
        return first + "".join(f"[img-{number}]{part}" for number, part in enumerate(rest))

    @property
    def sent(self) -> dict[str, Any]:
        """Beside a marked prompt, in a request."""
        return {"images": encoded(self.files)} if self else {}


NONE = Pictures()


def pictures_of(row: dict[str, Any], golden: Path, block: str) -> Pictures:
    """The pictures of a row of golden.jsonl.

    Args:
        golden: the folder that it lies in; paths are relative to it.
    """
    return Pictures(tuple(golden / picture["image"] for picture in row.get("pictures", ())), block)
