"""Several sources in one set: by weight or by count, each row with the name of its source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from toolkit.data.formats import Example
from toolkit.data.splitting import choose
from toolkit.recipe.rows import Source

LEFT_OUT = "not needed for the mix"


def mix(examples: Sequence[Example], sources: Sequence[Source]) -> set[int]:
    """Indices of the examples that are taken, chosen by their content (see `choose`), whatever their order.

    Sources with a weight give rows in these proportions, as many as there can be without one row twice; those with a count so
    many at most; all others all of theirs.
    """
    rows = {source.called: [i for i, e in enumerate(examples) if e.source == source.called] for source in sources}
    wanted = _wanted(sources, {name: len(numbers) for name, numbers in rows.items()})
    taken: set[int] = set()
    for name, numbers in rows.items():
        chosen = choose([examples[i] for i in numbers], wanted.get(name))
        taken |= {numbers[place] for place in chosen}
    return taken


def _wanted(sources: Sequence[Source], there: Mapping[str, int]) -> dict[str, int | None]:
    weighed = {source.called: source.weight for source in sources if source.weight is not None}
    total = sum(weighed.values())
    largest = min((there[name] * total / weight for name, weight in weighed.items() if weight), default=0.0)
    wanted: dict[str, int | None] = {name: round(largest * weight / total) for name, weight in weighed.items()}
    return wanted | {source.called: source.count for source in sources if source.weight is None}
