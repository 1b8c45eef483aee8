"""What an export asks about a base, asked before there is anything to export: `toolkit.run.ahead` starts this beside training.

    python -m toolkit.export.ahead FOLDER PARENT

FOLDER is what `toolkit.run.ahead.foretell` left, PARENT the process that this one ends with. The answers go into the cache, under
the sum of what they depend on. All is asked as for a plain LoRA; where the adapter turns out to be another kind, the export asks.
"""

from __future__ import annotations

import json
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

from toolkit.export.plain import PlainRows
from toolkit.export.settings import settings_of
from toolkit.export.tree_process import loaded_tree
from toolkit.export.values import nf4_of_base, own_names, told_of_base
from toolkit.models.layout import layout_of
from toolkit.run.ahead import TOLD
from toolkit.run.facts import Quantization
from toolkit.run.hardware import read_hardware
from toolkit.run.processes import die_with_parent, step_back


@dataclass
class _Foreseen:
    """A tuned model, as far as it is known before it is trained; see `toolkit.export.merge.Tuned`."""

    folder: Path
    tied_head: str | None
    head: str
    names: frozenset[str]
    vocabulary: int | None = None

    def has(self, name: str) -> bool:
        return name in self.names


def ask_ahead(folder: Path) -> None:
    """Ask, and keep the answers.

    Args:
        folder: what `toolkit.run.ahead.foretell` left.
    """
    told = json.loads((folder / TOLD).read_text(encoding="utf-8"))
    base = Path(told["base"])
    files, entries, structure = told_of_base(base)
    names = own_names(files, structure)
    tuned = _Foreseen(base, structure.tied_head, structure.head, frozenset(names))
    settings = settings_of(tuned, folder, told["chat_template_kwargs"])
    if told["quantization"] is not None and not read_hardware().cards:
        rows = PlainRows(files, entries, {}, told["base_dtype"], "float32")
        nf4_of_base(rows, Quantization(**told["quantization"]), files, entries, structure)
    with loaded_tree():
        for projector in (False, True) if told["sees"] else (False,):
            layout_of(settings.folder, [entries[name] for name in names], structure.tied_head, projector)


if __name__ == "__main__":
    step_back()
    die_with_parent(signal.SIGKILL, int(sys.argv[2]))()
    ask_ahead(Path(sys.argv[1]))
