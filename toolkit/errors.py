"""The errors that a user can act on. One place (`toolkit.cli.main`) turns them into text and an exit code."""

from __future__ import annotations


class ToolkitError(Exception):
    """A fault with a next step.

    Args:
        message: what is wrong, naming the file, line or key.
        hint: the next command or edit that mends it; may be empty.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(ToolkitError):
    """A recipe, an option or a name that cannot work (exit code 2)."""

    exit_code = 2


class DataError(ToolkitError):
    """A file that was read and is not what it should be: rows, models, GGUF files (exit code 3)."""

    exit_code = 3


class ResourceError(ToolkitError):
    """Not enough memory, disk, or a lock that another run holds (exit code 4)."""

    exit_code = 4


class ExternalToolError(ToolkitError):
    """llama.cpp, Ollama, a compiler or another program failed or is missing (exit code 5)."""

    exit_code = 5


class ParityError(ToolkitError):
    """What runs is not what was trained: nothing is published (exit code 6)."""

    exit_code = 6


class InconclusiveError(ToolkitError):
    """The evidence does not decide whether the export is right (exit code 7)."""

    exit_code = 7


class StageFailed(ToolkitError):
    """A stage's process has said what was wrong; this only carries its exit code and how to go on."""

    def __init__(self, message: str, hint: str, exit_code: int) -> None:
        super().__init__(message, hint)
        self.exit_code = exit_code


MAKE_ROOM = "Make room, e.g. with: tune2ollama clean OTHER-RUN (without a name it removes this run too)"
"""What to do about a full disk."""

INTERRUPTED = 130
"""Exit code after Ctrl-C; finished stages stay, the unfinished one resumes."""
