"""What can be said of several processes before any is started: recipes, machines, and what the engines read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env
from pydantic import ValidationError

from toolkit.errors import ExternalToolError, ResourceError, ToolkitError, UsageError
from toolkit.recipe.schema import Recipe
from toolkit.recipe.training import Train
from toolkit.run.hardware import Hardware
from toolkit.run.processes import own_environment
from toolkit.train.engines import WORKER, accelerate_arguments, accelerate_config, check_processes, write_config
from toolkit.train.memory import settings_to_lower

DOCS = Path(__file__).parents[2] / "docs"
LAPTOP = Hardware(2, 24 * 2**30, 20 * 2**30, "", 0)
TWO_CARDS = Hardware(8, 64 * 2**30, 60 * 2**30, "NVIDIA L4", 24 * 2**30, 2)


def together(how: str, **more: Any) -> Train:
    return Train(**{"method": "lora", "distributed": how, "num_processes": 2, **more})


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"num_processes": 2}, "num_processes: 2 processes need distributed: ddp, fsdp, zero2 or zero3"),
        ({"distributed": "ddp"}, "distributed: ddp needs num_processes above 1"),
        ({"distributed": "ddp", "num_processes": 0}, "greater than 0"),
        ({"distributed": "zero1", "num_processes": 2}, "'none', 'ddp', 'fsdp', 'zero2' or 'zero3'"),
        ({"distributed": "fsdp", "num_processes": 2}, "a base in NF4 loses on the way how it is to be read"),
        ({"distributed": "zero3", "num_processes": 2}, "distributed: ddp or zero2 with method: qlora, or method: lora"),
        ({"distributed": "fsdp", "num_processes": 2, "method": "lora", "optim": "adamw_8bit"}, "optim: adamw_torch"),
        (
            {"distributed": "fsdp", "num_processes": 2, "method": "full", "optim": "paged_adamw_8bit"},
            "optim: adamw_torch",
        ),
    ],
)
def test_what_cannot_be_is_refused_when_the_recipe_is_read(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(told)):
        Train(**settings)


@pytest.mark.parametrize("method", ["qlora", "lora", "full"])
@pytest.mark.parametrize("how", ["ddp", "zero2"])
def test_what_leaves_the_base_whole_takes_every_method(how: str, method: str) -> None:
    assert together(how, method=method, optim="adamw_8bit").rows_a_step == 2 * 4 * 2


def test_answers_of_all_processes_are_compared() -> None:
    def grpo(**train: Any) -> Recipe:
        common = {"objective": "grpo", "rewards": ["answer"], "gradient_accumulation_steps": 1, "method": "lora",
                  "per_device_train_batch_size": 3}  # fmt: skip
        tree = {"name": "x", "base": "b", "data": {"path": "rows.csv"}, "ollama": {"model": "x"}}
        return Recipe.model_validate({**tree, "train": common | train})

    assert grpo(distributed="ddp", num_processes=2).train.rows_a_step == 6
    with pytest.raises(ValidationError, match=r"6 answers to a prompt do not divide the 3 of a step"):
        grpo()


def test_earlier_steps_are_divided_as_the_recipe_is() -> None:
    data = {"path": "rows.csv"}
    tree = {"name": "x", "base": "b", "data": data, "ollama": {"model": "x"}, "earlier": {"warm": {"data": data}}}
    made = Recipe.model_validate({**tree, "train": {"distributed": "ddp", "num_processes": 2}})
    assert made.at("warm").train.num_processes == 2


def faults(train: Train, hardware: Hardware) -> list[tuple[type[ToolkitError], str]]:
    return [(type(fault), fault.message) for fault in check_processes(train, hardware)]


def test_a_machine_without_cards_takes_ddp_alone() -> None:
    assert faults(Train(), LAPTOP) == faults(together("ddp"), LAPTOP) == []
    for how in ("fsdp", "zero2", "zero3"):
        ((kind, message),) = faults(together(how), LAPTOP)
        assert kind is UsageError
        assert message == (
            f"train.distributed: {how} needs NVIDIA cards, and there is none here: on a CPU it would be left out without a word"
        )


def test_a_process_needs_a_card() -> None:
    assert faults(together("ddp"), TWO_CARDS) == faults(together("fsdp"), TWO_CARDS) == []
    (fault,) = check_processes(together("ddp", num_processes=4), TWO_CARDS)
    assert isinstance(fault, ResourceError)
    assert fault.message == "train.num_processes is 4, a card each, and there are 2 cards here"
    assert fault.hint == "--set train.num_processes=2"


def test_deepspeed_that_is_not_here_is_said_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("toolkit.train.engines.importlib.util.find_spec", lambda _: None)
    (fault,) = check_processes(together("zero2"), TWO_CARDS)
    assert isinstance(fault, ExternalToolError)
    assert fault.message == "train.distributed: zero2 needs DeepSpeed, which is not installed"
    assert "python -m pip install deepspeed" in fault.hint


@pytest.mark.parametrize("how", ["ddp", "fsdp", "zero2", "zero3"])
def test_accelerate_reads_the_configuration(how: str, tmp_path: Path) -> None:
    path = write_config(together(how), tmp_path / "accelerate.yaml")
    # Its class refuses a key that it does not know.
    read = load_config_from_file(str(path))
    assert isinstance(read, ClusterConfig)
    expected = {"ddp": "MULTI_GPU", "fsdp": "FSDP"}.get(how, "DEEPSPEED")
    assert (read.distributed_type.value, read.num_processes) == (expected, 2)
    arguments = launch_command_parser().parse_args(
        accelerate_arguments(path, tmp_path / "logs", tmp_path / "order.json")
    )
    told, _, _ = _validate_launch_command(arguments)
    assert (told.module, told.training_script, told.num_processes) == (True, WORKER, 2)
    assert (told.rdzv_backend, told.rdzv_conf, told.max_restarts) == ("c10d", "store_type=file", 0)
    told.deepspeed_fields_from_accelerate_config = ""
    env = prepare_deepspeed_cmd_env(told)[1] if expected == "DEEPSPEED" else prepare_multi_gpu_env(told)
    wanted = {
        "ddp": {"ACCELERATE_USE_FSDP": None, "ACCELERATE_USE_DEEPSPEED": None},
        "fsdp": {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_RESHARD_AFTER_FORWARD": "true",
                 "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT", "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
                 "FSDP_OFFLOAD_PARAMS": "false", "FSDP_CPU_RAM_EFFICIENT_LOADING": "false"},
    }.get(how, {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": how[-1],
                "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4", "ACCELERATE_GRADIENT_CLIPPING": "1.0",
                "ACCELERATE_DEEPSPEED_ZERO3_INIT": "false", "ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL": "true"})  # fmt: skip
    assert {name: env.get(name) for name in wanted} == wanted


def test_the_documented_configurations_are_those_that_are_written() -> None:
    blocks = re.findall(
        r"^```yaml\n(.*?)^```$", (DOCS / "scale.md").read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    assert [yaml.safe_load(block) for block in blocks if "distributed_type" in block] == [
        accelerate_config(together(how)) for how in ("ddp", "fsdp", "zero2")
    ]


def test_the_rented_machine_runs_the_recipe() -> None:
    task = yaml.safe_load((DOCS / "sky-medical.yaml").read_text(encoding="utf-8"))
    # The fields as SkyPilot's own schema has them; docs/scale.md says which version loaded the file.
    assert set(task) == {"name", "resources", "workdir", "envs", "setup", "run"}
    assert set(task["resources"]) == {"accelerators", "cpus", "memory", "disk_size", "autostop"}
    assert task["workdir"] == "." and task["run"].startswith("make medical ") and "make setup" in task["setup"]


def test_what_an_engine_left_in_the_environment_reaches_no_stage() -> None:
    left = {
        "RANK": "3",
        "WORLD_SIZE": "8",
        "MASTER_ADDR": "elsewhere",
        "ACCELERATE_USE_FSDP": "true",
        "FSDP_VERSION": "1",
    }
    assert own_environment({**left, "HOME": "/home/somebody"}) == {"HOME": "/home/somebody"}


def test_memory_that_runs_out_on_cards_is_shared_where_it_can_be() -> None:
    def advice(profile: str, **train: Any) -> str:
        tree = {"name": "x", "base": "b", "profile": profile, "data": {"path": "rows.csv"}, "ollama": {"model": "x"}}
        return "\n".join(settings_to_lower(Recipe.model_validate({**tree, "train": train})))

    ddp = {"distributed": "ddp", "num_processes": 2, "method": "lora"}
    assert "--set train.distributed=fsdp" in advice("gpu-24gb", **ddp)
    assert "fsdp" not in advice("cpu", **ddp) and "fsdp" not in advice("gpu-24gb", **ddp | {"method": "qlora"})
    # What it proposes can be read.
    sharded = advice("gpu-24gb", **ddp | {"distributed": "fsdp"})
    assert "qlora" not in sharded and "8bit" not in sharded
