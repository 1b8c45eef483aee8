"""The engines that start a training in several processes: torchrun on a CPU, Accelerate's launcher on cards.

With the configuration that is written for them, and what can be known to fail before anything starts. Imports no torch.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import yaml

from toolkit.errors import ExternalToolError, ResourceError, ToolkitError, UsageError
from toolkit.recipe.training import Train
from toolkit.run.hardware import Hardware

WORKER = "toolkit.train.worker"
_MEET = ("c10d", "store_type=file")
"""The launcher and its processes meet in a file of this user's, not at a port."""


def check_processes(train: Train, hardware: Hardware) -> list[ToolkitError]:
    """What this machine lacks for `train.distributed`; empty when it can be started."""
    if train.distributed == "none":
        return []
    if not hardware.gpu_memory_bytes:
        if train.distributed == "ddp":
            return []
        return [
            UsageError(
                f"train.distributed: {train.distributed} needs NVIDIA cards, and there is none here: on a CPU it would be left "
                "out without a word",
                "On a CPU: --set train.distributed=ddp",
            )
        ]
    faults: list[ToolkitError] = []
    if train.num_processes > hardware.cards:
        faults.append(
            ResourceError(
                f"train.num_processes is {train.num_processes}, a card each, and there "
                f"{'is 1 card' if hardware.cards == 1 else f'are {hardware.cards} cards'} here",
                f"--set train.num_processes={hardware.cards}"
                if hardware.cards > 1
                else "--set train.distributed=none --set train.num_processes=1",
            )
        )
    if train.distributed.startswith("zero") and importlib.util.find_spec("deepspeed") is None:
        faults.append(
            ExternalToolError(
                f"train.distributed: {train.distributed} needs DeepSpeed, which is not installed",
                "Install it: .venv/bin/python -m pip install deepspeed. Or without: --set train.distributed=fsdp",
            )
        )
    return faults


def torchrun_arguments(train: Train, logs: Path, order: Path) -> list[str]:
    """For `torch.distributed.run`, on a CPU."""
    backend, told = _MEET
    return [
        f"--nproc-per-node={train.num_processes}", f"--rdzv-backend={backend}", f"--rdzv-conf={told}",
        "--local-addr=127.0.0.1", f"--log-dir={logs}", "--max-restarts=0", "-m", WORKER, str(order),
    ]  # fmt: skip


def accelerate_arguments(config: Path, logs: Path, order: Path) -> list[str]:
    """For `accelerate launch`, on cards."""
    backend, told = _MEET
    return [
        f"--config_file={config}", "--main_process_port=0", f"--rdzv_backend={backend}", f"--rdzv_conf={told}",
        f"--log_dir={logs}", "--max_restarts=0", "-m", WORKER, str(order),
    ]  # fmt: skip


def accelerate_config(train: Train) -> dict[str, Any]:
    """A configuration as Accelerate reads it (`accelerate.commands.config.config_args.ClusterConfig`).

    Mixed precision is not in it: the trainer is told by the recipe.
    """
    common = {
        "compute_environment": "LOCAL_MACHINE",
        "machine_rank": 0,
        "num_machines": 1,
        "num_processes": train.num_processes,
        "same_network": True,
        "use_cpu": False,
    }
    match train.distributed:
        case "fsdp":
            return {
                "distributed_type": "FSDP",
                **common,
                "fsdp_config": {
                    "fsdp_version": 2,
                    "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
                    "fsdp_reshard_after_forward": True,
                    "fsdp_state_dict_type": "FULL_STATE_DICT",
                    "fsdp_cpu_ram_efficient_loading": False,
                    "fsdp_offload_params": False,
                    "fsdp_activation_checkpointing": False,  # by train.gradient_checkpointing, once
                },
            }
        case "zero2" | "zero3":
            return {
                "distributed_type": "DEEPSPEED",
                **common,
                "deepspeed_config": {
                    "zero_stage": int(train.distributed[-1]),
                    "gradient_accumulation_steps": train.gradient_accumulation_steps,
                    "gradient_clipping": train.max_grad_norm,
                    "offload_optimizer_device": "none",
                    "offload_param_device": "none",
                    "zero3_init_flag": False,
                    "zero3_save_16bit_model": True,
                },
            }
        case _:
            return {"distributed_type": "MULTI_GPU", **common}


def write_config(train: Train, path: Path) -> Path:
    """Write `accelerate_config` as YAML; gives `path`."""
    path.write_text(yaml.safe_dump(accelerate_config(train), sort_keys=False), encoding="utf-8")
    return path
