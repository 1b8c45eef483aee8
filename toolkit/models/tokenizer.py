"""Reading a tokenizer as training read it."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def load_tokenizer(folder: str | Path, base: str | Path | None = None) -> Any:
    """The tokenizer in a folder.

    transformers chooses the class by the model type in config.json before it looks at tokenizer_config.json, where many models
    name a class that would split texts otherwise. An adapter's folder has no config.json, so its base's has to be shown.

    Args:
        base: folder of the base, for a folder without a configuration.
    """
    from transformers import AutoConfig, AutoTokenizer

    beside = Path(base if base is not None else folder)
    config = AutoConfig.from_pretrained(beside, trust_remote_code=False) if (beside / "config.json").is_file() else None
    return AutoTokenizer.from_pretrained(folder, config=config, trust_remote_code=False)
