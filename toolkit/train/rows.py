"""From rows of the dataset to tokens: the one place where a training text is rendered."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from jinja2.exceptions import TemplateError

from toolkit.errors import DataError
from toolkit.models.chat_template import NOTHING_TOLD, Messages
from toolkit.models.ends import turn_end
from toolkit.models.thinking import Written, as_sent_back, marks_of, of_message, written

NOT_LEARNED = -100
"""The label that torch's cross entropy leaves out."""
LOSS_ROWS = 32
"""The validation loss is measured over so many rows at most: it is to cost seconds."""


def encode(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a rendered text, which brings its special tokens itself."""
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


class TokenizedRow(NamedTuple):
    """A rendered row."""

    input_ids: list[int]
    prompt_length: int
    """Tokens of the prompt, with the opening of the assistant's turn; the rest is the answer and its end token."""

    def example(self) -> dict[str, list[int]]:
        """As a trainer takes it: `input_ids`, and `labels` that are -100 (not learned) before the answer."""
        labels = [NOT_LEARNED] * self.prompt_length + self.input_ids[self.prompt_length :]
        return {"input_ids": self.input_ids, "labels": labels}


def rendered(tokenizer: Any, row: dict[str, Any], fields: Mapping[str, Any] = NOTHING_TOLD) -> tuple[str, Written]:
    """A row's prompt, as a server renders it, and the answer to learn after it.

    Args:
        fields: what the chat template is told; see `Train.chat_template_kwargs`.

    Raises:
        DataError: the template refuses the row, or what is learnt could not follow the prompt; with file and line.
    """

    def render(messages: Messages, opens_answer: bool) -> str | None:
        try:
            return str(
                tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=opens_answer, **fields)
            )
        except (TemplateError, ValueError, TypeError):
            return None

    marks = marks_of(str(tokenizer.get_chat_template()), fields)
    turns = as_sent_back(row["prompt"], marks)
    try:
        answer = written(render, marks, turns, row["completion"][0])
    except DataError as error:
        place = row.get("source") or {}
        where = f"{place['file']}:{place['line']}: " if "file" in place and "line" in place else ""
        raise DataError(f"{where}{error.message}", error.hint) from error
    return str(render(turns, True)), answer


def tokenize(tokenizer: Any, row: dict[str, Any], fields: Mapping[str, Any] = NOTHING_TOLD) -> TokenizedRow:
    """Render a row with the base's own chat template (see `rendered`), and close the answer where the template does not: a model
    that is never shown an end never ends.
    """
    prompt, answer = rendered(tokenizer, row, fields)
    ids, whole = encode(tokenizer, prompt), encode(tokenizer, prompt + answer.text)
    if (
        whole[: len(ids)] != ids
    ):  # a token over the border, which a server's prompt never has: its tokens end where it ends
        whole, joined = ids + encode(tokenizer, answer.text), whole
        if tokenizer.decode(whole) != tokenizer.decode(joined):  # some tokenizers put a space before every text
            raise DataError("prompt and answer cannot be cut into tokens apart", "Use a base with another tokenizer.")
    end = turn_end(tokenizer)
    if end is not None and not end.written:
        whole = [*whole, end.token]
    return TokenizedRow(whole, len(ids))


class Thoughts(NamedTuple):
    """What became of the thoughts in rows, and of answers without one."""

    rows: int
    trained: int
    """Answers with a thought."""
    put_together: int
    """Answers that the template could not write after its own prompt; see `toolkit.models.thinking.written`."""
    earlier: int
    """Rows with thoughts in earlier turns, which no app sends back."""
    example: str
    """What is learnt before the content of the first answer without a thought; empty: nothing."""
    known: bool
    """The template knows thoughts."""


def thoughts_in(tokenizer: Any, rows: list[dict[str, Any]], fields: Mapping[str, Any] = NOTHING_TOLD) -> Thoughts:
    """Count what the chat template made of the rows."""
    marks = marks_of(str(tokenizer.get_chat_template()), fields)
    trained = together = earlier = 0
    before = None
    for row in rows:
        parts = of_message(row["completion"][0])
        answer = rendered(tokenizer, row, fields)[1]
        trained += bool(parts.thought)
        together += not answer.by_template
        turns = [turn for turn in row["prompt"] if turn["role"] == "assistant"]
        earlier += marks is not None and any(of_message(turn).thought for turn in turns)
        if before is None and not parts.thought:
            before = answer.text.partition(parts.content)[0]
    return Thoughts(len(rows), trained, together, earlier, before or "", marks is not None)


def told(found: Thoughts) -> list[str]:
    """The counts, in sentences; none where there is nothing to say."""
    lines = []
    if found.trained:
        where = "as the template writes them" if found.known else "inside the answer's text: the template knows none"
        lines.append(f"{found.trained} of {found.rows} answers hold a thought, trained {where}.")
    if (found.known or found.trained) and found.example.strip() and found.trained < found.rows:
        plain = found.rows - found.trained
        lines.append(f"{plain} answers hold none; {json.dumps(found.example)} is learnt before them.")
    if found.put_together:
        lines.append(
            f"{found.put_together} answers follow the prompt in words that the template itself does not write there."
        )
    if found.earlier:
        lines.append(
            f"{found.earlier} rows hold thoughts in earlier turns, which are left out: a server keeps them apart, and apps "
            "do not send them back."
        )
    return lines


def leave_out_long(
    tokenizer: Any, rows: list[dict[str, Any]], max_length: int, fields: Mapping[str, Any] = NOTHING_TOLD
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Part rows that fit from rows that would be cut: a cut answer has lost its end token, and teaches never to stop.

    Returns:
        (rows that fit, one entry per row that does not: file, line, tokens).

    Raises:
        DataError: more than half of the rows do not fit; names the longest with file and line.
    """
    lengths = [len(tokenize(tokenizer, row, fields).input_ids) for row in rows]
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


def answer_loss(
    model: Any, tokenizer: Any, rows: list[dict[str, Any]], fields: Mapping[str, Any] = NOTHING_TOLD
) -> float:
    """Mean negative log-likelihood in nats per answer token (the end token included), over the first `LOSS_ROWS` rows."""
    import torch  # here, so that rows can be looked at without it

    was_training = model.training
    model.eval()
    total, tokens = 0.0, 0
    with torch.no_grad():
        for row in rows[:LOSS_ROWS]:
            ids, prompt_length = tokenize(tokenizer, row, fields)
            batch = torch.tensor([ids], device=next(model.parameters()).device)
            logits = model(batch, use_cache=False).logits[0, prompt_length - 1 : -1].float()
            total += torch.nn.functional.cross_entropy(logits, batch[0, prompt_length:], reduction="sum").item()
            tokens += len(ids) - prompt_length
    model.train(was_training)
    return total / max(tokens, 1)
