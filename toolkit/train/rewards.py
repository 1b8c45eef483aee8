from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Sequence
from pathlib import Path


def _res(t):
    m = re.findall(r"<answer>(.*?)</answer>", t, re.S)
    return (m[-1] if m else t.rpartition("####")[2]).strip()


def answer_correct(c, r):
    return [2.0 if _res(a) == _res(b) and "<answer>" in a else 0.0 for a, b in zip(c, r)]


def answer_integer(c, r):
    return [0.5 if "<answer>" in a and re.fullmatch(r"-?\d+", _res(a)) else 0.0 for a in c]


def strict_format(c, r):
    return [
        0.5 if re.fullmatch(r"<reasoning>\n.*?\n</reasoning>\n<answer>\n.*?\n</answer>\n?", a, re.S) else 0.0 for a in c
    ]


def soft_format(c, r):
    return [0.5 if re.search(r"<reasoning>.*?</reasoning>\s*<answer>.*?</answer>", a, re.S) else 0.0 for a in c]


def tag_counts(c, r):
    return [0.125 * sum(a.count(t) == 1 for t in ("<reasoning>", "</reasoning>", "<answer>", "</answer>")) for a in c]


def named(names: Sequence[str], own: Path | None = None) -> dict[str, Callable[[list[str], list[str]], list[float]]]:
    found = {k: v for k, v in globals().items()}
    if own:
        spec = importlib.util.spec_from_file_location("own", own)
        m = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(m)
        found["letters"] = m.letters
    return {n: found[n] for n in names}


def guarded(name, f):
    return f
