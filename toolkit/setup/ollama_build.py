"""Build a real Ollama from source: `python3 -m toolkit.setup.ollama_build [VERSION]` (standard library only).

For people and tests that have Go and a C++ compiler but no Ollama. Ollama comes as a Go module; the two programs of llama.cpp
that it calls, `llama-server` and `llama-quantize`, are compiled from the tree that set-up unpacked, and linked with the libraries
that set-up compiled of it; or for an Ollama that calls them in a way of its time, whole from the llama.cpp of that time. In the
cache folder:

    ollama/<version>/bin/ollama
    ollama/<version>/lib/ollama/{llama-server,llama-quantize}
    ollama/<version>/lib/llama.cpp/                            the libraries, where they are not inside the programs
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from toolkit.run.places import cache_home
from toolkit.setup.bootstrap import LLAMA_CPP_PYTHON, PORTABLE, SetupError, compiled_wheel, run, say

VERSION = "0.34.1"
"""The version that this project is measured with."""
MODULE = "github.com/ollama/ollama"
TOOLS = ("llama-server", "llama-quantize")
OFF = ("BUILD_SHARED_LIBS", "LLAMA_BUILD_UI", "LLAMA_USE_PREBUILT_UI", "LLAMA_OPENSSL", "LLAMA_BUILD_TESTS",
       "LLAMA_BUILD_EXAMPLES", "LLAMA_BUILD_APP")  # fmt: skip
"""Parts of llama.cpp that Ollama does not call; without them it builds offline."""
LIBRARIES = "llama.cpp"
"""Folder of the libraries beside that of the programs, which look for them there (llama_tools/CMakeLists.txt)."""
_DISK_BYTES = 3 * 2**30
_MADE_FROM = "llama.cpp-python.version"


class Pin(NamedTuple):
    """A source distribution of llama-cpp-python, which holds a llama.cpp tree."""

    version: str
    sha256: str


OF_THEIR_TIME = {
    (0, 30): Pin("0.3.24", "f610476c5c737366859dad2315ed7948b1580202f5d139bd0b3437718d6d7092"),
    (0, 31): Pin("0.3.32", "b06502361770f82eb08b7f1a192eb084b9ead2b88fe32cda8c397a2782eabde6"),
    (0, 32): Pin("0.3.33", "369ba03d02caaef42c1ed07bbdc454f7436e47c7675b8b9757fa13fbac6acd92"),
}
"""Ollama 0.30 to 0.32 start llama-server with `--no-mmap`, which the pinned llama.cpp refuses. Their LLAMA_CPP_VERSION names
b9452, b9840 and b9888; these trees were published within days of those. 0.33 and newer run with the pinned tree."""


def older_tree(version: str) -> Pin | None:
    """The llama.cpp that this Ollama needs, when it is not the pinned one."""
    major, minor = version.split(".")[:2]
    return OF_THEIR_TIME.get((int(major), int(minor)))


def missing(cache: Path) -> list[str]:
    """What a build needs and this machine lacks, each with the command that mends it."""
    faults = []
    if shutil.which("go") is None:
        faults.append("Go is missing: https://go.dev/dl, or on Debian and Ubuntu, apt-get install golang")
    if _tool("cmake") is None:
        faults.append("CMake is missing: .venv/bin/python -m pip install cmake ninja, or apt-get install cmake")
    elif _tool("ninja") is None and shutil.which("make") is None:
        faults.append("neither Ninja nor make is here: .venv/bin/python -m pip install ninja")
    if shutil.which(os.environ.get("CXX", "c++")) is None:
        faults.append("no C++ compiler (c++): on Debian and Ubuntu, apt-get install build-essential")
    if not _tree(cache).is_dir():
        faults.append(f"the llama.cpp tree is not in {_tree(cache)}: make setup")
    free = shutil.disk_usage(cache if cache.exists() else Path.home()).free
    if free < _DISK_BYTES:
        faults.append(f"{cache} has {free / 2**30:.1f} GiB free, a build needs {_DISK_BYTES / 2**30:.0f}")
    return faults


def _tool(name: str) -> str | None:
    # Beside this Python too: `pip install cmake` puts it into a virtual environment that need not be active.
    return shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))


def _tree(cache: Path) -> Path:
    return cache / "llama.cpp" / LLAMA_CPP_PYTHON


def build(version: str = VERSION) -> Path:
    """Build one version, unless it is there; whole, or not at all.

    Returns:
        Path of the `ollama` binary.

    Raises:
        SetupError: something is missing, or a step failed.
    """
    if not re.fullmatch(r"\d+\.\d+\.\d+(-rc\d+)?", version):
        raise SetupError(f"{version!r} is no version of Ollama; write it like: make ollama VERSION={VERSION}")
    home = cache_home() / "ollama"
    binary = home / version / "bin" / "ollama"
    if binary.is_file():
        say(f"Ollama {version} is built already: {binary}")
        return binary
    if faults := missing(cache_home()):
        raise SetupError("Ollama cannot be built here:\n  " + "\n  ".join(faults))
    home.mkdir(parents=True, exist_ok=True)
    with (home / "build.lock").open("w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for left in home.glob(".partial-*"):  # a build that was killed; under the lock, none is running
            shutil.rmtree(left, ignore_errors=True)
        if not binary.is_file():
            with tempfile.TemporaryDirectory(dir=home, prefix=".partial-") as scratch:
                made = Path(scratch) / version
                with ThreadPoolExecutor(1) as pool:  # the one downloads while the other compiles
                    ollama = pool.submit(_build_ollama, version, made)
                    _build_tools(made / "lib" / "ollama", Path(scratch), older_tree(version))
                    ollama.result()
                check(made / "bin" / "ollama", version)
                made.rename(home / version)
    return binary


def _build_ollama(version: str, made: Path) -> None:
    stamp = f"-X {MODULE}/version.Version={version}"
    environment = {"GOBIN": str(made / "bin"), "GOFLAGS": ""}
    run(f"build ollama {version}", ["go", "install", "-ldflags", stamp, f"{MODULE}@v{version}"], environment)


def _build_tools(folder: Path, scratch: Path, older: Pin | None) -> None:
    folder.mkdir(parents=True)
    made_from = older.version if older else LLAMA_CPP_PYTHON
    (folder / _MADE_FROM).write_text(made_from + "\n", encoding="utf-8")
    libraries = folder.parent / LIBRARIES
    for known in sorted((cache_home() / "ollama").glob(f"*/lib/ollama/{_MADE_FROM}")):
        if known.read_text(encoding="utf-8").strip() == made_from:
            say(f"llama-server was compiled before: taking {known.parent}")
            for tool in TOOLS:
                shutil.copy2(known.parent / tool, folder / tool)
            if (known.parents[1] / LIBRARIES).is_dir():
                shutil.copytree(known.parents[1] / LIBRARIES, libraries)
            return
    wheel = None if older else compiled_wheel(cache_home())
    if wheel is not None:
        _take_libraries(wheel, libraries)
        tree = _tree(cache_home())
        source, flags = Path(__file__).parent / "llama_tools", [f"-DTREE={tree}", f"-DLIBRARIES={libraries}"]
    else:
        source, flags = _unpacked(older, scratch) if older else _tree(cache_home()), [PORTABLE]
    made = scratch / "llama.cpp"
    cmake = str(_tool("cmake"))
    ninja = _tool("ninja")
    generator = ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"] if ninja else []
    flags += ["-DCMAKE_BUILD_TYPE=Release", *(f"-D{name}=OFF" for name in OFF)]
    run("configure llama-server", [cmake, "-S", source, "-B", made, *generator, *flags])
    jobs = os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL") or str(os.cpu_count() or 1)
    run("compile llama-server", [cmake, "--build", made, "--target", *TOOLS, "--parallel", jobs])
    for tool in TOOLS:
        shutil.copy2(made / "bin" / tool, folder / tool)


def _take_libraries(wheel: Path, folder: Path) -> None:
    folder.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.infolist():
            if member.filename.startswith("llama_cpp/lib/") and not member.is_dir():
                (folder / Path(member.filename).name).write_bytes(archive.read(member))


def _unpacked(pin: Pin, scratch: Path) -> Path:
    """The llama.cpp tree of an older source distribution, downloaded when the cache does not hold it."""
    name = f"llama_cpp_python-{pin.version}"
    source = cache_home() / "sources" / f"{name}.tar.gz"
    if not source.is_file() or _sha256(source) != pin.sha256:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(scratch)]
        named = f"llama-cpp-python=={pin.version}"
        run(f"download llama-cpp-python {pin.version}", [*command, "--no-binary", "llama-cpp-python", named])
        found = scratch / source.name
        if not found.is_file() or _sha256(found) != pin.sha256:
            raise SetupError(f"{source.name} is not the pinned one (SHA-256 {pin.sha256}): ask whoever runs your index")
        source.parent.mkdir(parents=True, exist_ok=True)
        found.replace(source)
    inside = f"{name}/vendor/llama.cpp"
    with tarfile.open(source) as archive:
        members = [member for member in archive.getmembers() if member.name.startswith(inside + "/")]
        if hasattr(tarfile, "data_filter"):  # refuses names and links that lead out of the folder
            archive.extractall(scratch, members, filter="data")
        else:
            archive.extractall(scratch, members)  # noqa: S202 (its SHA-256 is pinned)
    return scratch / inside


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def check(binary: Path, version: str) -> None:
    """Run what was built: the right version, and a llama-server that starts.

    Raises:
        SetupError: with what they said.
    """
    # An address where nothing listens, so that it speaks of itself and not of a running server.
    said = _said([str(binary), "--version"], {"OLLAMA_HOST": "127.0.0.1:9"})
    if version not in said:
        raise SetupError(f"{binary} was built, but says of itself: {said!r}")
    server = binary.parent.parent / "lib" / "ollama" / "llama-server"
    said = _said([str(server), "--version"], {})
    if "version" not in said:
        raise SetupError(f"{server} was built, but does not run: {said!r}")


def _said(command: list[str], environment: dict[str, str]) -> str:
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=False, env={**os.environ, **environment}
    )
    return f"{done.stdout}{done.stderr}".strip()


def main(arguments: list[str]) -> int:
    """Build, then say how to call it. Returns the exit code: 0, 2 (arguments), 5 (cannot), 130 (interrupted)."""
    if len(arguments) > 1:
        print("usage: python3 -m toolkit.setup.ollama_build [VERSION]", file=sys.stderr)
        return 2
    try:
        binary = build(*[argument for argument in arguments if argument])
    except SetupError as error:
        print(error, file=sys.stderr)
        return 5
    except KeyboardInterrupt:
        print("\nInterrupted; nothing half-built was left.", file=sys.stderr)
        return 130
    print(binary)
    if shutil.which("ollama") is None:
        print(f'To call it as ollama:  export PATH="{binary.parent}:$PATH"', file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
