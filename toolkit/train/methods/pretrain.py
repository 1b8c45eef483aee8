"""Continued pretraining: plain text, every token learnt, each document in sequences of its own, so that none sees another."""

from __future__ import annotations

from toolkit.train.methods.sft import trainer

__all__ = ["trainer"]
