"""certificate.html: the certificate for people, as one file that needs no network and runs no script.

Everything in it comes from certificate.json and is untrusted: the template escapes all of it, only words of this project's
own lists become class names, and the page's own policy forbids scripts and requests.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import FileSystemLoader, StrictUndefined, Template
from jinja2.sandbox import ImmutableSandboxedEnvironment
from pydantic import TypeAdapter, ValidationError

from toolkit.errors import DataError
from toolkit.parity.certificate import (
    SCHEMA,
    Blame,
    ChainLink,
    Measure,
    Subject,
    Verdict,
    apart,
    blame_of,
    chain_of,
    verdict_of,
)
from toolkit.report.drawn import (
    COLDEST,
    HOTTEST,
    HeatMap,
    Layers,
    find,
    heat_maps,
    layers,
    limit_told,
    measure,
    number,
    strips,
    value_told,
)
from toolkit.run.artifacts import write_text

PAGE = "certificate.html"
SIGNS = {"pass": "✓", "fail": "✗", "inconclusive": "?", "not compared": "–"}
WORDS = {"pass": "passed", "fail": "failed", "inconclusive": "not proved", "not compared": "not compared"}
LINKS_ASKED = {
    "training": "Did every part of the adapter learn?",
    "template": "Are prompts laid out as in training?",
    "tokenizer": "Does text become the same tokens?",
    "structure": "The same layers, shapes and settings?",
    "picture": "Is it shown the pictures that it was trained on?",
    "merge": "Is the adapter in its own base, whole and once?",
    "projector": "Does it see in them what the tuned model sees?",
    "conversion": "Was nothing lost on the way to GGUF?",
    "quantization": "Did rounding to fewer bits cost little?",
    "server prompt": "Does Ollama build the same prompt?",
    "server answers": "Does Ollama give the same answers?",
    "defaults": "Does an app that sends no options get what was trained?",
}
QUESTIONS = {
    "moved": "Did training change every part of the adapter?",
    "prompts": "Is the prompt, byte for byte, the one that was trained on?",
    "ends": "Do answers end where the tuned model's end, and nowhere else?",
    "forward": "Did training compute what inference computes?",
    "tokens": "Does text become the tokens that were trained on?",
    "structure": "Are all tensors, their shapes and the model's settings there?",
    "picture": "Are golden pictures shown as in training: size, patches, pixel values?",
    "weights": "Tensor by tensor: base plus adapter, whole and once, and nothing else?",
    "vision": "The same of its vision part?",
    "projector": "Does the language model get what the tuned model's eyes see?",
    "source": "Was it rounded once, straight from weights of 16 or 32 bits?",
    "strength": "Do the answers show the adapter: whole, and once?",
    "logits": "How far are its next-token probabilities from the tuned model's?",
    "stops": "Does it end its answers where the tuned model does?",
    "answers": "Does the server answer as the file does?",
    "defaults": "Are answers to an app that sends no options the tuned model's own?",
}
KINDS = {
    "adapter": "what training left",
    "merged": "base and adapter in one folder",
    "projector": "GGUF that sees (mmproj)",
    "converted": "GGUF as converted",
    "quantized": "GGUF, quantized",
    "served": "as the Ollama server serves it",
}
COMPARED = {
    "adapter": "Its own matrices: is each more than nothing?",
    "merged": "Every tensor with base plus adapter, worked out anew; prompts and tokens with those of training.",
    "projector": "Every key and tensor with base plus adapter; the golden pictures as llama.cpp shows them, and what comes "
    "out of them, with those of the tuned model.",
    "converted": "Every tensor with base plus adapter; prompts and tokens with those of training; its probabilities at every "
    "position of the golden answers, and its own answers, with the trained model's.",
    "quantized": "The same, after undoing the rounding; and with what llama.cpp makes of weights of 16 or 32 bits.",
    "served": "The prompts that the server builds and the answers that it gives, with the file's own.",
}


@dataclass(frozen=True)
class Row:
    """A line of the table at a glance."""

    subject: Subject
    weights: str
    answers: str
    kl: str
    kl_limit: str
    same: str
    same_limit: str


@dataclass(frozen=True)
class Section:
    """All about one subject."""

    subject: Subject
    layers: Layers | None
    heat: list[HeatMap]
    open: bool


def write_page(certificate: dict[str, Any], folder: Path) -> Path:
    """Write certificate.html into a folder.

    Raises:
        DataError: a certificate of another schema.
    """
    write_text(folder / PAGE, certificate_page(certificate))
    return folder / PAGE


def certificate_page(certificate: dict[str, Any]) -> str:
    """The certificate as one self-contained HTML file.

    Raises:
        DataError: a certificate of another schema.
    """
    subjects = subjects_of(certificate)
    try:
        verdict: Verdict = TypeAdapter(Verdict).validate_python(certificate["verdict"])
        chain = [ChainLink.model_validate(link) for link in certificate["chain"]]
        blame = Blame.model_validate(certificate["blame"]) if certificate["blame"] else None
        known = {k: certificate[k] for k in ("message", "reference", "files", "versions", "warnings", "served_file")}
        known["certified"] = certificate.get("certified")
        made = str(certificate["made"])
    except (KeyError, ValidationError) as error:
        raise _damaged(error) from error
    sections = [_section(subject) for subject in subjects]
    blamed = ("", number(blame.limit)) if blame else ("", "")
    if blame and blame.value is not None:
        blamed = apart(blame.value, blame.limit, number, 4)
    return _template().render(
        verdict=verdict, chain=chain, blame=blame, blamed=blamed, known=known,
        made=made.replace("T", " ").replace("+00:00", " UTC"),
        rows=[_row(subject) for subject in subjects if subject.kind != "adapter"], strips=strips(subjects),
        sections=sections, heated=[section for section in sections if section.heat], compared=_compared(subjects),
    )  # fmt: skip


def _template() -> Template:
    environment = ImmutableSandboxedEnvironment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters.update(number=number, value=value_told, limit=limit_told, sentence=sentence)
    words = {"signs": SIGNS, "words": WORDS, "links_asked": LINKS_ASKED, "questions": QUESTIONS, "kinds": KINDS}
    return environment.get_template("certificate.html.jinja", globals={**words, "schema": SCHEMA, "scale": _scale()})


def subjects_of(certificate: dict[str, Any]) -> list[Subject]:
    """The subjects of a certificate.

    Raises:
        DataError: a certificate of another schema.
    """
    if certificate.get("schema") != SCHEMA:
        raise DataError(
            f"this certificate has the schema {certificate.get('schema')!r}, {SCHEMA!r} is read here",
            "Make it again: tune2ollama verify",
        )
    try:
        return [_subject(row) for row in certificate["subjects"]]
    except (KeyError, ValidationError) as error:
        raise _damaged(error) from error


def with_served(certificate: dict[str, Any], served: dict[str, Any]) -> dict[str, Any]:
    """The certificate with the server's part: one more subject, and chain, blame and verdict anew.

    Args:
        served: a subject of the kind "served", as `Subject.as_json` gives it.

    Raises:
        DataError: a certificate of another schema.
    """
    try:
        subjects = [*subjects_of(certificate), _subject(served)]
    except ValidationError as error:
        raise _damaged(error) from error
    verdict, message, warnings = verdict_of(subjects)
    blame = blame_of(subjects)
    return {
        **certificate,
        "verdict": verdict,
        "message": message,
        "blame": blame.model_dump() if blame else None,
        "chain": [link.model_dump() for link in chain_of(subjects)],
        "warnings": warnings,
        "subjects": [subject.as_json() for subject in subjects],
    }


def sentence(text: str) -> str:
    """A message as a sentence: a capital letter, and one full stop."""
    text = text.strip()
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "?", "!")) else ".")


def _subject(row: dict[str, Any]) -> Subject:
    # The verdict follows from the checks: it is worked out, not believed.
    return Subject.model_validate({key: value for key, value in row.items() if key != "verdict"})


def _damaged(error: Exception) -> DataError:
    return DataError(f"the certificate is damaged: {error}", "Make it again: tune2ollama verify")


def _row(subject: Subject) -> Row:
    told = {strip.source: strip.told for strip in strips([subject])}
    logits = find(subject, "logits")
    kl, same = measure(logits, "mean KL"), measure(logits, "top-1 agreement")
    judged = measure(logits, "top-1 agreement but for near ties")
    return Row(
        subject, told.get("weights", ""), told.get("answers", ""), value_told(kl) if kl else "",
        limit_told(kl) if kl else "", f"{same.value:.1%}" if same else "",
        _share(judged) if judged and judged.limit is not None else "",
    )  # fmt: skip


def _share(found: Measure) -> str:
    value, limit = apart(found.value, found.limit, lambda share, digits: f"{share:.{digits}%}", 1)
    return f"{value}, {'≥' if found.verdict == 'pass' else 'not ≥'} {limit}"


def _section(subject: Subject) -> Section:
    shown = subject.served or subject.kind == "served" or subject.verdict != "pass"
    return Section(subject, layers(subject), heat_maps(subject), shown)


def _compared(subjects: list[Subject]) -> dict[str, str]:
    kinds = {subject.kind for subject in subjects}
    return {kind: told for kind, told in COMPARED.items() if kind in kinds}


def _scale() -> list[tuple[str, float]]:
    """The legend of the heat: (nats, 0 … 1)."""
    decades = round(math.log10(HOTTEST / COLDEST))
    return [(number(COLDEST * 10**i), round(i / decades, 3)) for i in range(decades + 1)]
