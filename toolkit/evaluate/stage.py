"""The stage `evaluate`: the base, the tuned model, every export and what is served, on the same held-out rows and general texts.

Files of the artifact:
    evaluation.json   figures (every subject's value and interval, its difference from the base and from the tuned model),
                      sentences, verdicts, remarks, and what was left out
    answers.jsonl     a line for each question: prompt, reference, and the answer of every subject that was asked
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from toolkit.errors import ParityError
from toolkit.evaluate import held_out as rows_apart
from toolkit.evaluate.figures import figures_of, texts_reference
from toolkit.evaluate.general_texts import General, read_general
from toolkit.evaluate.held_out import HeldOut
from toolkit.evaluate.names import BASE, SERVED, TUNED
from toolkit.evaluate.readers import FileReader, tuned_and_base
from toolkit.evaluate.rewards import earns_less
from toolkit.evaluate.seen import Seen, look, look_at_served
from toolkit.evaluate.texts import all_alike
from toolkit.evaluate.told import Told, forgot_of, sentences, verdict_of
from toolkit.models.ends import end_tokens
from toolkit.models.pictures import PictureRules
from toolkit.models.reference import stderr
from toolkit.models.tokenizer import load_tokenizer
from toolkit.parity.encodings import Encodings
from toolkit.parity.golden.record import as_merged
from toolkit.parity.showing import Showing
from toolkit.recipe.schema import Recipe
from toolkit.run.artifacts import Artifact, read_jsonl, write_json, write_jsonl
from toolkit.run.facts import EvaluationFacts

EVALUATION, ANSWERS = "evaluation.json", "answers.jsonl"


def evaluate(
    recipe: Recipe, have: Mapping[str, Artifact[Any]], out: Path, own_rewards: Path | None = None
) -> EvaluationFacts:
    """Measure everybody and write the figures.

    Args:
        have: train, golden, convert, quantize, verify, create; prepare, where the data is known.
        own_rewards: a Python file of the user's with rewards; it is run.

    Raises:
        DataError: a row that the template refuses; an export that cannot be read.
        ExternalToolError: the server that has the model went away.
        ParityError: what is served earns less than the tuned model.
    """
    adapter = as_merged(have["train"], recipe.merge.chosen)
    facts, settings = adapter.facts, recipe.evaluate
    tokenizer = load_tokenizer(adapter.folder, facts.base.folder)
    new_tokens = settings.max_new_tokens or recipe.golden.max_new_tokens
    held_out = HeldOut()
    if "prepare" in have:
        fields = facts.chat_template_kwargs
        held_out = rows_apart.of_dataset(
            have["prepare"].folder, tokenizer, recipe.train.max_length, settings.rows, fields, facts.pictures
        )
    general = read_general(tokenizer) if settings.forgetting else None
    rewards = _rewards(recipe.train.rewards, own_rewards)
    served = next(
        (kind for kind, path in _files(recipe, have).items() if path.name == have["verify"].facts.served_file), ""
    )
    seen: dict[str, Seen] = {}
    if held_out.rows or general is not None:
        known = _known(have["golden"], new_tokens, recipe.golden.max_new_tokens)
        for name, reader in tuned_and_base(adapter, end_tokens(adapter, tokenizer).tokens):
            seen[name] = look(reader, held_out, general, new_tokens, tokenizer, known[name])
        del reader  # and the model with it: exports need the memory
        seen = {name: seen[name] for name in (BASE, TUNED)}
        showing = _showing(have, facts.pictures)
        for name, path in _files(recipe, have).items():
            # General texts take most of the time, and people meet this file alone.
            texts = general if name == served else None
            seen[name] = look(FileReader(path, showing), held_out, texts, new_tokens, tokenizer, {})
        if have["create"].facts.published and held_out.questions:
            seen |= _served(recipe, held_out, new_tokens, tokenizer, out)
    figures = figures_of(held_out, general, seen, rewards)
    found = write([figure.as_json() for figure in figures], held_out, seen, served, out)
    if broken := earns_less(figures):
        raise ParityError(
            broken,
            f"Do not use {recipe.ollama.model} as it is. Serve a larger file: "
            + recipe.export.settings_to_serve(recipe.export.converted),
        )
    return found


def figures_json(
    held_out: HeldOut, general: General | None, seen: Mapping[str, Seen], rewards: Mapping[str, Any]
) -> list[Told]:
    """The figures as evaluation.json holds them."""
    return [figure.as_json() for figure in figures_of(held_out, general, seen, rewards)]


def write(
    figures: list[Told], held_out: HeldOut, seen: Mapping[str, Seen], export: str, out: Path, subject: str = TUNED
) -> EvaluationFacts:
    """Write evaluation.json and answers.jsonl.

    Args:
        export: the file type that is served; empty: none.
        subject: who is compared with the base.
    """
    told = evaluation_of(figures, held_out, seen, export, subject)
    write_json(out / EVALUATION, told)
    write_jsonl(
        out / ANSWERS,
        (
            {
                "prompt": question.text, "reference": texts_reference(held_out, number),
                "answers": {name: one.answers[number] for name, one in seen.items() if one.answers is not None},
            }
            for number, question in enumerate(held_out.questions)
        ),
    )  # fmt: skip
    return EvaluationFacts(
        helped=told["helped"], forgot=told["forgot"], rows=len(held_out.rows), questions=len(held_out.questions),
        subjects=list(seen), sentences=told["sentences"],
    )  # fmt: skip


def evaluation_of(
    figures: list[Told], held_out: HeldOut, seen: Mapping[str, Seen], export: str, subject: str = TUNED
) -> dict[str, Any]:
    """What evaluation.json holds; arguments as of `write`."""
    return {
        "helped": verdict_of(figures, subject), "forgot": forgot_of(figures, subject),
        "sentences": sentences(figures, export, subject), "remarks": remarks(held_out, seen), "figures": figures,
        "rows": {"kind": held_out.kind, "splits": held_out.splits, "too_long": held_out.too_long},
    }  # fmt: skip


def remarks(held_out: HeldOut, seen: Mapping[str, Seen]) -> list[str]:
    """What a reader of the figures must know besides."""
    found = []
    if held_out.too_long:
        found.append(f"{held_out.too_long} held-out rows do not fit into train.max_length and are left out")
    for name, one in seen.items():
        if one.answers is None:
            if held_out.questions:
                found.append(f"{name} does not fit into memory, so it was read a layer at a time and not asked")
            continue
        empty, cut = sum(not answer for answer in one.answers), one.whole.count(False)
        if all_alike(one.answers):
            found.append(f"{name} gives one and the same answer to all {len(one.answers)} questions")
        elif empty:
            found.append(f"{empty} of {len(one.answers)} answers of {name} are empty")
        if cut and name != BASE:
            found.append(f"{cut} of {len(one.answers)} answers of {name} were cut: they had not ended")
    return found


def _rewards(names: list[str], own: Path | None) -> Mapping[str, Any]:
    if not names:
        return {}
    from toolkit.train.rewards import named

    return named(names, own)


def _known(golden: Artifact[Any], new_tokens: int, recorded: int) -> dict[str, dict[tuple[str, ...], tuple[str, bool]]]:
    """Answers that the golden stage recorded, by subject and `Question.key`; of its base only what is shorter than the limit."""
    if new_tokens != recorded:
        return {TUNED: {}, BASE: {}}
    rows = read_jsonl(golden.folder / "golden.jsonl")
    keys = [(r["prompt_text"], *(Path(shown["image"]).name for shown in r.get("pictures", ()))) for r in rows]
    return {
        TUNED: {key: (row["completion"], row["stopped"]) for key, row in zip(keys, rows)},
        # Whether the base's ended is not recorded, and nobody asks.
        BASE: {key: (row["base_completion"], True) for key, row in zip(keys, rows) if row["base_completion"]},
    }


def _files(recipe: Recipe, have: Mapping[str, Artifact[Any]]) -> dict[str, Path]:
    """File type → file, in the recipe's order."""
    made = {
        file.file_type: have[stage].folder / file.name
        for stage in ("convert", "quantize")
        for file in have[stage].facts.files
    }
    return {kind: made[kind] for kind in recipe.export.file_types if kind in made}


def _showing(have: Mapping[str, Artifact[Any]], rules: PictureRules | None) -> Showing | None:
    """What shows the rows' pictures to the files; None: the model sees none."""
    found = have["convert"].facts.mmproj
    if found is None or rules is None:
        return None
    # The certificate has the same file, with what it made of the golden pictures.
    mmproj = next(p for s in ("verify", "convert") if (p := have[s].folder / found.name).is_file())
    return Showing(mmproj, rules, Encodings.beside(mmproj, (rules.min_tokens, rules.max_tokens)))


def _served(recipe: Recipe, held_out: HeldOut, new_tokens: int, tokenizer: Any, out: Path) -> dict[str, Seen]:
    from toolkit.ollama.server import serving

    with serving(out.parent / "ollama-server.log") as client:
        if client is None:
            stderr.print("Ollama is gone, so what is served is not measured.", style="yellow")
            return {}
        return {SERVED: look_at_served(client, recipe.ollama.model, held_out, recipe.system, new_tokens, tokenizer)}
