"""A user's own rewards: read from a Python file, and called with a guard around each."""

from __future__ import annotations

import inspect
import json
import math
import runpy
import traceback
from collections.abc import Callable, Iterable, Mapping, Set
from itertools import islice
from pathlib import Path
from types import FunctionType
from typing import Any, TypeAlias

from toolkit.errors import DataError, UsageError
from toolkit.train.time_limit import TooLong, time_limit

Reward: TypeAlias = Callable[[list[str], list[str]], list[float]]
"""(answers, the reference of each) to what each earns."""

_MODULE = "own_rewards"
_SHOWN = 300
"""Characters of an answer in a message."""


def load_own(path: Path) -> dict[str, Reward]:
    """Every public function at the top level of a Python file that has two parameters, by its name.

    **The file is run**, in this process and with all of its rights: it is the user's own code, named on the command line and
    nowhere else. A recipe, a row or a model never names one. Functions that it imports, that begin with `_`, or that cannot
    be called with two lists are taken for helpers; a third parameter may have a default.

    Raises:
        UsageError: no such file, or no reward in it.
        DataError: it does not import.
    """
    if path.suffix != ".py" or not path.is_file():
        raise UsageError(f"{path}: no Python file", "Name a file that ends with .py, with your rewards in it.")
    try:
        found = runpy.run_path(str(path), run_name=_MODULE)
    except SyntaxError as error:
        raise DataError(
            f"{error.filename or path}:{error.lineno or 1}: {error.msg}", "Mend it, then run again."
        ) from error
    except (Exception, SystemExit) as error:
        raise DataError(f"{_where(error, str(path)) or path}: {_told(error)}", "Mend it, then run again.") from error
    functions = {
        name: value
        for name, value in found.items()
        if isinstance(value, FunctionType) and value.__module__ == _MODULE and not name.startswith("_")
    }
    rewards: dict[str, Reward] = {name: value for name, value in functions.items() if _takes_two_lists(value)}
    if not rewards:
        held = ", ".join(f"{name}{inspect.signature(value)}" for name, value in functions.items())
        raise UsageError(
            f"{path}: no reward in it" + (f", only {held}" if held else ""),
            "A reward is a function of two lists: def my_reward(completions, references): return [0.0 for _ in completions]",
        )
    return rewards


def _takes_two_lists(function: FunctionType) -> bool:
    signature = inspect.signature(function)
    kinds = [parameter.kind for parameter in signature.parameters.values()]
    try:
        signature.bind([], [])
    except TypeError:
        return False
    return (
        sum(kind in {inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD} for kind in kinds) > 1
    )


def guarded(name: str, reward: Reward, seconds: float = 10) -> Reward:
    """The same reward, with every fault of it an error that says where it is and at which answer it happened.

    A fault: it raises, gives back anything but a finite number for each answer, or takes longer than `seconds` for a call
    (`time_limit` says what can be interrupted). To find the answer, a call that failed is made again for each answer alone.

    Raises:
        DataError: by the function that is given back.
    """

    def call(completions: list[str], references: list[str]) -> list[float]:
        try:
            return _called(reward, completions, references, seconds)
        except _Fault as fault:
            at, fault = _first_alone(reward, completions, references, seconds, fault)
            shown = json.dumps(completions[at][:_SHOWN], ensure_ascii=False) if completions else "no answer"
            more = " …" if completions and len(completions[at]) > _SHOWN else ""
            where = f" ({fault.where})" if fault.where else ""
            raise DataError(
                f"the reward {name}{where} {fault.what}; the answer: {shown}{more}",
                "Mend the reward, or take it out of train.rewards.",
            ) from fault.__cause__

    return call


class _Fault(Exception):
    """What a reward did, where, and which of its answers it was: None where that is not known yet."""

    def __init__(self, what: str, where: str, at: int | None = None) -> None:
        super().__init__(what)
        self.what, self.where, self.at = what, where, at


def _called(reward: Reward, completions: list[str], references: list[str], seconds: float) -> list[float]:
    code = getattr(inspect.unwrap(reward), "__code__", None)
    file = code.co_filename if code else ""
    place = f"{file}:{code.co_firstlineno}" if code else ""
    try:
        with time_limit(seconds):
            given: Any = reward(list(completions), list(references))  # copies: a reward may change what it is given
            if not isinstance(given, Iterable) or isinstance(given, str | bytes | Mapping | Set):
                raise _Fault(f"gives back {given!r:.60} instead of a list of numbers", place)
            values = list(islice(given, len(completions) + 1))
    except TooLong as error:
        raise _Fault(f"takes longer than {seconds:g} seconds", _where(error, file) or place) from error
    except _Fault:
        raise
    except (Exception, SystemExit) as error:
        raise _Fault(f"fails: {_told(error)}", _where(error, file) or place) from error
    if len(values) != len(completions):
        count = f"more than {len(completions)}" if len(values) > len(completions) else f"{len(values)}"
        raise _Fault(f"gives back {count} numbers for {len(completions)} answers", place)
    return [_number(value, place, at) for at, value in enumerate(values)]


def _number(value: Any, place: str, at: int) -> float:
    try:
        number = math.nan if isinstance(value, str | bytes) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise _Fault(f"gives back {value!r:.60} instead of a finite number", place, at)
    return number


def _first_alone(
    reward: Reward, completions: list[str], references: list[str], seconds: float, fault: _Fault
) -> tuple[int, _Fault]:
    """(answer, fault) of the first answer that makes the reward fail alone; of the first where none does."""
    if fault.at is not None:
        return fault.at, fault
    for at in range(len(completions) if len(completions) > 1 else 0):
        try:
            _called(reward, completions[at : at + 1], references[at : at + 1], seconds)
        except _Fault as alone:
            return at, alone
    return 0, fault


def _where(error: BaseException, file: str) -> str:
    """The last line of the file that a fault passed through, as `file:line`; empty where it passed through none."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    return f"{file}:{lines[-1]}" if lines else ""


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
