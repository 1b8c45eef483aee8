"""GSM8K's form of an answer (`steps #### result`; Cobbe et al. 2021, arXiv 2110.14168) in the tags that rewards look for."""

from __future__ import annotations

import re

_RESULT = "####"
_CALCULATION = re.compile(r"<<[^<>]*>>")
"""GSM8K's marks for a calculator: 48/2 = <<48/2=24>>24."""


def tagged(answer: str) -> str | None:
    """The answer as <reasoning> and <answer>; as it is where it has these tags; None where it tells no result."""
    if "<reasoning>" in answer and "</answer>" in answer:
        return answer
    steps, mark, result = answer.rpartition(_RESULT)
    if not mark or not result.strip():
        return None
    steps = _CALCULATION.sub("", steps).strip()
    return f"<reasoning>\n{steps}\n</reasoning>\n<answer>\n{result.strip()}\n</answer>"
