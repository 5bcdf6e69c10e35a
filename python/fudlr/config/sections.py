"""The sections of a run's options as validated, frozen records.

Ranges are checked here, before any long work. Names that a table elsewhere owns (metrics,
curvatures, solvers, architectures) are checked where that table is.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

LLAMA_LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

Count = Annotated[int, Field(ge=1)]
NotNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(gt=0, le=1)]
OpenShare = Annotated[float, Field(gt=0, lt=1)]
Name = Annotated[str, Field(min_length=1)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]


class Record(BaseModel):
    """One section: unknown fields, NaN and truth values in place of numbers are refused."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        validate_default=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )

    @field_validator("*", mode="before")
    @classmethod
    def _no_bool_for_number(cls, value: Any, info: ValidationInfo) -> Any:
        # YAML reads `yes` and `on` as true, and Python takes true for 1.
        field = cls.model_fields[info.field_name or ""]
        if isinstance(value, bool) and field.annotation not in (bool, bool | None):
            raise ValueError("Input should not be true or false here")
        return value


class DataConfig(Record):
    """Which interactions, and how they become samples, groups and metrics."""

    source: Name = "ml-100k"
    """`ml-100k`, `synthetic`, or a file or folder in a form of `fudlr.data.READERS`."""
    columns: dict[Name, Name] = {}
    """Columns that are `user`, `item`, `time`, `title` or `genres` under names of their own; their
    numbers where a file has no header; `row` for the time where the rows stand in its order."""
    user_group: Name = "gender"
    """User column whose values are the groups of Hellinger and parity metrics."""
    item_group: Name = "genres"
    """Item column whose values are the item groups."""
    tail: OpenShare = 0.2
    """Share of most popular items that are not tail."""
    split: Literal["leave_last_out", "time"] = "leave_last_out"
    """Targets are each user's last two; or, at one time for all, what lies after the first 80% of
    all interactions."""
    max_train_per_user: Count = 8
    """Latest targets of each user that are trained on."""
    train_samples: Count | None = None
    """Training samples in all, drawn from those; without it every one."""
    prompt_users: Annotated[int, Field(ge=2)] | None = None
    """Users, drawn at random, whose prompts give gradients and figures; without it everyone."""
    pretrain_share: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Share of each user's history, oldest first, that stands in for pretraining."""
    window: Count = 20
    """Items of history that a sample shows the model, the latest ones."""
    k: Count = 10
    """Length of a recommendation list."""
    candidates: Annotated[int, Field(ge=2)] | Name | None = None
    """What each prompt chooses from beside the target: a number of items drawn at random, or a
    table of `user_id` and `item_id`; without it the whole catalogue."""

    @field_validator("columns", mode="before")
    @classmethod
    def _numbers_are_names(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {key: str(name) if type(name) is int else name for key, name in value.items()}


class ModelConfig(Record):
    """The base model: a folder of a Hugging Face causal LM, or a small Llama made on the spot."""

    base: Name = "small-llama"
    """`small-llama`, or the path of a model folder; the sizes below are the small Llama's."""
    device: Name = "auto"
    """Where it runs: `cpu`, `cuda` or `cuda:N`; `auto` is the first GPU where the library has
    kernels for it. No file depends on it: a run may be debiased on another device."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "float32"
    """Of the base model's weights; the adapter's are float32. `auto` is the model folder's own;
    float16 is for GPUs alone."""
    hidden: Count = 64
    layers: Count = 2
    heads: Count = 4
    kv_heads: Count = 4
    intermediate: Count = 128
    pretrain_epochs: Annotated[int, Field(ge=0)] | None = None
    """Passes over the users' older history before there is an adapter, in which all weights learn:
    6 of the small Llama's, none of a model folder's. Item tokens of a model folder need some (see
    docs/recommenders/item_tokens.md); a run's base has had them."""
    pretrain_learning_rate: Positive | None = None
    """3e-3 for the small Llama, 5e-5 for a model folder; its embeddings learn at 20 times that."""

    @field_validator("device")
    @classmethod
    def _is_a_device(cls, value: str) -> str:
        if not re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", value):
            raise ValueError("Input should be auto, cpu, cuda or cuda:N")
        return value

    @model_validator(mode="after")
    def _heads_fit(self) -> Self:
        if self.hidden % (2 * self.heads):
            raise ValueError(
                f"hidden ({self.hidden}) should be an even multiple of heads ({self.heads})"
            )
        if self.heads % self.kv_heads:
            raise ValueError(
                f"heads ({self.heads}) should be a multiple of kv_heads ({self.kv_heads})"
            )
        return self


class RecommenderConfig(Record):
    """How the language model recommends: a name of `fudlr.recommenders.RECOMMENDERS`, its words."""

    kind: Name = "item_tokens"
    template: Name | None = None
    """`tallrec`, `bigrec`, or a YAML file of one's own; without it the usual one of its kind."""
    max_tokens: Annotated[int, Field(ge=8)] = 512
    """Longest prompt; the oldest titles are left out beyond it, and counted."""
    negatives: Annotated[int, Field(ge=0)] = 1
    """yes_no: items drawn for each sample to be answered with no, beside its target's yes."""
    codes: Name | None = None
    """semantic_ids: JSON file of each item's codes; without it the column `codes` of the items."""
    train_codes: bool = True
    """semantic_ids: the codes' rows of embedding and output matrix are trained with the adapter."""


class LoraSettings(Record):
    """The adapter: y = x Wᵀ + scaling · (x Aᵀ) Bᵀ."""

    rank: Annotated[int, Field(ge=1, le=256)] = 8
    alpha: Positive = 16.0
    targets: Annotated[tuple[Name, ...], Field(min_length=1)] = LLAMA_LINEARS
    """Names of linear layers; `all-linear` alone is all of them but the output matrix."""
    adapter: Name | None = None
    """Folder of an adapter that was trained elsewhere, as `fudlr adopt` takes it; not trained."""

    @field_validator("targets", mode="before")
    @classmethod
    def _one_name(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("targets")
    @classmethod
    def _no_twice(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) < len(value):
            raise ValueError("Input should name each layer once")
        return value


class TrainConfig(Record):
    """Training of the adapter: Adam on (1/n) Σ ℓ_i + (l2/2)‖θ − θ₀‖²; a falling cosine of rates."""

    epochs: Count = 10
    learning_rate: Positive = 5e-3
    through: Literal["peft", "engine"] = "peft"
    """What makes a step's gradient: peft's own backward pass, or the engine's, which pays for no
    padding and for no logits but the answer's; the same to rounding. See docs/engine.md."""
    checkpointing: bool = False
    """Gradient checkpointing: less memory for a second forward pass."""
    checkpoint: Annotated[int, Field(ge=0)] = 0
    """Batches from one checkpoint to the next, from which a killed training goes on; 0 for none."""
    batch: Count = 256
    l2: NotNegative = 0.01
    """λ of the loss, centred on θ₀."""
    seed: Seed = 0

    @model_validator(mode="after")
    def _one_way_back(self) -> Self:
        if self.checkpointing and self.through == "engine":
            raise ValueError("checkpointing should be false with through engine, which has none")
        return self


class RecordConfig(Record):
    """The store of sketched per-sample gradients: what is recorded, and how much is kept."""

    epochs: Literal["all", "last", "none"] = "all"
    """While the adapter trains: all steps, for the unrolled update; the last epoch alone, for the
    closed form; or nothing (`fudlr record` takes a pass after it, for the closed form)."""
    energy: Share = 0.9
    """Share of each matrix's gradient energy to keep, by the fewest principal directions."""
    dtype: Literal["float32", "bfloat16", "int8"] = "int8"
    """Of the rows; int8 with a scale for every 128 numbers of a row ranks and updates as bfloat16
    does (docs/results.md), in half the bytes."""


class DebiasConfig(Record):
    """What should become fairer, and what may be removed for it.

    Which options go together is decided in `fudlr.pipeline.plan`.
    """

    objective: Name = "arp"
    """A metric, or a weighted sum such as `arp + 0.5*hellinger`."""
    budget: Share = 0.1
    """Largest share of the training samples that the mask may remove."""
    lambda_fair: NotNegative = 1.0
    """Weight of the objective's influence in a sample's score."""
    lambda_acc: NotNegative = 1.0
    """Weight of the influence on the validation loss."""
    lambda_spa: NotNegative = 0.0
    """Price of each removal."""
    also: tuple[Name, ...] = ()
    """Further metrics whose influences are written beside the objective's, or `val_loss`."""
    mask: Literal["threshold", "descent"] = "threshold"
    """The threshold rule, which is the mask objective's optimum, or gradient descent on it."""
    update: Literal["auto", "closed_form", "unrolled"] = "auto"
    """One step from the optimum, or the recorded training repeated without the masked samples;
    `auto` is unrolled where the store has the training and nothing else asks for a closed form."""
    newton_steps: Annotated[int, Field(ge=0)] = 0
    """Newton steps after the closed form; each is a pass over the samples and a solve."""
    curvature: Name = "empirical_fisher"
    """A name in `fudlr.influence.curvature.CURVATURES`."""
    damping: Positive | None = None
    """Absolute, added once to the curvature; without it, chosen from the λ of training."""
    solver: Name = "auto"
    """`cg` or `direct`; `auto` is direct where the curvature has a closed form, else `cg`."""
    rows: Literal["auto", "store", "memory", "stream"] = "auto"
    """Per-sample gradients as the run's store has them, kept in memory (n · d numbers), or computed
    again for each product. `auto`: the store where it can answer, else in memory."""
    store: Name | None = None
    """Folder of a store, or of bergson's index, to answer from instead of the run's own store."""
    candidates: Share = 1.0
    """Share of the training samples, drawn at random, that are scored and may be removed; below 1
    only without a store."""
    force: bool = False
    """Go on where a diagnostic refuses the update or its mask; see docs/diagnostics.md."""
    batch: Count = 256
    """Samples or prompts that go through the model together."""
