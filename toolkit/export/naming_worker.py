"""The keys of a GGUF that tell names and origins, as the pinned converter writes them: a process of its own, without torch.

    python -m toolkit.export.naming_worker FOLDER OUT METADATA ALL,SHARED,EXPERT,EXPERTS

FOLDER: the model's settings under the name that it goes by, with its card. METADATA: as the converter's `--metadata` takes it.
The numbers are the parameters of the model, as a layout tells them. OUT becomes a GGUF file with nothing but these keys.

What is done here between the tree's own calls is what its `prepare_metadata` does (conversion/base.py), which would import torch.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path


def main(folder: Path, out: Path, metadata_file: Path, parameters: list[int]) -> None:
    """Ask the tree's gguf-py, and write its answer."""
    import gguf

    logging.disable(logging.WARNING)
    found = gguf.Metadata.load(metadata_file, folder, None, parameters[0])
    if found.name is None:
        found.name = folder.name
    if found.size_label is None and parameters[0] > 0:
        found.size_label = gguf.size_label(*parameters)
    writer = gguf.GGUFWriter(None, "")
    writer.kv_data = [{}]
    found.set_gguf_meta_model(writer)
    writer.write_header_to_file(path=out)
    writer.write_kv_data_to_file()
    writer.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), [int(number) for number in sys.argv[4].split(",")])
