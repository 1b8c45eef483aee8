"""Did training compute the function that inference computes? The trainer's own losses against a float32 reference's."""

from __future__ import annotations

from typing import Any

from toolkit.parity.certificate import Check, Measure, lower_is_better
from toolkit.run.facts import AdapterFacts

LARGEST_MEAN = {"float32": 2e-3, "bfloat16": 0.02, "float16": 0.01}
LARGEST_ROW = {"float32": 5e-3, "bfloat16": 0.1, "float16": 0.05}
"""Nats per answer token, by the coarsest type that the training computed in: of all rows together, and of a row alone."""


def forward_check(trained: AdapterFacts, rows: list[dict[str, Any]]) -> Check | None:
    """Compare what the trainer's own model lost on some rows at the end of its training with what the reference loses on them.

    Args:
        rows: of the golden artifact's forward.jsonl; see `toolkit.parity.golden.training_rows`.

    Returns:
        None where nothing is known.
    """
    if not rows or trained.computed_in is None:
        if trained.trainer_loss is None:
            return None
        told = f"its trainer's last loss was {trained.trainer_loss:.4g}; the rows are not here, so it was not compared"
        loss = Measure(name="loss of the trainer's own model", value=trained.trainer_loss, unit="nats")
        return Check(name="forward", verdict="not compared", message=told, measures=[loss])
    tokens = sum(row["tokens"] for row in rows)
    own, reference = (sum(row[key] * row["tokens"] for row in rows) / tokens for key in ("loss", "reference"))
    # One token of a short row may well be a near tie: its row counts with the tokens of a usual one.
    largest = max(abs(row["loss"] - row["reference"]) * min(1.0, row["tokens"] / 20) for row in rows)
    measures = [
        Measure(name="loss of the trainer's own model", value=own, unit="nats"),
        Measure(name="loss of the reference", value=reference, unit="nats"),
        lower_is_better(
            "difference of the losses", abs(own - reference), LARGEST_MEAN[trained.computed_in], unit="nats"
        ),
        lower_is_better("largest difference of a row", largest, LARGEST_ROW[trained.computed_in], unit="nats"),
    ]
    said = f"the trainer's own model lost {own:.4f} nats a token on {len(rows)} rows, the same model in float32 {reference:.4f}"
    check = Check.of("forward", measures, said, {"rows": rows})
    if check.verdict == "fail":
        said += ": training computed another function than inference does (soft caps, windows, positions, an engine's kernel)"
        return check.model_copy(update={"message": said})
    return check
