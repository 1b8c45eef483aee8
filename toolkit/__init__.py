"""tune2ollama: a fine-tune that you can `ollama run`, with proof that what runs is what was trained."""

__version__ = "0.1.0"
