"""The processes that train together: which of them this is, and whether they are those that the recipe asks for.

Each has the whole recipe and does the same; the first alone writes files and is seen. See `toolkit.train.together`.
"""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch.distributed import FileStore  # type: ignore[attr-defined]

from toolkit.errors import ExternalToolError
from toolkit.recipe.training import SHARDED, Train

PATIENCE = timedelta(hours=2)
"""For one that is still at work; one that ended is noticed at once, by the engine."""


def join(store: Path) -> None:
    """Meet the others that an engine started, as its environment says (RANK, WORLD_SIZE, LOCAL_RANK; see torchrun).

    They meet in a file, and talk over the loopback interface: torch's own meeting point listens to the whole network, and
    believes everybody.
    """
    if "WORLD_SIZE" not in os.environ:
        return
    here, processes, on_card = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), torch.cuda.is_available()
    os.environ["GLOO_SOCKET_IFNAME"] = os.environ["NCCL_SOCKET_IFNAME"] = "lo"
    if on_card:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    else:
        # Accelerate numbers a CPU, and torch cannot load an optimizer's states to such a place.
        torch.serialization.register_package(
            100, lambda _: None, lambda stored, place: stored if place.startswith("cpu:") else None
        )
    torch.distributed.init_process_group(
        backend="cuda:nccl,cpu:gloo" if on_card else "gloo",
        store=FileStore(str(store), processes), rank=here, world_size=processes, timeout=PATIENCE,
    )  # fmt: skip


def leave() -> None:
    """Part from the others."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def number() -> int:
    """Which of them this process is, from 0; 0 where it is alone."""
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


def is_first() -> bool:
    """Whether this is the process that writes files."""
    return number() == 0


def wait_for_all() -> None:
    """Go on when all have come so far."""
    if torch.distributed.is_initialized():
        torch.distributed.barrier()


def gathered(value: int) -> list[int]:
    """A number of each process, in their order."""
    if not torch.distributed.is_initialized():
        return [value]
    found: list[int] = [0] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(found, value)
    return found


def check_world(train: Train) -> None:
    """Raises ExternalToolError: there are not as many processes as the recipe asks for; engines say nothing of that."""
    found = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    _compare(train, found, "started")


def check_engine(train: Train, trainer: Any) -> None:
    """Raises ExternalToolError: the trainer is not divided as the recipe asks for; on a CPU FSDP is left out in silence."""
    _compare(train, trainer.accelerator.num_processes, "trains with")
    does = "fsdp" if trainer.is_fsdp_enabled else "zero" if trainer.is_deepspeed_enabled else ""
    asked = train.distributed if train.distributed in ("fsdp", "zero2", "zero3") else ""
    if does != asked.rstrip("23"):
        raise ExternalToolError(
            f"train.distributed is {train.distributed}, but the trainer does {does or 'without it'}",
            "Check the cards and the versions: tune2ollama doctor. Or --set train.distributed=ddp",
        )


def _compare(train: Train, found: int, what: str) -> None:
    if found != train.num_processes:
        raise ExternalToolError(
            f"train.num_processes is {train.num_processes}, but the engine {what} {found}: every step would learn from other "
            "rows than the recipe says",
            "Start it by the command, which starts the processes itself: tune2ollama train RECIPE",
        )


def whole_weights(trainer: Any, train: Train) -> dict[str, Any] | None:
    """The trained weights put together, on the first process's CPU, where each process holds a part of them; all must call it.
    None: each holds them whole."""
    if train.distributed not in SHARDED:
        return None
    found: dict[str, Any] = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    return found
