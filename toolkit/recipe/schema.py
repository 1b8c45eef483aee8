"""The schema of a recipe: the only one of the project. Keys keep the spelling of PEFT, TRL and bitsandbytes.

`toolkit.recipe.reading` reads a YAML file into a `Recipe`; stages only ever see a resolved, frozen `Recipe`.
"""

from __future__ import annotations

import difflib
import re
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, field_validator, model_validator

from toolkit.recipe.lora import Lora, Tokens, without_merge
from toolkit.recipe.section import Section
from toolkit.recipe.together import faults_of_adapter, faults_of_knobs

QUANTIZED_FILE_TYPES = (
    "Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q5_1", "Q5_0", "Q4_K_M", "Q4_K_S", "Q4_1", "Q4_0",
    "IQ4_XS", "IQ4_NL", "Q3_K_L", "Q3_K_M", "Q3_K_S", "Q2_K",
)  # fmt: skip
CONVERTED_FILE_TYPES = ("F32", "F16", "BF16")
FILE_TYPES = CONVERTED_FILE_TYPES + QUANTIZED_FILE_TYPES
AUTO = "auto"

Objective = Literal["sft", "grpo", "dpo", "orpo", "kto", "simpo", "reward", "rloo", "pretrain"]
"""What training learns from, and how; see `toolkit.train.methods`."""
SAMPLED = ("grpo", "rloo")
"""Objectives that learn from answers of the model's own, by rewards."""
SHARDED = ("fsdp", "zero3")
"""Of `train.distributed`: each process holds a part of the weights."""

OLLAMA_NAME = re.compile(
    r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}(/[A-Za-z0-9][A-Za-z0-9._-]{0,79})*(:[A-Za-z0-9_][A-Za-z0-9._-]{0,79})?"
)


def nearest(word: str, known: list[str] | tuple[str, ...]) -> str:
    """' (did you mean X?)' for the closest known spelling, or an empty text."""
    found = difflib.get_close_matches(word.lower(), [k.lower() for k in known], n=1, cutoff=0.5)
    return next((f" (did you mean {k}?)" for k in known if found and k.lower() == found[0]), "")


class Columns(Section):
    """Which columns of the user's file hold what; None: found by their names, else by what is in them."""

    prompt: str | None = None
    completion: str | None = None
    thinking: str | None = None
    """The thought before the answer, where a column holds it; a `<think>…</think>` in the answer itself is found without."""
    label: str | None = None
    """Whether the answer is a good one: true or false, or what `Reading.labels` says."""

    @field_validator("*", mode="before")
    @classmethod
    def _by_position(cls, value: Any) -> Any:
        # Columns without a header are called 1, 2, …
        return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


FORMATS = Literal["auto", "columns", "alpaca", "messages", "sharegpt", "preference", "unpaired", "text"]


class Reading(Section):
    """How a file, or a folder of files, is read."""

    path: str = ""
    """A file, a folder of files (encodings may differ from file to file), or hub:OWNER/NAME@COMMIT."""
    format: FORMATS = "auto"
    """What the rows of a file are (see `toolkit.data.formats`); auto: told from each file's columns and first rows."""
    columns: Columns = Columns()
    encoding: str | None = None
    """Of the files that have no byte-order mark and are not UTF-8 (gb18030, big5, cp1252 …); None: told from their bytes."""
    header: bool | Annotated[int, Field(gt=0)] | None = None
    """Of tables: true: the first line; false: there is none, columns are called 1, 2, …; a number: that line; None: found."""
    sheet: str | None = None
    """Of a workbook; None: the one with the most rows, and those that have the same columns."""
    labels: dict[str, bool] = {}
    """Of answers that are judged: which words in the column of labels mean a good answer (gut: true, schlecht: false); rows with
    other words are dropped. Empty: true and false, 1 and 0 or -1, yes and no, good and bad, 好 and 坏."""

    @field_validator("labels", mode="before")
    @classmethod
    def _words(cls, value: Any) -> Any:
        # YAML reads stars and yes as a number and a boolean.
        return {str(key): said for key, said in value.items()} if isinstance(value, dict) else value

    @field_validator("encoding")
    @classmethod
    def _known_encoding(cls, value: str | None) -> str | None:
        try:
            if value is not None:
                "".encode(value)
        except LookupError:
            known = ["utf-8", "gb18030", "gbk", "big5", "utf-16-le", "utf-16-be", "cp1252", "euc_kr", "shift_jis"]
            raise ValueError(f"{value!r} is no encoding{nearest(str(value), known)}, e.g. {', '.join(known)}") from None
        return value


class Source(Reading):
    """One of several sources of rows."""

    name: str = ""
    """Written into each of its rows; empty: the path's last part."""
    weight: Annotated[float, Field(ge=0)] | None = None
    """Its share among the sources that have a weight: the largest mix with these shares is taken, no row twice."""
    count: Annotated[int, Field(gt=0)] | None = None
    """So many of its rows at most."""

    @model_validator(mode="after")
    def _possible(self) -> Source:
        if not self.path:
            raise ValueError("a source needs a path")
        if self.weight is not None and self.count is not None:
            raise ValueError(f"{self.path}: give a weight or a count, not both")
        return self

    @property
    def called(self) -> str:
        """Its name, or what stands for it."""
        return self.name or re.split(r"[/\\]", self.path.rstrip("/\\"))[-1].partition("@")[0].partition(".")[0]


FOUND = Literal["boilerplate", "cut", "html", "personal"]
"""What is looked for in rows, and dropped on request only; see `toolkit.data.findings`."""


class Data(Reading):
    """Where the rows are and which are kept."""

    sources: list[Source] = []
    """Instead of `path`: several, mixed by weight or by count."""
    learn: Literal["all", "last"] = "all"
    """Of a conversation: every answer, or the last."""
    system: Literal["recipe", "row", "both"] = "recipe"
    """recipe: the recipe's system text in every row; row: the row's own, and the recipe's where it has none; both: the
    recipe's, then the row's own."""
    tags: bool = False
    """An answer in GSM8K's form, `steps #### result`, is written as <reasoning>steps</reasoning><answer>result</answer>, the form
    that rewards look for; rows without `####` are dropped."""
    remove: list[FOUND] = []
    """Drop the rows in which these are found; without, they are only reported."""
    language: str = "en"
    """Two-letter code, for the model's metadata; rows that are plainly Chinese, or plainly not, overrule it."""
    max_characters: Annotated[int, Field(gt=0)] | None = None
    """Pairs (prompt + completion) with more characters are dropped."""
    max_rows: Annotated[int, Field(gt=0)] | None = None
    """Keep at most so many rows of the training split, chosen by their content, not their place."""
    validation: Annotated[float, Field(ge=0, lt=1)] = 0.05
    test: Annotated[float, Field(ge=0, lt=1)] = 0.05
    max_dropped: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Stop when a larger share of the rows than this is dropped."""

    @model_validator(mode="after")
    def _one_place(self) -> Data:
        if bool(self.path) == bool(self.sources):
            raise ValueError("give a path, or several sources, not both" if self.path else "path is missing")
        told_here = [k for k, f in Reading.model_fields.items() if k != "path" and getattr(self, k) != f.default]
        if self.sources and told_here:
            raise ValueError(f"{', '.join(told_here)}: say it of each of the sources")
        names = [source.called for source in self.sources]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"sources: two are called {twice!r}: give them names")
        weights = [source.weight for source in self.sources if source.weight is not None]
        if weights and sum(weights) == 0:
            raise ValueError("sources: the weights sum to zero, so no row would be taken: give one a weight above 0")
        return self

    @property
    def readings(self) -> list[Source]:
        """The sources; where there is a path alone, it is the only one, without a name."""
        if self.sources:
            return self.sources
        return [Source(**{key: getattr(self, key) for key in Reading.model_fields})]

    @property
    def place(self) -> str:
        """For messages."""
        return self.path or ", ".join(source.path for source in self.sources)


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
    """Compute in bfloat16 (bnb_4bit_compute_dtype too)."""
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


class Earlier(Section):
    """Training before the recipe's own: the same adapter is trained on, so that one adapter comes out."""

    data: Data
    train: Train
    """What is left out is as in the recipe's own `train`, but for `NOT_HANDED_ON`."""


NOT_HANDED_ON = {
    "objective", "max_steps", "num_train_epochs", "learning_rate", "beta", "rewards", "packing", "neftune_noise_alpha",
    "early_stopping_patience", "eval_steps",
}  # fmt: skip
"""Keys of `train` that each of the `earlier` steps has for itself."""


class Golden(Section):
    """The prompts that the proof is about."""

    prompts: list[str] | str | None = None
    """Prompts, or a text file with one a line; never part of the training split."""
    from_test: Annotated[int, Field(ge=0)] = 0
    """So many prompts of the data's test split besides."""
    max_new_tokens: Annotated[int, Field(gt=0)] = 96
    answers_from: str | None = None
    """A GGUF file whose greedy answers the reference logits are about, where the tuned model itself is too large for this
    machine's memory: its logits can be computed a layer at a time, its answers cannot."""


class Merge(Section):
    """What the adapter is merged onto."""

    onto: Literal["as trained", "16-bit"] = "as trained"
    """as trained: for QLoRA, the dequantized NF4 weights; 16-bit: the original weights, which the adapter never saw."""


class Export(Section):
    """The GGUF files to make, and the one that Ollama gets."""

    file_types: list[str] = ["F16", "Q8_0", "Q4_K_M"]
    serve: str = "Q8_0"
    """One of `file_types`, or auto: the smallest of their files that passes."""

    @field_validator("file_types")
    @classmethod
    def _known(cls, value: list[str]) -> list[str]:
        for file_type in value:
            if file_type not in FILE_TYPES:
                known = ", ".join(FILE_TYPES)
                raise ValueError(f"{file_type} is no file type{nearest(file_type, FILE_TYPES)}; known: {known}")
        if not value or len(set(value)) != len(value):
            raise ValueError("name at least one file type, each once")
        return value

    @model_validator(mode="after")
    def _served_is_made(self) -> Export:
        if self.serve != AUTO and self.serve not in self.file_types:
            raise ValueError(
                f"serve: {self.serve} is not among file_types {self.file_types}{nearest(self.serve, self.file_types)}"
            )
        return self

    @property
    def converted(self) -> str:
        """The file type that the converter writes and that all others are quantized from."""
        return next((t for t in self.file_types if t in CONVERTED_FILE_TYPES), "F16")

    @property
    def quantized(self) -> list[str]:
        """The file types that are made from the converted file."""
        return [t for t in self.file_types if t != self.converted]


class Evaluate(Section):
    """How it is measured whether training helped, and what was forgotten."""

    rows: Annotated[int, Field(ge=0)] = 16
    """Held-out rows that are asked for answers, at most; 0: only losses are measured."""
    max_new_tokens: Annotated[int, Field(gt=0)] | None = None
    """Of an answer at most; None: as golden.max_new_tokens."""
    forgetting: bool = True
    """Whether general texts and questions are read too."""


class Ollama(Section):
    """What is published."""

    model: str
    modelfile: str | None = None
    """A partial Modelfile (PARAMETER, LICENSE, MESSAGE …) that the tool completes; None: a minimal one."""

    @field_validator("model")
    @classmethod
    def _name(cls, value: str) -> str:
        if not OLLAMA_NAME.fullmatch(value):
            raise ValueError(
                f"{value!r} is no Ollama model name: letters, digits, '.', '_' and '-', with an optional :tag, e.g. medical:v2"
            )
        return value


class Recipe(Section):
    """One model, from rows to `ollama run`. All paths are relative to the folder the command runs in."""

    name: str
    """Names runs/<name>."""
    profile: str = "none"
    """Filled in when the recipe is resolved."""
    base: str
    """embedded:smollm2-135m-instruct, a folder, or a hub id with @revision."""
    system: str = ""
    """The system text: trained with, verified with, and served; its one place."""
    license: str = "other"
    """Licence of the tuned model's data, for the model's metadata; the base's own is added."""
    data: Data | None = None
    """What to train on; None where `adapter` is given."""
    adapter: str | None = None
    """A PEFT folder that another tool trained, instead of training here (`tune2ollama export`)."""
    then: list[str] = []
    """With `adapter`: further PEFT folders, each trained on the model with those before it merged in."""
    load_in_4bit: bool | None = None
    """With `adapter`: whether it was trained on the base in NF4. PEFT does not record it; None: told from the base's name."""
    earlier: dict[str, Earlier] = {}
    """Steps of training before `train`, in order: a warm-up on the format before grpo, sft before dpo, pretrain before sft. A
    step's name is in those of its stages: prepare-NAME, train-NAME."""
    train: Train = Train()
    lora: Lora = Lora()
    tokens: Tokens = Tokens()
    golden: Golden = Golden(from_test=16)
    merge: Merge = Merge()
    export: Export = Export()
    evaluate: Evaluate = Evaluate()
    ollama: Ollama

    @field_validator("name")
    @classmethod
    def _folder_name(cls, value: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}", value):
            raise ValueError(f"{value!r} cannot name a folder: use letters, digits, '.', '_' and '-'")
        return value

    @model_validator(mode="before")
    @classmethod
    def _hand_on(cls, tree: Any) -> Any:
        """Give each earlier step what it leaves out of the recipe's own `train`."""
        if not isinstance(tree, dict) or not isinstance(tree.get("earlier"), dict):
            return tree
        own = tree.get("train")
        common = {k: v for k, v in own.items() if k not in NOT_HANDED_ON} if isinstance(own, dict) else {}
        return {**tree, "earlier": {name: _with_train(step, common) for name, step in tree["earlier"].items()}}

    def at(self, step: str) -> Recipe:
        """The recipe as one of its earlier steps sees it: its own data and `train`; "" for the recipe's own training.

        Golden prompts stay, so that no step is trained on them; none is taken from its test split.
        """
        if not step:
            return self
        found = self.earlier[step]
        golden = self.golden.model_copy(update={"from_test": 0})
        return self.model_copy(update={"data": found.data, "train": found.train, "golden": golden, "earlier": {}})

    @model_validator(mode="after")
    def _possible(self) -> Recipe:
        faults = [*_of_objectives(self), *faults_of_adapter(self), *faults_of_knobs(self)]
        if self.golden.prompts is None and self.golden.from_test == 0:
            faults.append("golden: give prompts, or from_test above 0: without them nothing can be proved")
        if self.data is None and self.adapter is None:
            faults.append("data is missing: give it a path to train on, or name a trained adapter")
        if self.data is not None and self.adapter is not None:
            faults.append("give data to train on, or an adapter that is trained already, not both")
        if self.then and self.adapter is None:
            faults.append("then names adapters that were trained on top of another: give that one as adapter")
        if self.then and self.load_in_4bit:
            faults.append(
                "then goes with adapters of a 16-bit base: what was rounded to NF4 on the way is not known. Merge the first "
                "alone (tune2ollama export A --upto merge), and export the second with --base runs/<name>/merge"
            )
        if self.data is None and self.golden.prompts is None:
            faults.append("golden.prompts is needed where there is no data")
        if self.data is not None and self.data.validation + self.data.test >= 1:
            faults.append("data.validation + data.test leave nothing to train on")
        if self.golden.from_test and self.data is not None and self.data.test == 0:
            faults.append("golden.from_test needs data.test above 0")
        if faults:
            raise ValueError("; ".join(faults))
        return self


def _with_train(step: Any, common: dict[str, Any]) -> Any:
    if not isinstance(step, dict) or not isinstance(step.get("train", {}), dict):
        return step
    return {**step, "train": {**common, **step.get("train", {})}}


def _of_objectives(recipe: Recipe) -> list[str]:
    """What does not go together, of the objectives of all steps."""
    steps = [*((f"earlier.{name}: ", step.train) for name, step in recipe.earlier.items()), ("", recipe.train)]
    faults = []
    trained = False
    rewarded = False
    if wrong := [name for name in recipe.earlier if not re.fullmatch(r"[a-z][a-z0-9]{0,19}", name)]:
        faults.append(f"earlier: {wrong[0]!r} cannot name a step: use small letters and digits, e.g. format")
    if recipe.earlier and recipe.adapter is not None:
        faults.append("earlier names training before the recipe's own; an adapter is trained already")
    if recipe.train.objective == "reward":
        faults.append(
            "train.objective: reward makes a judge of answers, nothing to chat with, and the converter writes no such model. "
            "Put it into earlier, before train.objective: rloo (docs/methods.md)"
        )
    for where, train in steps:
        objective = train.objective
        if objective in SAMPLED and not train.rewards and not (objective == "rloo" and rewarded):
            needs = "train.rewards" + (", or an earlier step with objective reward" if objective == "rloo" else "")
            faults.append(f"{where}train.objective: {objective} needs {needs}")
        if objective in SAMPLED and train.rows_a_step % train.num_generations:
            faults.append(
                f"{where}train.num_generations: {train.num_generations} answers to a prompt do not divide the "
                f"{train.rows_a_step} of a step (per_device_train_batch_size × gradient_accumulation_steps × num_processes)"
            )
        if objective == "kto" and train.per_device_train_batch_size < 2:
            faults.append(
                f"{where}train.objective: kto needs per_device_train_batch_size above 1: it compares within a batch"
            )
        if objective == "reward" and train.method == "full":
            faults.append(f"{where}train.objective: reward trains an adapter: train.method lora")
        if objective in ("dpo", "kto") and train.method == "full" and trained:
            faults.append(
                f"{where}train.objective: {objective} after another step needs an adapter: train.method lora or qlora"
            )
        rewarded = rewarded or objective == "reward"
        trained = trained or objective != "reward"
    if recipe.train.objective == "pretrain" and recipe.golden.from_test and recipe.golden.prompts is None:
        faults.append("golden.prompts is needed with train.objective: pretrain: plain text asks nothing")
    methods = {train.method for _, train in steps if train.objective != "reward"}
    if len(methods) > 1:
        faults.append(
            f"earlier steps and train hold weights in different ways ({', '.join(sorted(methods))}): one for all"
        )
    return faults
