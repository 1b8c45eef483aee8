"""Which of the files goes to Ollama: the one that the recipe names, or with `export.serve: auto` one that was measured to fit."""

from __future__ import annotations

from dataclasses import dataclass

from toolkit.errors import UsageError
from toolkit.parity.certificate import Subject, verdict_of
from toolkit.parity.checks.logits import GAIN_KEPT, MEAN_KL
from toolkit.parity.subjects import GGUFUnderTest
from toolkit.recipe.schema import AUTO, BOUNDS, Export, Recipe


@dataclass(frozen=True)
class _Measured:
    file_type: str
    bytes: int
    mean_kl: float
    gain_kept: float

    def told(self) -> str:
        measured = f"mean KL {self.mean_kl:.2g} nats, {self.gain_kept:.1%} of the gain kept"
        return f"{self.file_type}: {self.bytes / 1e6:,.0f} MB, {measured}"

    def fits(self, export: Export) -> bool:
        return (
            (export.max_bytes is None or self.bytes <= export.max_bytes)
            and (export.max_kl is None or self.mean_kl <= export.max_kl)
            and (export.min_kept is None or self.gain_kept >= export.min_kept)
        )


def served_type(recipe: Recipe, subjects: list[Subject], files: list[GGUFUnderTest]) -> str:
    """The file type that is served. Of those that pass and keep to the recipe's bounds it is the smallest; where only a size is
    given, the nearest to the tuned model.

    Raises:
        UsageError: files pass, and none keeps to the bounds; with what each was measured at.
    """
    export = recipe.export
    if export.serve != AUTO:
        return export.serve
    passing = _passing(recipe, subjects, files)
    if not passing:  # the largest has the most to say
        return max(files, key=lambda file: file.path.stat().st_size).file_type
    bounds = {key: value for key in BOUNDS if (value := getattr(export, key)) is not None}
    if not bounds:
        return passing[0].file_type
    found = [_measured(file, subjects) for file in passing]
    if not (fitting := [one for one in found if one.fits(export)]):
        given = ", ".join(f"{key} {value:g}" for key, value in bounds.items())
        raise UsageError(
            f"no file that passes keeps to export.{given}: {'; '.join(one.told() for one in found)}",
            "Name other bounds (--set export.max_kl=…), or more export.file_types.",
        )
    if [*bounds] == ["max_bytes"]:
        return min(fitting, key=lambda one: one.mean_kl).file_type
    return fitting[0].file_type


def smallest_that_passes(recipe: Recipe, subjects: list[Subject], files: list[GGUFUnderTest]) -> str:
    """The file type of the smallest of the recipe's files that could be served; empty where none could."""
    return next((file.file_type for file in _passing(recipe, subjects, files)), "")


def served_as(serve: str, recipe: Recipe, subjects: list[Subject]) -> list[Subject]:
    """The subjects, where the file of this type is the served one; see `toolkit.parity.certificate.counts`."""

    def marked(subject: Subject) -> Subject:
        if subject.kind not in ("converted", "quantized"):
            return subject
        served, ancestor = subject.name == serve, subject.name == recipe.export.converted
        counts = "everything" if served else "ancestor" if ancestor else "text only"
        return subject.model_copy(update={"served": served, "counts": counts})

    return [marked(subject) for subject in subjects]


def _passing(recipe: Recipe, subjects: list[Subject], files: list[GGUFUnderTest]) -> list[GGUFUnderTest]:
    """Those of the recipe's files that could be served, the smallest first."""
    made = [file for file in files if file.file_type in recipe.export.file_types]
    by_size = sorted(made, key=lambda file: file.path.stat().st_size)
    return [file for file in by_size if verdict_of(served_as(file.file_type, recipe, subjects))[0] == "pass"]


def _measured(file: GGUFUnderTest, subjects: list[Subject]) -> _Measured:
    checks = next(subject.checks for subject in subjects if subject.name == file.file_type)
    logits = next(check for check in checks if check.name == "logits")
    values = {measure.name: measure.value for measure in logits.measures}
    return _Measured(file.file_type, file.path.stat().st_size, values[MEAN_KL], values[GAIN_KEPT])
