"""The adapter's part of a recipe: which kind is trained, on which layers, and what cannot be, with the reason."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import Field, field_validator, model_validator

from toolkit.recipe.section import Section

ALL_SEVEN_PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
OF_VOCABULARY = ("embed_tokens", "wte", "embed_in", "word_embeddings", "lm_head", "embed_out")
"""What embedding and output head are called in most families."""

PARTS = (
    "finetune_vision_layers", "finetune_language_layers", "finetune_attention_modules", "finetune_mlp_modules",
)  # fmt: skip
"""Which layers of a base that sees are among an adapter's targets, as Unsloth spells it."""

Kind = Literal["LORA", "IA3", "LOHA", "LOKR"]
Start = Literal["gaussian", "pissa", "olora"]
_VIRTUAL = (
    "PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "ADAPTION_PROMPT", "CPT", "CARTRIDGE",
    "PROMPT", "PREFIX", "PTUNING",
)  # fmt: skip
_MIXED = ("POLY", "XLORA")
_KEYS: dict[str, tuple[str, ...]] = {
    "LORA": ("r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora", "init_lora_weights"),
    "IA3": ("feedforward_modules",),
    "LOHA": ("r", "alpha"),
    "LOKR": ("r", "alpha", "decompose_both", "decompose_factor"),
}
"""Kind → the keys that it has beside `target_modules` and `modules_to_save`."""


def without_merge(kind: str) -> str:
    """Why an adapter of this kind of PEFT's cannot be exported, and what to take instead; empty where it can."""
    kind = kind.upper().replace("-", "_")
    if kind in _VIRTUAL:
        return (
            f"{kind} adds virtual tokens before every prompt and changes no weight, so no merge and no GGUF can hold it. "
            "Take LORA; where few weights shall be trained, IA3"
        )
    if kind in _MIXED:
        return f"{kind} mixes several adapters by what is asked, so it has no merge. Take LORA"
    return ""


class Lora(Section):
    """The adapter, as PEFT's configurations spell it."""

    peft_type: Kind = "LORA"
    """LORA: two thin matrices a layer (Hu et al. 2021, arXiv 2106.09685). IA3: a vector a layer, the fewest weights (Liu et al.
    2022, arXiv 2205.05638). LOHA, LOKR: products of two such pairs, or of small blocks (Yeh et al. 2023, arXiv 2309.14859)."""
    r: Annotated[int, Field(gt=0)] = 16
    lora_alpha: Annotated[int, Field(gt=0)] = 16
    """Of LORA: what it learnt acts with lora_alpha / r."""
    alpha: Annotated[int, Field(gt=0)] = 16
    """Of LOHA and LOKR: the same."""
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    target_modules: list[str] | Literal["all-linear"] = ALL_SEVEN_PROJECTIONS
    feedforward_modules: list[str] | None = None
    """Of IA3: those of `target_modules` whose input is scaled, not their output; None: down_proj, where it is one of them."""
    modules_to_save: list[str] = []
    """Trained whole beside the adapter, e.g. [embed_tokens, lm_head]; where a base has one matrix for both, it stays one."""
    finetune_vision_layers: bool = True
    """Of a base that sees: whether the layers of what sees are among the targets, its merger with them (as Unsloth spells it)."""
    finetune_language_layers: bool = True
    finetune_attention_modules: bool = True
    finetune_mlp_modules: bool = True
    """What is not attention is the MLP's: the merger too."""
    use_rslora: bool = False
    """Scale by lora_alpha / √r (Kalajdzievski 2023, arXiv 2312.03732): for a high r."""
    use_dora: bool = False
    """Train length and direction of the weights apart (Liu et al. 2024, arXiv 2402.09353): better at a low r, slower."""
    init_lora_weights: Literal[True] | Start = True
    """true: as PEFT has it, B = 0. gaussian: A by another distribution. pissa, olora: with the base's largest singular
    directions, or its orthogonal ones, which are taken out of the base for training (arXiv 2404.02948, 2406.01775): learns
    faster. Not with method qlora."""
    decompose_both: bool = False
    """Of LOKR: the left factor is of low rank too."""
    decompose_factor: Annotated[int, Field(ge=-1)] = -1
    """Of LOKR: the size of the left factor; -1: as square as it goes."""

    @field_validator("peft_type", mode="before")
    @classmethod
    def _known(cls, value: Any) -> Any:
        if value in get_args(Kind) or not isinstance(value, str):
            return value
        reason = without_merge(value) or (
            f"{value} is not trained here, only {', '.join(get_args(Kind))}. An adapter of another kind that has a merge can be "
            "exported where another tool trained it: tune2ollama export FOLDER"
        )
        raise ValueError(reason)

    @field_validator("init_lora_weights", mode="before")
    @classmethod
    def _start(cls, value: Any) -> Any:
        if value is True or value in get_args(Start):
            return value
        raise ValueError(
            f"{value!r} is no start that is known here: true, {', '.join(get_args(Start))}. Starts by chance, by data or by "
            "gradients change the base's weights in a way that the adapter does not tell"
        )

    @model_validator(mode="after")
    def _of_its_kind(self) -> Lora:
        own = _KEYS[self.peft_type]
        strange = [
            key
            for key in dict.fromkeys(key for keys in _KEYS.values() for key in keys)
            if key not in own and getattr(self, key) != Lora.model_fields[key].default
        ]
        if strange:
            raise ValueError(
                f"{', '.join(strange)}: {self.peft_type} has no such key; it has {', '.join([*own, *_COMMON])}"
            )
        if self.start and self.use_dora:
            raise ValueError(f"init_lora_weights: {self.start} does not go with use_dora: no LoRA says what they learn")
        both = set(self.modules_to_save) & set(self.target_modules if isinstance(self.target_modules, list) else [])
        if both:
            raise ValueError(f"{', '.join(sorted(both))}: in target_modules or in modules_to_save, not in both")
        outside = [m for m in self.feedforward_modules or [] if m not in self.target_modules]
        if outside and isinstance(self.target_modules, list):
            raise ValueError(f"feedforward_modules: {', '.join(outside)} is not among target_modules")
        return self

    @property
    def start(self) -> str:
        """How the adapter begins, where that takes a part of the base's weights (`toolkit.models.changed_base`); else empty."""
        return "" if self.init_lora_weights in (True, "gaussian") else str(self.init_lora_weights)

    def told(self, on_nf4: bool) -> str:
        """The kind of adapter and its size, for people: LoRA, r = 16, alpha = 16."""
        kind = {"LORA": "DoRA" if self.use_dora else "LoRA", "IA3": "IA3", "LOHA": "LoHa", "LOKR": "LoKr"}[
            self.peft_type
        ]
        how = f"Q{kind} (base in NF4)" if on_nf4 and kind == "LoRA" else kind + (" on a base in NF4" if on_nf4 else "")
        if self.peft_type != "IA3":
            how += f", r = {self.r}, alpha = {self.lora_alpha if self.peft_type == 'LORA' else self.alpha}"
        more = ["rsLoRA"] if self.use_rslora else []
        more += [f"start {self.init_lora_weights}"] if self.init_lora_weights is not True else []
        more += [f"{', '.join(self.modules_to_save)} whole"] if self.modules_to_save else []
        return ", ".join([how, *more])

    @property
    def vocabulary_modules(self) -> list[str]:
        """Of `target_modules` and `modules_to_save`, those that are embedding or output head by their names."""
        named = [*self.modules_to_save, *(self.target_modules if isinstance(self.target_modules, list) else [])]
        return [name for name in named if name.rpartition(".")[2] in OF_VOCABULARY]

    @property
    def parts(self) -> dict[str, bool]:
        """The four switches, as Unsloth spells them."""
        return {key: getattr(self, key) for key in PARTS}

    def settings(self) -> dict[str, Any]:
        """The arguments of PEFT's configuration of this kind."""
        found = {key: getattr(self, key) for key in (*_KEYS[self.peft_type], *_COMMON)}
        if not self.modules_to_save:
            found["modules_to_save"] = None
        if self.peft_type == "IA3" and self.feedforward_modules is None:
            named = self.target_modules
            found["feedforward_modules"] = ["down_proj"] if "down_proj" in named or named == "all-linear" else []
        return found


_COMMON = ("target_modules", "modules_to_save")


class Tokens(Section):
    """Tokens that the base does not have."""

    add: list[str] = []
    """Each becomes one token: the tokenizer knows it, embedding and head get a row for it, and these rows are trained."""

    @field_validator("add")
    @classmethod
    def _possible(cls, value: list[str]) -> list[str]:
        for token in value:
            if not token or token != token.strip():
                raise ValueError(f"{token!r} cannot be a token: write it without space around it")
            if value.count(token) > 1:
                raise ValueError(f"{token!r} is named twice")
        return value
