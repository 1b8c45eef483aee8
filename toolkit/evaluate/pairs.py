"""Preferences: does a model find the better answer likelier than its base did, against the worse one?

The margin is the log-probability of the chosen answer less that of the rejected one, in nats, over whole answers. Of the base it
is what preference training starts from; a pair is won where the margin grew (Rafailov et al. 2023, "Direct Preference
Optimization", section 4: the implicit reward is the change of the log-probability from the reference).
"""

from __future__ import annotations

from collections.abc import Mapping

from toolkit.evaluate.figure import Figure
from toolkit.evaluate.held_out import HeldOut
from toolkit.evaluate.names import BASE
from toolkit.evaluate.seen import Seen

MARGIN, WON = "margin of chosen over rejected", "pairs won against the base"
MOVED, FOLLOWED = "log-probability with the label's sign", "rows moved as their label says"


def figures(held_out: HeldOut, seen: Mapping[str, Seen]) -> list[Figure]:
    """The margin of every subject; and, where there is a base, the share of rows whose margin grew against it. Of rows with a
    label the margin is the log-probability of the answer, and its negative where the label says that it is a bad one.
    """
    margins = {name: _margins(held_out, one) for name, one in seen.items() if one.log_probabilities}
    of_pairs = held_out.kind == "pairs"
    weights = [1.0] * len(held_out.rows)
    found = [Figure(MARGIN if of_pairs else MOVED, "nats", True, "help", weights, margins)]
    if BASE in margins:
        # The base against itself is a draw everywhere: half of what can be won.
        won = {name: [_won(one, base) for one, base in zip(rows, margins[BASE])] for name, rows in margins.items()}
        found.insert(0, Figure(WON if of_pairs else FOLLOWED, "share", True, "help", weights, won, share=True))
    return found


def _won(margin: float, base: float) -> float:
    """1, 0, or ½ for a tie; what is no number is lost."""
    return 0.5 if margin == base else float(margin > base)


def _margins(held_out: HeldOut, seen: Seen) -> list[float]:
    if held_out.kind == "pairs":
        return [chosen - rejected for chosen, rejected in seen.log_probabilities]
    signs = [1.0 if row["label"] else -1.0 for row in held_out.rows]
    return [sign * total for sign, (total,) in zip(signs, seen.log_probabilities)]
