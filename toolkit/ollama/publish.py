"""Giving a model to Ollama: a candidate first, proved on the server itself, then its name.

The old model of that name stays untouched until the candidate has rendered every golden prompt byte for byte and answered every
golden question as llama.cpp does on the same file.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from toolkit.errors import ExternalToolError, ParityError, ToolkitError, UsageError
from toolkit.ollama.client import Client, server_address
from toolkit.ollama.files import ServedFiles
from toolkit.ollama.modelfile import candidate_name, check_name, complete, full_name, shown_parameters, stored_files
from toolkit.ollama.server import INSTALL, find_ollama, serving
from toolkit.ollama.syntax import Modelfile, read_modelfile, render_for_people
from toolkit.parity.certificate import Check
from toolkit.recipe.reading import RESOLVED_FILE
from toolkit.recipe.schema import Recipe
from toolkit.run.artifacts import Artifact, text_sha256, write_json, write_jsonl, write_text
from toolkit.run.facts import CertificateFacts, GoldenFacts, OllamaFacts
from toolkit.run.locks import NAMES_OF_ITS_OWN, locked
from toolkit.run.places import cache_home, own_command

if TYPE_CHECKING:
    from toolkit.ollama.served_model import ServedModel

REFUSED = "refused"
"""Folder of a run, for the certificate of a model that a server showed to be another than the trained one."""


def completed_modelfile(recipe: Recipe, served: ServedFiles, folder: Path, ends: Sequence[int] = ()) -> Modelfile:
    """The recipe's Modelfile about the files that go to Ollama.

    Args:
        folder: where it will lie; FROM is relative to it.
        ends: tokens at which the tuned model ends; by default those that the file names.
    """
    from toolkit.parity.candidate import Candidate

    partial = Modelfile()
    if recipe.ollama.modelfile is not None:
        partial = read_modelfile(Path(recipe.ollama.modelfile), partial=True)
    with Candidate(served.gguf, vocab_only=True) as model:
        tokens = dict.fromkeys((model.eos, model.eot, *ends))
        stops = [model.token_text(token) for token in tokens if 0 <= token < model.vocabulary]
        named = served.named_from(folder)
        return complete(partial, recipe, named, stops, model.metadata("general.license"), served.pictures)


def modelfile_of(recipe: Recipe, served: ServedFiles, ends: Sequence[int] = ()) -> str:
    """The complete Modelfile as text, FROM relative to the current folder; `ends` as in `completed_modelfile`."""
    return render_for_people(completed_modelfile(recipe, served, Path(), ends))


def create(
    recipe: Recipe,
    golden: Artifact[GoldenFacts],
    served: ServedFiles,
    certificate: Artifact[CertificateFacts],
    out: Path,
) -> OllamaFacts:
    """Publish a model as `recipe.ollama.model`, if the server proves to serve it as it was trained.

    Where no Ollama is installed, only `Modelfile` is written, and the facts say what remains to be done.

    Args:
        served: what the certificate lets go to Ollama.
        out: gets `Modelfile`, for people: `ollama create` with it gives the same model; `conversations.jsonl`, what each
            address rendered; and `served.json`, the server's links of the certificate. Where these break, the whole
            certificate is written into `refused` beside it.

    Raises:
        ParityError: the certificate does not pass, or the server renders or answers otherwise; nothing was published.
        ResourceError: another run is publishing this model.
        UsageError: the name, OLLAMA_HOST or the partial Modelfile cannot be.
        ExternalToolError: Ollama failed or went away; nothing was published.
    """
    facts = certificate.facts
    mmproj = served.mmproj.name if served.mmproj else ""
    if facts.verdict != "pass" or (facts.served_file, facts.served_mmproj) != (served.gguf.name, mmproj):
        told = " and ".join(filter(None, (facts.served_file, facts.served_mmproj)))
        mine = " and ".join(filter(None, (served.gguf.name, mmproj)))
        about = f"about {told}, not {mine}" if facts.verdict == "pass" else facts.verdict
        raise ParityError(
            f"the certificate is {about}: nothing is published",
            f"Read {certificate.folder}/certificate.json. Judge the files anew:\n"
            f"  {own_command()} verify {out.parent / RESOLVED_FILE} --force",
        )
    if served.pictures is not None and served.mmproj is None:
        raise ParityError(
            f"the model was trained on pictures, and {served.gguf.name} alone sees none: nothing is published",
            "Convert it with its projector (mmproj), and judge both:\n"
            f"  {own_command()} run {out.parent / RESOLVED_FILE}",
        )
    model = recipe.ollama.model
    if faults := check_name(model):
        raise UsageError("\n".join(faults), "Change ollama.model in the recipe.")
    candidate = candidate_name(model)
    modelfile = completed_modelfile(recipe, served, out, golden.facts.end_tokens)
    write_text(out / "Modelfile", render_for_people(modelfile))
    shutil.rmtree(out.parent / REFUSED, ignore_errors=True)
    with publishing(model), serving(out.parent / "ollama-server.log") as client:
        if client is None:
            remaining = [INSTALL, f"{own_command()} create {out.parent / RESOLVED_FILE}"]
            return OllamaFacts(model=model, digest="", server_version="", published=False, remaining=remaining)
        from toolkit.ollama.served_model import ServedModel

        version = client.version()
        try:
            digests = send(client, candidate, modelfile, served.gguf, served.mmproj)
            sent = _digest(client, candidate)
            found = ServedModel(client, candidate, client.show(candidate), served.gguf, served.mmproj)
            # A text alone is known by its answers; of two files, one could be missing or another.
            otherwise = stored_otherwise(found.shown, modelfile, digests if served.mmproj else ())
            facts_of_checks = _prove(found, otherwise, served, recipe, golden, certificate.folder, out)
            if _digest(client, candidate) != sent:
                raise ParityError(
                    f"{candidate} was replaced while it was being proved: what has the name now is not what was proved",
                    "Nothing was published. See to it that nothing else makes this model, then:\n"
                    f"  {own_command()} create {out.parent / RESOLVED_FILE}",
                )
            client.copy(candidate, model)
            digest = _digest(client, model)
        finally:
            # Also after Ctrl-C; when the server is gone, the first error is the one to show, and the next run replaces it.
            with contextlib.suppress(ToolkitError):
                client.delete(candidate)
    return OllamaFacts(
        model=model, digest=digest, server_version=version, published=True, remaining=to_run(), **facts_of_checks
    )


def publishing(model: str) -> contextlib.AbstractContextManager[None]:
    """Be the only one who makes this model on this server: the candidate's name is the model's, whatever the run is called.

    Raises:
        ResourceError: another run is at it.
    """
    name = text_sha256(f"{server_address()}/{full_name(model)}")[:32]
    return locked(
        cache_home() / "publishing" / f"{name}.lock",
        f"another run is publishing {model} at {server_address()}",
        NAMES_OF_ITS_OWN,
    )


def _digest(client: Client, model: str) -> str:
    return client.models().get(full_name(model), "")


def _prove(
    model: ServedModel, broken: Check | None, served: ServedFiles, recipe: Recipe, golden: Artifact[GoldenFacts],
    certified: Path, out: Path,
) -> dict[str, Any]:  # fmt: skip
    """Compare what the server renders and answers with what was trained.

    Args:
        broken: what the server stored otherwise than it was sent.
        certified: folder of the file's own certificate.

    Raises:
        ParityError: it is another; the certificate with the server's part is in `refused`, beside the stages.
    """
    from toolkit.models.gguf_file import read_gguf
    from toolkit.ollama.judged import Shown, subject_of, what_is_shown
    from toolkit.ollama.thoughts import who_sees_what
    from toolkit.ollama.trained import Trained
    from toolkit.parity.next_step import after_serving
    from toolkit.report.page import with_served, write_page

    template = str(read_gguf(model.file).metadata.get("tokenizer.chat_template", ""))
    limit = recipe.golden.max_new_tokens
    facts = golden.facts
    ends, told = tuple(facts.end_tokens), facts.chat_template_kwargs
    trained = Trained(golden.folder, recipe.system, template, facts.day, limit, ends, told, served.pictures)
    shown = Shown([broken]) if broken else what_is_shown(model, trained)
    write_jsonl(out / "conversations.jsonl", (asdict(outcome) for outcome in shown.outcomes))
    subject = subject_of(model, shown, recipe.ollama.model).as_json()
    write_json(out / "served.json", subject)
    if subject["verdict"] != "pass":
        refused = out.parent / REFUSED  # what is in `out` goes with the next try
        certificate = json.loads((certified / "certificate.json").read_text(encoding="utf-8"))
        whole = with_served(certificate, subject)
        write_json(refused / "certificate.json", whole)
        hint = f"Nothing was published. Read {write_page(whole, refused)}."
        link = str((whole["blame"] or {}).get("link", ""))
        raise ParityError(str(whole["message"]), f"{hint}\n{after_serving(link, recipe, out.parent)}")
    return {
        "thinking": who_sees_what(template, golden.facts.chat_template_kwargs),
        "rendered_equal": shown.rendered,
        "conversations_equal": sum(outcome.result == "equal" for outcome in shown.outcomes),
        "answers_compared": shown.agreement.answers,
        "largest_logprob_difference": shown.agreement.largest,
    }


def send(client: Client, name: str, modelfile: Modelfile, gguf: Path, mmproj: Path | None = None) -> tuple[str, ...]:
    """Upload the files (unless the server has them) and create a model from them and a Modelfile, through the API.

    Args:
        mmproj: the projector of a model that sees.

    Returns:
        The digest of each, as the server calls them.
    """
    files = {"model.gguf": gguf, **({"mmproj.gguf": mmproj} if mmproj else {})}
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeElapsedColumn())
    digests = {}
    with Progress(*columns, console=Console(stderr=True)) as progress:
        for called, file in files.items():
            task = progress.add_task(f"{file.name} to Ollama", total=file.stat().st_size)
            digests[called] = client.upload(file, functools.partial(_tick, progress, task))
    request: dict[str, Any] = {
        "files": digests,
        "parameters": modelfile.api_parameters(),
        "license": list(modelfile.licenses),
        "messages": [{"role": message.role, "content": message.content} for message in modelfile.messages],
        "system": modelfile.system,
        "requires": modelfile.requires,
    }
    client.create(name, {key: value for key, value in request.items() if value})
    return tuple(digests.values())


def _tick(progress: Progress, task: TaskID, sent: int) -> None:
    progress.update(task, completed=sent)


def stored_otherwise(shown: dict[str, Any], sent: Modelfile, digests: Sequence[str] = ()) -> Check | None:
    """A failed check that names what the server stored otherwise than it was sent; None when all is as sent.

    Args:
        shown: `/api/show`.
        digests: of the files that were sent; empty: they are not compared.
    """
    wanted: dict[str, Any] = {"system": sent.system or "", **sent.api_parameters()}
    found: dict[str, Any] = {"system": shown.get("system", ""), **shown_parameters(str(shown.get("parameters", "")))}
    wanted["messages"] = [[message.role, message.content] for message in sent.messages]
    found["messages"] = [[turn["role"], turn["content"]] for turn in shown.get("messages") or []]
    if digests:
        wanted["files"], found["files"] = list(digests), stored_files(shown)
    wrong = sorted(key for key in wanted.keys() | found.keys() if wanted.get(key) != found.get(key))
    if not wrong:
        return None
    told = "; ".join(f"{key}: sent {wanted.get(key)!r}, stored {found.get(key)!r}" for key in wrong)
    name = "prompts" if {"system", "messages"} & set(wrong) else "answers"
    return Check(name=name, verdict="fail", message=f"Ollama stored something else than it was sent: {told}")


def to_run() -> list[str]:
    """What a user does before `ollama run` works in this shell; empty when nothing is missing."""
    binary = find_ollama()
    lines = []
    if binary is not None and shutil.which("ollama") is None:
        lines.append(f'export PATH="{binary.parent}:$PATH"')
    with Client(server_address()) as client:
        if not client.answers():
            lines.append("ollama serve &")
    return lines


def still_published(facts: OllamaFacts) -> str:
    """Why a `create` of an earlier run has to be done again; empty when Ollama still has the model.

    Asks the server when it runs; else looks at the user's models folder, so that no server has to be started.
    """
    if not facts.published:
        found = find_ollama() is not None
        with Client(server_address()) as client:
            return "Ollama is here now" if found or client.answers() else ""
    with Client(server_address()) as client:
        try:
            found_digest = client.models().get(full_name(facts.model))
        except ExternalToolError:
            found_digest = _digest_on_disk(facts.model)
    if found_digest is None:
        return f"Ollama has no {facts.model} any more"
    return "" if found_digest == facts.digest else f"the {facts.model} in Ollama is another one now"


def _digest_on_disk(model: str) -> str | None:
    folder = Path(os.environ.get("OLLAMA_MODELS") or Path.home() / ".ollama" / "models")
    path, _, tag = full_name(model).rpartition(":")
    parts = [*("registry.ollama.ai", "library")[: max(0, 2 - path.count("/"))], *path.split("/")]
    manifest = folder.joinpath("manifests", *parts, tag)
    return hashlib.sha256(manifest.read_bytes()).hexdigest() if manifest.is_file() else None
