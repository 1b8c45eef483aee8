"""The schema of a recipe: the only one of the project. Keys keep the spelling of PEFT, TRL and bitsandbytes.

`toolkit.recipe.reading` reads a YAML file into a `Recipe`; stages only ever see a resolved, frozen `Recipe`.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import ByteSize, Field, field_validator, model_validator

from toolkit.recipe.lora import Lora, Tokens
from toolkit.recipe.rows import Data
from toolkit.recipe.section import Section, nearest
from toolkit.recipe.together import faults_of_adapter, faults_of_knobs
from toolkit.recipe.training import SAMPLED, Train

QUANTIZED_FILE_TYPES = (
    "Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q5_1", "Q5_0", "Q4_K_M", "Q4_K_S", "Q4_1", "Q4_0",
    "IQ4_XS", "IQ4_NL", "Q3_K_L", "Q3_K_M", "Q3_K_S", "Q2_K",
    "IQ3_XS", "IQ3_XXS", "IQ2_M",
)  # fmt: skip
NEED_IMATRIX = ("IQ3_XS", "IQ3_XXS", "IQ2_M")
"""File types with tensors that llama.cpp refuses to round without an importance matrix."""
CONVERTED_FILE_TYPES = ("F32", "F16", "BF16")
FILE_TYPES = CONVERTED_FILE_TYPES + QUANTIZED_FILE_TYPES
AUTO = "auto"
BOUNDS = ("max_bytes", "max_kl", "min_kept")
"""Keys of `export` by which `serve: auto` chooses."""

OLLAMA_NAME = re.compile(
    r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}(/[A-Za-z0-9][A-Za-z0-9._-]{0,79})*(:[A-Za-z0-9_][A-Za-z0-9._-]{0,79})?"
)


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

    onto: Literal["as trained", "16-bit", "auto"] = "as trained"
    """as trained: for QLoRA, the dequantized NF4 weights; 16-bit: the original weights, which the adapter never saw; auto: the
    one on which the loss of held-out rows is lower."""
    folder: bool = False
    """Write the merged model as a folder too, for vLLM and other programs that read one, and certify it with the rest."""

    @property
    def chosen(self) -> Literal["as trained", "16-bit"]:
        """As stages see it: they are given what `auto` came to (`toolkit.run.stages.call_stage`)."""
        return "16-bit" if self.onto == "16-bit" else "as trained"


class Export(Section):
    """The GGUF files to make, and the one that Ollama gets."""

    file_types: list[str] = ["F16", "Q8_0", "Q4_K_M"]
    serve: str = "Q8_0"
    """One of `file_types`, or auto: the smallest of their files that passes."""
    max_bytes: ByteSize | None = None
    """With serve: auto: a file of so many bytes at most ("4.5GB" goes too); where nothing else is asked, the nearest of those."""
    max_kl: Annotated[float, Field(gt=0)] | None = None
    """With serve: auto: the smallest whose mean KL divergence from the tuned model is at most so many nats a token."""
    min_kept: Annotated[float, Field(gt=0, le=1)] | None = None
    """With serve: auto: the smallest that keeps this share of what tuning gained; see docs/certificate.md."""
    imatrix: bool | str = False
    """Quantize with an importance matrix: true measures one on rows of the training split; or a file of llama.cpp's
    `llama-imatrix` (GGUF)."""

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

    @model_validator(mode="after")
    def _goes_together(self) -> Export:
        bounds = [key for key in BOUNDS if getattr(self, key) is not None]
        if bounds and self.serve != AUTO:
            raise ValueError(f"{bounds[0]} chooses among file_types: it goes with serve: auto, not {self.serve}")
        needy = [t for t in self.file_types if t in NEED_IMATRIX]
        if needy and self.imatrix is False:
            raise ValueError(f"{needy[0]} cannot be made without an importance matrix: export.imatrix: true, or a file")
        return self

    @property
    def measures_imatrix(self) -> bool:
        """Whether the run measures an importance matrix of its own: one that is used."""
        return self.imatrix is True and bool(self.quantized)

    @property
    def converted(self) -> str:
        """The file type of 16 or 32 bits whose values all others are quantized from."""
        return next((t for t in self.file_types if t in CONVERTED_FILE_TYPES), "F16")

    @property
    def makes_converted(self) -> bool:
        """Whether a file of that type is needed: it is asked for, or an importance matrix is measured with it."""
        return self.converted in self.file_types or self.measures_imatrix

    def settings_to_make(self, file_type: str) -> str:
        """The option of the command line with which this file type is made, too."""
        return f"--set export.file_types=[{','.join([file_type, *self.file_types])}]"

    def settings_to_serve(self, file_type: str) -> str:
        """Options of the command line with which this file type is served."""
        made = "" if file_type in self.file_types else f"{self.settings_to_make(file_type)} "
        return f"{made}--set export.serve={file_type}"

    @property
    def quantized(self) -> list[str]:
        """The file types that are quantized."""
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
