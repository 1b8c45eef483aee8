"""From rows of the dataset to tokens: the one place where a training text is rendered."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from toolkit.errors import DataError
from toolkit.models.ends import turn_end

NOT_LEARNED = -100
"""The label that torch's cross entropy leaves out."""
LOSS_ROWS = 32
"""The validation loss is measured over so many rows at most: it is to cost seconds."""


class TokenizedRow(NamedTuple):
    """A rendered row."""

    input_ids: list[int]
    prompt_length: int
    """Tokens of the prompt, with the opening of the assistant's turn; the rest is the answer and its end token."""

    def example(self) -> dict[str, list[int]]:
        """As a trainer takes it: `input_ids`, and `labels` that are -100 (not learned) before the answer."""
        labels = [NOT_LEARNED] * self.prompt_length + self.input_ids[self.prompt_length :]
        return {"input_ids": self.input_ids, "labels": labels}


def tokenize(tokenizer: Any, row: dict[str, Any]) -> TokenizedRow:
    """Render a row with the base's own chat template, and close the answer where the template does not: a model that is never
    shown an end never ends.

    Raises:
        DataError: the template renders the prompt alone differently from the prompt before its answer.
    """
    # return_dict=False: transformers 5 otherwise gives a mapping.
    prompt = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=False)
    whole = tokenizer.apply_chat_template(row["prompt"] + row["completion"], return_dict=False)
    if whole[: len(prompt)] != prompt:
        raise DataError(
            "the chat template renders a prompt alone differently from the same prompt before its answer; "
            "the model would be trained on a context that it never sees",
            "Use a base whose template does not rewrite earlier turns.",
        )
    end = turn_end(tokenizer)
    if end is not None and not end.written:
        whole = [*whole, end.token]
    return TokenizedRow(whole, len(prompt))


def leave_out_long(
    tokenizer: Any, rows: list[dict[str, Any]], max_length: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Part rows that fit from rows that would be cut: a cut answer has lost its end token, and teaches never to stop.

    Returns:
        (rows that fit, one entry per row that does not: file, line, tokens).

    Raises:
        DataError: more than half of the rows do not fit; names the longest with file and line.
    """
    lengths = [len(tokenize(tokenizer, row).input_ids) for row in rows]
    fitting = [row for row, length in zip(rows, lengths) if length <= max_length]
    long = [{**row["source"], "tokens": length} for row, length in zip(rows, lengths) if length > max_length]
    long.sort(key=lambda entry: -entry["tokens"])
    if len(long) > len(rows) / 2:
        shown = "\n".join(f"  {entry['file']}:{entry['line']}: {entry['tokens']} tokens" for entry in long[:5])
        raise DataError(
            f"{len(long)} of {len(rows)} rows have more than train.max_length = {max_length} tokens; the longest:\n{shown}",
            f"Raise train.max_length to {long[0]['tokens']}, or lower data.max_characters.",
        )
    return fitting, long


@torch.no_grad()
def answer_loss(model: Any, tokenizer: Any, rows: list[dict[str, Any]]) -> float:
    """Mean negative log-likelihood in nats per answer token (the end token included), over the first `LOSS_ROWS` rows."""
    was_training = model.training
    model.eval()
    total, tokens = 0.0, 0
    for row in rows[:LOSS_ROWS]:
        ids, prompt_length = tokenize(tokenizer, row)
        batch = torch.tensor([ids], device=next(model.parameters()).device)
        logits = model(batch, use_cache=False).logits[0, prompt_length - 1 : -1].float()
        total += torch.nn.functional.cross_entropy(logits, batch[0, prompt_length:], reduction="sum").item()
        tokens += len(ids) - prompt_length
    model.train(was_training)
    return total / max(tokens, 1)
