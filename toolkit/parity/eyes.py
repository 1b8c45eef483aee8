"""A projector (mmproj) on the language models that it is judged with, and the golden prompts as it reads them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from toolkit.errors import DataError
from toolkit.models.picture_block import block_of
from toolkit.models.pictures import PictureRules
from toolkit.parity.candidate import Candidate
from toolkit.parity.encodings import Encodings
from toolkit.parity.seeing import SeenPrompt, Sight


@dataclass
class Eyes:
    """A projector's file, and what it makes of the golden pictures once it was asked."""

    path: Path
    rules: PictureRules
    block: str
    """What the training template writes for one picture."""
    folder: Path
    """Holds the pictures that prompts name."""
    encodings: Encodings = field(default_factory=Encodings)
    """Made once, for all language files."""

    @classmethod
    def of(
        cls, path: Path, rules: PictureRules | None, tokenizer: Any, folder: Path, encodings: Encodings | None = None
    ) -> Eyes:
        """For a tuned model that sees.

        Args:
            rules: how it was shown pictures in training.
            tokenizer: as it was trained with.
            folder: of the goldens.
            encodings: get what it makes of pictures.

        Raises:
            DataError: it was trained on texts alone, or its template has no place for a picture.
        """
        if rules is None:
            raise DataError(f"{path}: the model was not trained on pictures", "Judge its language model alone.")
        block = block_of(tokenizer)
        if block is None:
            raise DataError("the chat template writes nothing for a picture", "Choose a base whose template does.")
        return cls(path, rules, block, folder, Encodings() if encodings is None else encodings)

    def sight(self, candidate: Candidate) -> Sight:
        """On a language model, with the server's limits.

        Raises:
            DataError: the two files do not fit each other.
        """
        return candidate.sight(self.path, self.rules.min_tokens, self.rules.max_tokens, self.encodings)

    def blind_with(self, candidate: Candidate) -> str:
        """Why the two files do not go together; empty where they do."""
        try:
            self.sight(candidate).close()
        except DataError as error:
            return error.message
        return ""

    def read(self, sight: Sight, row: dict[str, Any]) -> SeenPrompt:
        """A golden prompt with its pictures."""
        files = [(self.folder / picture["image"]).read_bytes() for picture in row["pictures"]]
        return sight.read(row["prompt_text"], self.block, files)
