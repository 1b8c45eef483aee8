"""The part of a recipe that says what is trained, and how."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import Field, field_validator, model_validator

from toolkit.recipe.lora import without_merge
from toolkit.recipe.section import Section, nearest

Objective = Literal["sft", "grpo", "dpo", "orpo", "kto", "simpo", "reward", "rloo", "pretrain"]
"""What training learns from, and how; see `toolkit.train.methods`."""
SAMPLED = ("grpo", "rloo")
"""Objectives that learn from answers of the model's own, by rewards."""
SHARDED = ("fsdp", "zero3")
"""Of `train.distributed`: each process holds a part of the weights."""

Reporter = Literal["none", "tensorboard", "wandb", "trackio", "swanlab", "mlflow"]
REPORTERS = get_args(Reporter)

_SAID_ALREADY = ("messages", "tools", "documents", "add_generation_prompt", "bos_token", "eos_token", "strftime_now")
"""What a template is given by whoever renders it."""


class Train(Section):
    """As TRL's configurations spell them, and how the base is loaded."""

    method: Literal["qlora", "lora", "full"] = "qlora"
    """How weights are held: an adapter on the base in NF4, an adapter on the base in 16 bits or more, or every weight trained."""
    objective: Objective = "sft"
    beta: Annotated[float, Field(ge=0)] | None = None
    """How strongly the model is held to where it began (dpo, kto, grpo, rloo), or the weight of the preference (orpo, simpo);
    None: as TRL has it, for simpo 2.0 (Meng et al. 2024, arXiv 2405.14734)."""
    num_generations: Annotated[int, Field(ge=2)] = 6
    """Of grpo and rloo: answers to each prompt, compared with each other."""
    max_completion_length: Annotated[int, Field(ge=8)] = 256
    """Of grpo and rloo: tokens of an answer at most."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Of grpo and rloo: how freely answers are sampled."""
    use_vllm: bool = False
    """Of grpo and rloo: sample with vLLM, on a card where it is installed."""
    rewards: list[str] = []
    """Of grpo and rloo: functions of `toolkit.train.rewards`, or of the file that --rewards names; their sum is what counts."""
    per_device_train_batch_size: Annotated[int, Field(gt=0)] = 2
    gradient_accumulation_steps: Annotated[int, Field(gt=0)] = 4
    distributed: Literal["none", "ddp", "fsdp", "zero2", "zero3"] = "none"
    """What several processes, a card each, divide among them (docs/scale.md): rows (ddp), optimizer and gradients too (zero2, by
    DeepSpeed), weights too (fsdp, zero3). On a CPU ddp only."""
    num_processes: Annotated[int, Field(gt=0)] = 1
    """With `distributed`: how many. A step learns from the rows of all of them."""
    num_train_epochs: Annotated[float, Field(gt=0)] = 3.0
    max_steps: Annotated[int, Field(ge=-1)] = -1
    """-1: as many as the epochs need."""
    learning_rate: Annotated[float, Field(gt=0, lt=1)] = 2e-4
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "linear"
    warmup_steps: Annotated[int, Field(ge=0)] = 5
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    optim: Literal["adamw_torch", "adamw_8bit", "paged_adamw_8bit"] = "adamw_torch"
    max_length: Annotated[int, Field(ge=32)] = 512
    """Tokens of prompt + answer. A longer row is left out and listed, never cut: a cut answer has no end token."""
    train_sampling_strategy: Literal["random", "group_by_length"] = "random"
    packing: bool = False
    """Of sft and pretrain: several rows behind each other in a sequence of `max_length` tokens, none of which sees another; for a
    card and many short rows."""
    neftune_noise_alpha: Annotated[float, Field(gt=0)] | None = None
    """Of sft and pretrain: noise on the embeddings while training (Jain et al. 2023, arXiv 2310.05914), e.g. 5: longer and freer
    answers."""
    loraplus_lr_ratio: Annotated[float, Field(ge=1)] | None = None
    """B learns so many times faster than A (LoRA+: Hayou et al. 2024, arXiv 2402.12354), e.g. 16, at a lower `learning_rate`."""
    loraplus_lr_embedding: Annotated[float, Field(gt=0, lt=1)] = 1e-6
    """With `loraplus_lr_ratio`: the learning rate of a LoRA on an embedding."""
    early_stopping_patience: Annotated[int, Field(gt=0)] | None = None
    """Stop when the loss of the held-out rows was not lower in so many looks; what is kept is the step where it was lowest."""
    eval_steps: Annotated[int, Field(gt=0)] | None = None
    """Steps between two looks at the held-out rows; None: `save_steps`, where `early_stopping_patience` needs them."""
    bf16: bool = False
    """Compute in bfloat16 (bnb_4bit_compute_dtype too). On a CPU the products of layers with an adapter, where the processor has
    them; elsewhere float32."""
    gradient_checkpointing: bool = False
    bnb_4bit_use_double_quant: bool = True
    chat_template: str | None = None
    """A Jinja file to train, verify and serve with instead of the base's own template, e.g. recipes/tools.jinja for a base whose
    own takes no functions."""
    chat_template_kwargs: dict[str, Any] = {}
    """What the chat template is told wherever it is rendered, e.g. {enable_thinking: false}; of adapters made elsewhere, too."""
    logging_steps: Annotated[int, Field(gt=0)] = 1
    save_steps: Annotated[int, Field(gt=0)] = 20
    seed: int = 3407
    report_to: Reporter | list[Reporter] = "none"
    """Who else is told each step, one or a list. Their keys are in the environment, or where they keep them: none has a place
    here."""

    @field_validator("method", mode="before")
    @classmethod
    def _no_kind(cls, value: Any) -> Any:
        if isinstance(value, str) and (reason := without_merge(value)):
            raise ValueError(reason)
        return value

    @field_validator("report_to", mode="before")
    @classmethod
    def _reporters(cls, value: Any) -> Any:
        named = value if isinstance(value, list) else [value]
        for name in named:
            if name not in REPORTERS:
                raise ValueError(
                    f"{name!r} is nobody to report to{nearest(str(name), REPORTERS)}: {', '.join(REPORTERS)}"
                )
        if isinstance(value, list) and ("none" in named or len(set(named)) < len(named)):
            raise ValueError("name each reporter once; none stands alone")
        return value

    @property
    def reporters(self) -> list[str]:
        """`report_to` as a list; empty for none."""
        named = self.report_to if isinstance(self.report_to, list) else [self.report_to]
        return [name for name in named if name != "none"]

    @property
    def looks_every(self) -> int | None:
        """Steps between two looks at the held-out rows while training; None: there are none."""
        if self.eval_steps is None and self.early_stopping_patience is None:
            return None
        return self.eval_steps or self.save_steps

    @property
    def rows_a_step(self) -> int:
        """Rows (of grpo and rloo: answers) that a step learns from, over all processes."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps * self.num_processes

    @model_validator(mode="after")
    def _in_processes(self) -> Train:
        """What does not go together with `distributed`; sources in docs/scale.md."""
        how, number = self.distributed, self.num_processes
        if how == "none" and number > 1:
            raise ValueError(f"num_processes: {number} processes need distributed: ddp, fsdp, zero2 or zero3")
        if how != "none" and number == 1:
            raise ValueError(f"distributed: {how} needs num_processes above 1, as many as there are cards")
        if how in SHARDED and self.method == "qlora":
            raise ValueError(
                f"distributed: {how} cuts weights into parts, and a base in NF4 loses on the way how it is to be read: "
                "distributed: ddp or zero2 with method: qlora, or method: lora"
            )
        if how == "fsdp" and self.optim != "adamw_torch":
            raise ValueError(
                f"distributed: fsdp cuts weights into parts that optim: {self.optim} cannot read: optim: adamw_torch"
            )
        return self

    @field_validator("chat_template_kwargs")
    @classmethod
    def _plain(cls, value: dict[str, Any]) -> dict[str, Any]:
        for name, told in value.items():
            if not name.isidentifier() or name in _SAID_ALREADY:
                raise ValueError(f"{name!r} is nothing that a chat template can be told here")
            if told is not None and not isinstance(told, bool | int | float | str):
                raise ValueError(f"{name}: a template is told true, false, a number or a text, not {told!r}")
        return value
