"""Pictures on their way into a trainer's batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from toolkit.models.pictures import PictureRules
from toolkit.models.seen import Picture, given
from toolkit.train.rows import NOT_LEARNED, TokenizedRow

PICTURES = "pictures"
"""Column of the examples: the files that a row shows, in their order."""


def example_of(row: TokenizedRow) -> dict[str, Any]:
    """A row as `Showing` takes it."""
    return {**row.example(), PICTURES: [str(picture.path) for picture in row.pictures]}


class Showing:
    """TRL's collator of tokens, with the pixel values of the rows' pictures.

    TRL's own for pictures renders conversations and cuts what is too long; here a row is tokens already.

    Args:
        answers_alone: whether logits are asked for from the first token that is learnt on, with labels for these. A picture has a
            thousand tokens, and the logits of all are gigabytes; a loss that reads the head's weight itself does without them.
    """

    def __init__(self, tokenizer: Any, rules: PictureRules, answers_alone: bool) -> None:
        from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

        self._padded = DataCollatorForLanguageModeling(pad_token_id=tokenizer.pad_token_id)
        self._rules, self._answers_alone = rules, answers_alone

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """A batch as the model takes it."""
        pictures = [Picture(Path(path), self._rules) for one in examples for path in one.get(PICTURES, ())]
        tokens = [{key: value for key, value in one.items() if key != PICTURES} for one in examples]
        batch: dict[str, Any] = self._padded(tokens)
        batch |= given(batch["input_ids"], pictures)
        if self._answers_alone:
            first = int((batch["labels"] != NOT_LEARNED).nonzero()[:, 1].min())
            batch["logits_to_keep"] = batch["labels"].shape[1] - first + 1
            batch["labels"] = batch["labels"][:, first - 1 :]
        return batch
