"""From rows of the dataset to tokens: the one place where a training text is rendered."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from typing import Any, NamedTuple

from toolkit.errors import DataError
from toolkit.models.chat_template import NOTHING_TOLD, REFUSALS, Messages
from toolkit.models.ends import turn_end
from toolkit.models.seen import SHOWN, Picture, expanded, given
from toolkit.models.thinking import Written, as_sent_back, marks_of, written
from toolkit.models.tools import as_sent, require_tools, wants

NOT_LEARNED = -100
"""The label that torch's cross entropy leaves out."""
LOSS_ROWS = 32
"""The validation loss is measured over so many rows at most, and that of each source too: it is to cost seconds."""
ALL_SOURCES = ""
"""Stands for all rows among the names of sources."""


def encode(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a rendered text, which brings its special tokens itself."""
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def template_of(tokenizer: Any) -> str:
    """The tokenizer's chat template.

    Raises:
        DataError: it has none.
    """
    try:
        return str(tokenizer.get_chat_template())
    except ValueError as error:
        raise DataError(
            "the base's tokenizer has no chat template",
            "Name one: --set train.chat_template=FILE, or choose an instruct base.",
        ) from error


class TokenizedRow(NamedTuple):
    """A rendered row, or a part of one."""

    input_ids: list[int]
    spans: tuple[tuple[int, int], ...]
    """(first, behind the last) of the tokens of each answer, its end token included: they are learnt, the others are context."""
    source: str = ""
    """The name of the row's source, where there are several."""
    pictures: tuple[Picture, ...] = ()
    """That the row shows, in their order; `input_ids` holds their tokens."""

    @classmethod
    def one_answer(cls, input_ids: list[int], begins: int) -> TokenizedRow:
        """A prompt of `begins` tokens and all else the answer."""
        return cls(input_ids, ((begins, len(input_ids)),))

    @property
    def first(self) -> int:
        """Tokens before the first that is learnt."""
        return self.spans[0][0]

    @property
    def learnt(self) -> int:
        """How many tokens are learnt."""
        return sum(end - begin for begin, end in self.spans)

    @property
    def labels(self) -> list[int]:
        """The tokens to learn, each at its place, and -100 (not learnt) where there is none."""
        labels = [NOT_LEARNED] * len(self.input_ids)
        for begin, end in self.spans:
            labels[begin:end] = self.input_ids[begin:end]
        return labels

    def example(self) -> dict[str, Any]:
        """As a trainer takes it."""
        return {"input_ids": self.input_ids, "labels": self.labels}

    def up_to(self, max_length: int) -> TokenizedRow | None:
        """As many of the answers as end within so many tokens; None: not even the first does."""
        spans = tuple(span for span in self.spans if span[1] <= max_length)
        if not spans:
            return None
        end = spans[-1][1]
        return TokenizedRow(
            self.input_ids[:end], spans, self.source, tuple(picture for picture in self.pictures if picture.end <= end)
        )


class Answer(NamedTuple):
    """An assistant's turn that is learnt, rendered."""

    turn: dict[str, Any]
    context: Messages
    """All turns before it, as a server is sent them."""
    prompt: str
    """As a server renders them, with the opening of the answer."""
    written: Written


class _Template:
    """A tokenizer's chat template with what it is told, and its own words where it refuses."""

    def __init__(
        self, tokenizer: Any, template: str, fields: Mapping[str, Any], tools: list[dict[str, Any]] | None
    ) -> None:
        self._render, self.refusal = tokenizer.apply_chat_template, ""
        # Named, since a tokenizer with several would take another one where there are tools; a GGUF holds this one.
        self._told = {**fields, "tools": tools, "chat_template": template}

    def __call__(self, messages: Messages, opens_answer: bool) -> str | None:
        try:
            return str(self._render(messages, tokenize=False, add_generation_prompt=opens_answer, **self._told))
        except REFUSALS as error:
            self.refusal = str(error)
            return None


def answers_of(tokenizer: Any, row: dict[str, Any], fields: Mapping[str, Any] = NOTHING_TOLD) -> list[Answer]:
    """Every answer to learn of a row, after the prompt that a server would render for it.

    Args:
        fields: what the chat template is told; see `Train.chat_template_kwargs`.

    Raises:
        DataError: the template refuses the row, cannot write its tools, or what is learnt could not follow the prompt; with
            file and line.
    """
    template = template_of(tokenizer)
    completion = row["chosen"] if "chosen" in row else row["completion"]
    marks, render = marks_of(template, fields), _Template(tokenizer, template, fields, as_sent(row.get("tools")))
    answers = []
    try:
        require_tools(template, wants(row), fields)
        for place, turn in enumerate(completion):
            if turn["role"] == "assistant":
                context = as_sent_back([*row["prompt"], *completion[:place]], marks)
                answer = written(render, marks, context, turn)
                answers.append(Answer(turn, context, str(render(context, True)), answer))
    except DataError as error:
        told = f": {render.refusal}" if render.refusal and "refuses" in error.message else ""
        raise DataError(f"{place_of(row)}{error.message}{told}", error.hint) from error
    if not answers:
        raise DataError(f"{place_of(row)}there is no answer to learn", "A row ends with a turn of the assistant.")
    return answers


def place_of(row: dict[str, Any]) -> str:
    """Where a row is from, for the beginning of a message."""
    place = row.get("source") or {}
    return f"{place['file']}:{place['line']}: " if "file" in place and "line" in place else ""


def source_of(row: dict[str, Any]) -> str:
    """The name of a row's source; empty where there is only one."""
    return str(row.get("source", {}).get("name", ""))


def tokenize(tokenizer: Any, row: dict[str, Any], fields: Mapping[str, Any] = NOTHING_TOLD) -> list[TokenizedRow]:
    """Render a row with the base's own chat template; see `answers_of`.

    All answers of a row are learnt in one sequence where the tokens of each prompt go on from those before. Where the template
    writes earlier turns otherwise than it wrote them as answers (it takes thoughts out, or moves the list of tools), an answer
    begins a sequence of its own, with its whole prompt.

    An answer is closed where the template does not close it: a model that is never shown an end never ends. Of a pair the chosen
    answer is rendered; plain text is a sequence by itself, and the document's end is learnt.
    """
    if "text" in row:
        return [_document(tokenizer, row)]
    end, source = turn_end(tokenizer), source_of(row)
    parts: list[TokenizedRow] = []
    contexts: list[Messages] = []
    for answer in answers_of(tokenizer, row, fields):
        ids = encode(tokenizer, answer.prompt)
        whole = _followed(tokenizer, ids, answer)
        if end is not None and not end.written:
            whole = [*whole, end.token]
        goes_on = bool(parts) and ids[: len(parts[-1].input_ids)] == parts[-1].input_ids
        earlier = parts.pop().spans if goes_on else ()
        parts.append(TokenizedRow(whole, (*earlier, (len(ids), len(whole))), source))
        contexts = [*contexts[: len(parts) - 1], answer.context]
    return [_seeing(part, row, context) for part, context in zip(parts, contexts)]


def _seeing(part: TokenizedRow, row: dict[str, Any], context: Messages) -> TokenizedRow:
    """With the tokens of the pictures that a row shows."""
    if SHOWN not in row:
        return part
    try:
        ids, pictures = expanded(part.input_ids, context, row[SHOWN])
    except DataError as error:
        raise DataError(f"{place_of(row)}{error.message}", error.hint) from error
    marks = [place for place, token in enumerate(part.input_ids) if token == row[SHOWN].rules.image_token_id]

    def moved(place: int) -> int:
        before = bisect_left(marks, place)
        return place + (pictures[before - 1].end - marks[before - 1] - 1 if before else 0)

    spans = tuple((moved(begin), moved(end)) for begin, end in part.spans)
    return TokenizedRow(ids, spans, part.source, pictures)


def pair_of(
    tokenizer: Any, row: dict[str, Any], fields: Mapping[str, Any] = NOTHING_TOLD
) -> tuple[TokenizedRow, TokenizedRow]:
    """The sequences of the chosen and the rejected answer, which begin alike.

    Raises:
        DataError: the template writes another prompt before the one answer than before the other; with file and line.
    """
    beside = {key: value for key, value in row.items() if key not in ("chosen", "rejected")}
    chosen, rejected = (
        tokenize(tokenizer, {**beside, "completion": row[side]}, fields)[-1] for side in ("chosen", "rejected")
    )
    if chosen.input_ids[: chosen.first] != rejected.input_ids[: rejected.first]:
        raise DataError(
            f"{place_of(row)}the two answers follow different prompts in the base's template",
            "Take the row out, or thoughts and calls out of its answers.",
        )
    return chosen, rejected


def _document(tokenizer: Any, row: dict[str, Any]) -> TokenizedRow:
    """All tokens of a text, as its tokenizer begins one, and the end of a document; the first token follows nothing."""
    ids = list(tokenizer(row["text"], verbose=False)["input_ids"])
    end = tokenizer.eos_token_id
    if end is not None and ids[-1:] != [end]:
        ids.append(end)
    return TokenizedRow(ids, ((1, len(ids)),), source_of(row))


def _cut(document: TokenizedRow, max_length: int) -> list[TokenizedRow]:
    """A document in pieces. Each begins with the last token of the one before, so that every token is learnt."""
    ids = document.input_ids
    pieces = [ids[start : start + max_length] for start in range(0, max(1, len(ids) - 1), max_length - 1)]
    return [TokenizedRow(piece, ((1, len(piece)),), document.source) for piece in pieces]


def _followed(tokenizer: Any, ids: list[int], answer: Answer) -> list[int]:
    """The tokens of prompt and answer; `ids`: of the prompt."""
    text = answer.written.text
    whole = encode(tokenizer, answer.prompt + text)
    if whole[: len(ids)] == ids:
        return whole
    # A token over the border, which a server's prompt never has: its tokens end where it ends.
    apart = ids + encode(tokenizer, text)
    if tokenizer.decode(apart) != tokenizer.decode(whole):  # some tokenizers put a space before every text
        raise DataError("prompt and answer cannot be cut into tokens apart", "Use a base with another tokenizer.")
    return apart


def tokenized(
    tokenizer: Any, rows: list[dict[str, Any]], max_length: int, fields: Mapping[str, Any] = NOTHING_TOLD
) -> tuple[list[TokenizedRow], list[dict[str, Any]]]:
    """The sequences of all rows. An answer that ends behind `max_length` is left out, with what comes after it, never cut: a cut
    answer has lost its end token, and teaches never to stop. Plain text goes on in a further sequence.

    Returns:
        (sequences, one entry per sequence of which something is left out: file, line, tokens, answers_left_out).

    Raises:
        DataError: of more than half of the rows nothing is left; names the longest with file and line.
    """
    kept: list[TokenizedRow] = []
    long: list[dict[str, Any]] = []
    lost = 0
    for row in rows:
        before = len(kept)
        if "text" in row:
            kept += _cut(_document(tokenizer, row), max_length)
            continue
        for part in tokenize(tokenizer, row, fields):
            fitting = part.up_to(max_length)
            if fitting is not None:
                kept.append(fitting)
            if (left_out := len(part.spans) - (len(fitting.spans) if fitting else 0)) > 0:
                long.append({**row["source"], "tokens": len(part.input_ids), "answers_left_out": left_out})
        lost += len(kept) == before
    refuse_mostly_long(long, lost, len(rows), max_length)
    return kept, long


def refuse_mostly_long(long: list[dict[str, Any]], lost: int, rows: int, max_length: int) -> None:
    """Sort the list of long rows, the longest first.

    Args:
        lost: rows of which nothing is left.

    Raises:
        DataError: they are more than half of all.
    """
    long.sort(key=lambda entry: -entry["tokens"])
    if lost > rows / 2:
        shown = "\n".join(f"  {entry['file']}:{entry['line']}: {entry['tokens']} tokens" for entry in long[:5])
        raise DataError(
            f"{lost} of {rows} rows have more than train.max_length = {max_length} tokens; the longest:\n{shown}",
            f"Raise train.max_length to {long[0]['tokens']}, or lower data.max_characters.",
        )


def answer_loss(model: Any, rows: list[TokenizedRow]) -> float:
    """Mean negative log-likelihood in nats per answer token (the end token included), over the first `LOSS_ROWS` sequences."""
    import torch  # not at the top: whoever only looks at rows does without it

    was_training = model.training
    model.eval()
    total, tokens = 0.0, 0
    with torch.no_grad():
        for row in rows[:LOSS_ROWS]:
            batch = torch.tensor([row.input_ids], device=next(model.parameters()).device)
            logits = _answer_logits(model, batch, row)
            labels = torch.tensor(row.labels[row.first :], device=logits.device)
            loss = torch.nn.functional.cross_entropy(logits, labels, ignore_index=NOT_LEARNED, reduction="sum")
            total += loss.item()
            tokens += row.learnt
    model.train(was_training)
    return total / max(tokens, 1)


def _answer_logits(model: Any, batch: Any, row: TokenizedRow) -> Any:
    if not row.pictures:
        return model(batch, use_cache=False).logits[0, row.first - 1 : -1].float()
    # A picture has a thousand tokens, of which none is learnt.
    last = len(row.input_ids) - row.first + 1
    return model(batch, use_cache=False, logits_to_keep=last, **given(batch, row.pictures)).logits[0, :-1].float()


def losses(model: Any, rows: list[TokenizedRow], sources: list[str]) -> dict[str, float]:
    """`answer_loss` of all rows (under `ALL_SOURCES`), and of those of each source; nothing of what has no row."""
    parts = {ALL_SOURCES: rows, **{name: [row for row in rows if row.source == name] for name in sources}}
    return {name: answer_loss(model, part) for name, part in parts.items() if part}
