"""GGUF files straight from a base and its adapter: all that the converter and the quantizer would make of the merged model.

See `toolkit.export.fused` for how, and `toolkit.export.convert` for what is told in the files.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from toolkit.errors import UsageError
from toolkit.export.convert import convert, licenses, metadata, protect_template
from toolkit.export.fused import write_files
from toolkit.export.head import END, check_end, converted_entries, with_ends
from toolkit.export.imatrix_file import read_imatrix
from toolkit.export.pieces import merged_pieces
from toolkit.export.planned import Planned, check_room, plan_converted, plan_quantized
from toolkit.export.quantize import quantize
from toolkit.export.settings import Settings, settings_of
from toolkit.export.tree_process import loaded_tree
from toolkit.export.values import Values
from toolkit.models.adapter_files import check_adapter
from toolkit.models.layout import Layout, layout_of
from toolkit.models.merging import merged_onto, stack_of
from toolkit.recipe.schema import Recipe
from toolkit.run.artifacts import Artifact, Cost
from toolkit.run.facts import AdapterFacts, DatasetFacts, GGUFFacts, ModelFacts

stderr = Console(stderr=True)


@dataclass(frozen=True)
class Written:
    """What was made."""

    facts: GGUFFacts
    model: ModelFacts
    """Of the merged model that was never written."""
    without_torch: bool


def export(
    recipe: Recipe,
    adapter: Artifact[AdapterFacts],
    file_types: Sequence[str],
    out: Path,
    dataset: Artifact[DatasetFacts] | None = None,
    imatrix: Path | None = None,
    projector: bool = True,
) -> Written | None:
    """Write `<name>-<type>.gguf` for every file type into `out`; and `<name>-mmproj-….gguf` where pictures were trained on.

    Args:
        adapter: of method lora or qlora.
        file_types: `recipe.export.converted`, of whose values all others are quantized and which may be left out, and quantized
            ones; none of both for the file that sees alone.
        imatrix: an importance matrix, for the quantized ones.
        projector: whether the file that sees is written, where there is one.

    Returns:
        None where not every tensor's way into the file is known: then the converter has to go it.

    Raises:
        DataError: an adapter that does not fit, is damaged or holds no numbers; an architecture that llama.cpp does not know;
            an importance matrix that does not fit.
        UsageError: a kind of adapter that has no merge; an unknown file type.
        ResourceError: the disk is full, or will be.
        ExternalToolError: the converter or the quantizer fails.
    """
    kind = recipe.export.converted
    others = [file_type for file_type in file_types if file_type != kind]
    if adapter.facts.method == "full":
        raise UsageError(f"{adapter.folder} is a whole model", "Convert it: tune2ollama convert")
    for folder in stack_of(adapter):
        check_adapter(folder)
    # Whoever wants 32 bits wants all of them.
    values = Values(adapter, recipe.merge.chosen, "float32" if kind == "F32" else "")
    model = model_facts(values, adapter.facts, recipe.merge.chosen)
    settings = settings_of(values, adapter.folder, adapter.facts.chat_template_kwargs)
    told = metadata(recipe, adapter, model, dataset)
    licence = licenses(recipe, adapter.facts)
    with loaded_tree():  # a base that is new here is asked about twice or more
        layout = _layout(values, settings, projector=False)
        shown = projector and adapter.facts.pictures is not None
        sees = _layout(values, settings, projector=True) if shown else None
        if layout is None or (sees is None and shown):
            return None
        check_end(settings.end, layout.metadata.get(END), f"{recipe.name}-{kind}.gguf", adapter.folder)
        template = protect_template(settings.template)
        entries = converted_entries(layout, settings, recipe.name, told, licence, template, kind)
        entries, said = with_ends(entries, settings.ends, f"{recipe.name}-{kind}.gguf")
        converted = plan_converted(layout, entries, kind)
        plans = [converted] if kind in file_types else []
        plans += plan_quantized(converted, entries, others, read_imatrix(imatrix) if imatrix is not None else None)
        files = {out / f"{recipe.name}-{planned.file_type}.gguf": planned for planned in plans}
        eyes: dict[Path, Planned] = {}
        if sees is not None:
            kind = "F32" if kind == "F32" else "F16"
            planned = plan_converted(
                sees, converted_entries(sees, settings, recipe.name, told, licence, "", kind), kind
            )
            eyes = {out / f"{recipe.name}-mmproj-{kind}.gguf": planned}
    check_room([*files.values(), *eyes.values()], out)
    for sentence in (said, settings.told):
        if sentence:
            stderr.print(sentence, markup=False)
    if files:
        _write(values, layout, converted, files, f"{recipe.name} to {', '.join(file_types)}")
    for path, planned in eyes.items():
        _write(values, sees or layout, planned, {path: planned}, f"{recipe.name}'s eyes")
    made = {planned.file_type: planned.described(path) for path, planned in files.items()}
    facts = GGUFFacts(
        files=[made[file_type] for file_type in file_types],
        mmproj=next((planned.described(path) for path, planned in eyes.items()), None),
        architecture=layout.architecture,
        template_protected="tokenizer.chat_template" in entries,
    )
    without_torch = values.without_torch and not any(told.get("value") == "-exp" for told in layout.tensors.values())
    return Written(facts, model, without_torch)


def convert_straight(
    recipe: Recipe,
    adapter: Artifact[AdapterFacts],
    out: Path,
    dataset: Artifact[DatasetFacts] | None = None,
) -> GGUFFacts:
    """The run's stage: from base and adapter the file of 16 or 32 bits, where one is needed, and the one that sees.

    Of a whole model that was trained, and where not every tensor's way into the file is known, the converter makes it, from a
    merged folder that is gone afterwards; then there is a file of 16 or 32 bits always, which the others are quantized from.

    Raises:
        as `export`.
    """
    if adapter.facts.method != "full":
        # Behind pictures only a file that is not quantized is near enough to the tuned model to tell a stale projector.
        needed = recipe.export.makes_converted or adapter.facts.pictures is not None
        made = export(recipe, adapter, [recipe.export.converted] if needed else [], out, dataset)
        if made is not None:
            return made.facts
    from toolkit.export.merge import merge

    with tempfile.TemporaryDirectory(dir=out, prefix=".merged-") as scratch:
        model = Artifact(Path(scratch), merge(recipe, adapter, Path(scratch)), "", {}, Cost())
        return convert(recipe, adapter, model, out, dataset)


def quantize_straight(
    recipe: Recipe,
    adapter: Artifact[AdapterFacts],
    converted: Artifact[GGUFFacts],
    out: Path,
    dataset: Artifact[DatasetFacts] | None = None,
    imatrix: Path | None = None,
) -> GGUFFacts:
    """The run's stage: the quantized files; from the converted one where there is one, else straight: the same bytes.

    Args:
        converted: what `convert_straight` left.

    Raises:
        as `export`.
    """
    made = None
    if recipe.export.quantized and not converted.facts.files:
        made = export(recipe, adapter, recipe.export.quantized, out, dataset, imatrix, projector=False)
    return made.facts if made is not None else quantize(recipe, converted, out, imatrix)


def model_facts(values: Values, facts: AdapterFacts, onto: str) -> ModelFacts:
    """Of the merged model, as the merge would tell it."""
    entries = values.entries()
    return ModelFacts(
        merged_onto=merged_onto(facts, onto),
        dtype=values.dtype,
        tensors=len(entries),
        merged_tensors=sum(values.is_merged(entry.name) for entry in entries),
        parameters=sum(math.prod(entry.shape) for entry in entries),
    )


def _layout(values: Values, settings: Settings, projector: bool) -> Layout | None:
    found = layout_of(settings.folder, values.entries(), values.tied_head, projector)
    names = {tensor["name"] for tensor in found.written}
    return found if names == found.tensors.keys() and not found.unknown else None


def _write(values: Values, layout: Layout, converted: Planned, files: dict[Path, Planned], what: str) -> None:
    write_files(merged_pieces(values, layout, converted), converted, files, what)
