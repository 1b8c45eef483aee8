"""The only door to the pinned llama.cpp: its tree (the converter) and, through llama-cpp-python, its library."""

from __future__ import annotations

import ast
import ctypes
import functools
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from toolkit.errors import DataError, ExternalToolError, UsageError
from toolkit.export.tree_process import tree_worker
from toolkit.models.bases import cached_sha256
from toolkit.recipe.schema import QUANTIZED_FILE_TYPES
from toolkit.recipe.section import nearest
from toolkit.run.places import cache_home
from toolkit.setup.bootstrap import LLAMA_CPP_PYTHON, LLAMA_CPP_SHA256, unpack_tree

if TYPE_CHECKING:
    from toolkit.export.imatrix_file import Imatrix

PROJECT = Path(__file__).resolve().parents[2]
_WARNING, _ERROR, _CONTINUED = 3, 4, 5  # ggml_log_level
_PLANNED = re.compile(r"\[ *\d+/ *\d+\] +(\S+) +- \[.*\], type = +(\w+), size = .*?(?:\((\w+)\))?$")
_FALLBACKS = re.compile(r"(\d+) of (\d+) tensor\(s\) required fallback quantization")


def tree() -> Path:
    """The unpacked llama.cpp tree in the cache: `convert_hf_to_gguf.py`, `gguf-py`, vocabularies, templates.

    Unpacked from the cached source distribution when it is not there yet.

    Raises:
        ExternalToolError: neither is there.
    """
    folder = cache_home() / "llama.cpp" / LLAMA_CPP_PYTHON
    if (folder / "convert_hf_to_gguf.py").is_file():
        return folder
    source = cache_home() / "sources" / f"llama_cpp_python-{LLAMA_CPP_PYTHON}.tar.gz"
    if not source.is_file() or folder.exists():
        missing = folder / "convert_hf_to_gguf.py" if folder.exists() else source
        raise ExternalToolError(f"llama.cpp's converter is not here: {missing} is missing", "Run: make setup")
    from filelock import FileLock

    if cached_sha256(source) != LLAMA_CPP_SHA256:
        raise ExternalToolError(
            f"{source} is not the pinned one (SHA-256 {LLAMA_CPP_SHA256})", "Remove it and run: make setup"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f"{LLAMA_CPP_PYTHON}.lock")):
        return unpack_tree(source, cache_home())


@functools.cache
def known_architectures() -> frozenset[str]:
    """What the pinned converter can convert, as `architectures` of a config.json names it; read from its own list, not run."""
    program = ast.parse((tree() / "conversion" / "__init__.py").read_text(encoding="utf-8"))
    lists = {ast.unparse(node.target): node.value for node in program.body if isinstance(node, ast.AnnAssign)}
    return frozenset(ast.literal_eval(ast.unparse(lists["TEXT_MODEL_MAP"] or ast.Dict([], []))))


def converter_environment(source: Path) -> dict[str, str]:
    """Environment of a process that runs the tree's converter: its own gguf-py first, nothing fetched, no card started."""
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(source / "gguf-py"), str(source), str(PROJECT)]),
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "CUDA_VISIBLE_DEVICES": "",  # nothing is computed on a card; its start takes seconds
    }


def ask_converter(folder: Path, out: Path, only: Literal["", "architecture", "projector"] = "") -> None:
    """Ask the pinned converter what it makes of a model folder; the answer is written into `out`.

    See `toolkit.models.layout`, which calls this and reads the answer.

    Args:
        only: what is asked besides the file of the language model: what llama.cpp calls it, or the file that sees.

    Raises:
        DataError: an architecture or tokenizer that it does not know.
        ExternalToolError: it is missing, or fails otherwise; with its last lines.
    """
    run_in_tree("layout_worker", str(folder), str(out), *([f"--{only}"] if only else []))


def run_in_tree(worker: str, *arguments: str) -> None:
    """Run a module of this folder with the tree's own libraries; see `toolkit.export.tree_process`.

    Raises:
        DataError, ExternalToolError: as `converter_fault` tells what it died of.
    """
    with tree_worker(worker, *arguments, environment=converter_environment(tree())) as process:
        told = process.stderr.read().decode("utf-8", "replace")
        if process.wait():
            raise converter_fault(told.splitlines())


def converter_fault(lines: list[str]) -> DataError | ExternalToolError:
    """What the converter died of, told from its last lines."""
    text = "\n".join(lines)
    if match := re.search(r"Model (\S+) is not supported|Architecture '(\S+)' not supported", text):
        name = match[1] or match[2]
        return DataError(f"llama.cpp does not know the architecture {name}", "Choose another base model.")
    if "pre-tokenizer was not recognized" in text:
        return DataError(
            "llama.cpp does not know this tokenizer's pre-tokenizer", "Choose a base whose tokenizer was not changed."
        )
    last = "\n".join(f"  {line}" for line in [line for line in lines if line.strip()][-6:])
    return ExternalToolError(
        f"llama.cpp's converter failed; its last lines:\n{last}"
        if last
        else "llama.cpp's converter failed without a word",
        "Run again with --debug; if it stays, try: make setup",
    )


def reads_key(key: str, architecture: str) -> bool:
    """Whether the pinned llama.cpp reads a key of a GGUF's metadata: the library holds its name."""
    spelled = f"%s.{key.removeprefix(architecture + '.')}" if key.startswith(f"{architecture}.") else key
    return b"\0" + spelled.encode() + b"\0" in _library_bytes()


@functools.cache
def _library_bytes() -> bytes:
    folder = Path(str(library().__file__)).parent / "lib"
    return b"".join(path.read_bytes() for path in sorted(folder.glob("*llama.*")) if not path.is_symlink())


def library() -> Any:
    """The module `llama_cpp`.

    Raises:
        ExternalToolError: it is not installed, or does not load here.
    """
    try:
        import llama_cpp
    except (ImportError, OSError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ExternalToolError(f"llama-cpp-python does not load: {reason}", "Run: make setup") from error
    return llama_cpp


@contextmanager
def captured_log(on_line: Callable[[str], None] | None = None) -> Iterator[list[str]]:
    """Keep llama.cpp quiet; gives the list of warnings and errors (last 50), and every line to `on_line`."""
    llama = library()
    problems: list[str] = []
    level_now, pending = 0, ""

    @llama.llama_log_callback  # type: ignore[untyped-decorator]
    def collect(level: int, text: bytes, _data: ctypes.c_void_p) -> None:
        nonlocal level_now, pending
        level_now = level if level != _CONTINUED else level_now
        # llama.cpp writes a line in pieces.
        *lines, pending = (pending + text.decode("utf-8", "replace")).split("\n")
        for line in lines:
            if level_now in {_WARNING, _ERROR} and line.strip():
                problems.append(line.strip())
                del problems[:-50]
            if on_line is not None:
                on_line(line)

    llama.llama_log_set(collect, ctypes.c_void_p(0))
    try:
        yield problems
    finally:
        from llama_cpp._logger import llama_log_callback

        llama.llama_log_set(llama_log_callback, ctypes.c_void_p(0))


def file_type_number(file_type: str) -> int:
    """llama.cpp's number (`llama_ftype`) of a quantized file type, asked from the library.

    Raises:
        UsageError: unknown, or one that this project does not make; with the nearest spelling.
    """
    if file_type not in QUANTIZED_FILE_TYPES:
        raise UsageError(
            f"{file_type} is no quantization{nearest(file_type, QUANTIZED_FILE_TYPES)}",
            f"Choose one of: {', '.join(QUANTIZED_FILE_TYPES)}.",
        )
    return int(getattr(library(), f"LLAMA_FTYPE_MOSTLY_{file_type}"))


@dataclass(frozen=True)
class QuantizerPlan:
    """What llama.cpp's quantizer would make of a file."""

    types: dict[str, str]
    """Tensor → its type, as ggml spells it in capitals; in the order of the file."""
    fallback_tensors: int
    """That cannot take the file type's own quantization."""


def ask_quantizer(source: Path, file_type: str, matrix: Imatrix | None = None) -> QuantizerPlan:
    """Ask llama.cpp's quantizer which type it would give to each tensor, in this process.

    Args:
        source: an F32, F16 or BF16 file, or its head with a hole for the data, which is not read.
        matrix: what the rounding's errors are weighed with: some types are chosen otherwise then.

    Raises:
        UsageError: an unknown file type.
        ExternalToolError: llama.cpp refuses, with its reason.
    """
    llama = library()
    parameters = llama.llama_model_quantize_default_params()
    parameters.ftype = file_type_number(file_type)
    parameters.dry_run = True
    if matrix is not None:
        weighed = importance_list(matrix)  # C reads it until it is done
        parameters.imatrix = weighed
    types: dict[str, str] = {}
    fallbacks = 0

    def read(line: str) -> None:
        nonlocal fallbacks
        if match := _PLANNED.search(line):
            types[match[1]] = (match[3] or match[2]).upper()
        if match := _FALLBACKS.search(line):
            fallbacks = int(match[1])

    with captured_log(read) as problems:
        failed = llama.llama_model_quantize(str(source).encode(), b"never-written", ctypes.byref(parameters))
    if failed:
        reason = problems[-1].removeprefix("llama_model_quantize: ") if problems else "no reason given"
        raise ExternalToolError(f"llama.cpp could not quantize to {file_type}: {reason}", "Try: tune2ollama doctor")
    return QuantizerPlan(types, fallbacks)


def importance_list(matrix: Imatrix) -> Any:
    """The list that llama.cpp takes; the names and numbers that it points to stay alive with it."""
    llama = library().llama_cpp
    made = (llama.llama_model_imatrix_data * (len(matrix.means) + 1))()  # the last one, without a name, ends it
    for place, (name, means) in enumerate(matrix.means.items()):
        data = means.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        made[place] = llama.llama_model_imatrix_data(name.encode(), data, means.size)
    return made
