"""Options of a run as validated, frozen records, and their YAML form.

Ranges are checked here, before any long work. Names that a table elsewhere owns (metrics,
curvatures, solvers, architectures) are checked where that table is.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails

from fudlr.errors import UsageError
from fudlr.files import atomic_file

LLAMA_LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

Count = Annotated[int, Field(ge=1)]
NotNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(gt=0, le=1)]
OpenShare = Annotated[float, Field(gt=0, lt=1)]
Name = Annotated[str, Field(min_length=1)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]


class _Record(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False
    )

    @field_validator("*", mode="before")
    @classmethod
    def _no_bool_for_number(cls, value: Any, info: ValidationInfo) -> Any:
        # YAML reads `yes` and `on` as true, and Python takes true for 1.
        field = cls.model_fields[info.field_name or ""]
        if isinstance(value, bool) and field.annotation is not bool:
            raise ValueError("Input should not be true or false here")
        return value


class DataConfig(_Record):
    """Which interactions, and how they become samples, groups and metrics."""

    source: Name = "ml-100k"
    """`ml-100k`, `synthetic`, or a file or folder in a form of `fudlr.data.READERS`."""
    name: Name | None = None
    """File name without ending in a folder that holds several data sets."""
    form: Name | None = None
    """Form of the data, a name in `fudlr.data.READERS`; found by a look at the files without it."""
    columns: dict[Name, Name] = {}
    """Columns that are `user`, `item`, `time`, `title` or `genres` under names of their own."""
    ties: Literal["item", "file"] = "item"
    """Order of a user's interactions at the same time: by item, or as in the file."""
    user_group: Name = "gender"
    """User column whose values are the groups of Hellinger and parity metrics."""
    item_group: Name = "genres"
    """Item column whose values are the item groups."""
    tail: OpenShare = 0.2
    """Share of most popular items that are not tail."""
    max_train_per_user: Count = 8
    pretrain_share: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Share of each user's history, oldest first, that stands in for pretraining."""
    window: Count = 20
    """Items of history that a sample shows the model, the latest ones."""
    k: Count = 10
    """Length of a recommendation list."""


class ModelConfig(_Record):
    """The base model: a folder of a Hugging Face causal LM, or a small Llama made on the spot."""

    base: Name = "small-llama"
    """`small-llama`, or the path of a model folder; the sizes below are the small Llama's."""
    hidden: Count = 64
    layers: Count = 2
    heads: Count = 4
    kv_heads: Count = 4
    intermediate: Count = 128
    pretrain_epochs: Annotated[int, Field(ge=0)] = 6
    pretrain_learning_rate: Positive = 3e-3
    pretrain_batch: Count = 64

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


class LoraSettings(_Record):
    """The adapter: y = x Wᵀ + scaling · (x Aᵀ) Bᵀ."""

    rank: Annotated[int, Field(ge=1, le=256)] = 8
    alpha: Positive = 16.0
    targets: Annotated[tuple[Name, ...], Field(min_length=1)] = LLAMA_LINEARS
    rslora: bool = False
    """Scaling alpha / √rank instead of alpha / rank."""

    @field_validator("targets")
    @classmethod
    def _no_twice(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) < len(value):
            raise ValueError("Input should name each layer once")
        return value


class TrainConfig(_Record):
    """Training of the adapter: Adam on (1/n) Σ ℓ_i + (l2/2)‖θ − θ₀‖²."""

    epochs: Count = 10
    learning_rate: Positive = 5e-3
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    batch: Count = 256
    l2: NotNegative = 0.01
    """λ of the loss, centred on θ₀."""
    seed: Seed = 0


class DebiasConfig(_Record):
    """What should become fairer, and what may be removed for it."""

    objective: Name = "arp"
    """A metric, or a weighted sum such as `arp + 0.5*hellinger`."""
    budget: Share = 0.1
    """Largest share of the training samples that the mask may remove."""
    lambda_fair: NotNegative = 1.0
    lambda_acc: NotNegative = 1.0
    lambda_spa: NotNegative = 0.0
    curvature: Name = "empirical_fisher"
    damping: Positive | None = None
    """Absolute, added once to the curvature; without it, chosen from the λ of training."""
    solver: Name = "cg"
    max_steps: Count = 20
    """Iterations of the solver."""
    candidate_share: Share = 1.0
    """Share of the training samples that may be removed, drawn at random."""
    also: tuple[Name, ...] = ()
    """Further metrics whose influences are written beside the objective's."""
    rows: Literal["memory", "stream"] = "memory"
    """Per-sample gradients kept (n · d numbers), or computed again for each product."""
    curve: tuple[Share, ...] = (0.01, 0.02, 0.05, 0.1, 0.15, 0.2)
    """Budgets of the trade-off curve; empty for none."""
    heldout: bool = True
    """Measure on users that the gradient did not see, by twofold cross-fitting."""
    max_loss_rise: NotNegative = 0.02
    """Relative rise of the validation loss beyond which the report warns."""
    batch: Count = 256
    seed: Seed = 0

    @model_validator(mode="after")
    def _something_to_steer(self) -> Self:
        if self.lambda_fair == 0 and self.lambda_acc == 0:
            raise ValueError("lambda_fair and lambda_acc should not both be 0")
        return self


class RunConfig(_Record):
    """A whole run. `seed` is also training's and debiasing's where they set none of their own."""

    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    lora: LoraSettings = LoraSettings()
    train: TrainConfig = TrainConfig()
    debias: DebiasConfig = DebiasConfig()
    seed: Seed = 0
    out: Path = Path("out/run")

    @model_validator(mode="before")
    @classmethod
    def _hand_seed_down(cls, values: Any) -> Any:
        if not isinstance(values, Mapping) or "seed" not in values:
            return values
        handed = dict(values)
        for part in ("train", "debias"):
            section = handed.get(part, {})
            if isinstance(section, Mapping):
                handed[part] = {"seed": values["seed"], **section}
        return handed


def to_plain(config: RunConfig) -> dict[str, Any]:
    """The configuration as dictionaries, lists and scalars, as YAML and JSON hold it.

    Seeds of the parts that equal the run's are left out, so that a changed `seed` reaches them.
    """
    plain = config.model_dump(mode="json")
    for part in ("train", "debias"):
        if plain[part]["seed"] == plain["seed"]:
            del plain[part]["seed"]
    return plain


def load_config(path: Path) -> RunConfig:
    """Read and validate a YAML configuration; what it leaves out has its default.

    Raises:
        UsageError: The file is missing, is not YAML, or holds an unknown field or a value out of
            range; the message names each field with its dotted name.
    """
    asked = f"the configuration {path} was to be read"
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UsageError(asked, str(reason), "Name an existing, readable YAML file") from error
    except yaml.YAMLError as error:
        raise UsageError(
            asked, f"it is not valid YAML ({_one_line(str(error))})", "Mend the file"
        ) from error
    return _validated(asked, {} if values is None else values)


def dump_config(path: Path, config: RunConfig) -> None:
    """Write `config` as YAML that `load_config` reads back to an equal record."""
    text = yaml.safe_dump(to_plain(config), sort_keys=False, allow_unicode=True)
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def merge(config: RunConfig, overrides: Mapping[str, Any]) -> RunConfig:
    """A copy of `config` with dotted names set, such as `{"debias.budget": 0.05}`.

    Raises:
        UsageError: A name that does not exist, or a value out of range.
    """
    asked = "options were to be set"
    values = to_plain(config)
    for dotted, value in overrides.items():
        *parts, last = dotted.split(".")
        section = values
        for part in parts:
            child = section.get(part)
            if not isinstance(child, dict):
                raise UsageError(asked, _unknown(dotted), "Use one of the names that exist")
            section = child
        section[last] = str(value) if isinstance(value, Path) else value
    return _validated(asked, values)


def field_names() -> tuple[str, ...]:
    """Dotted names of all fields of a `RunConfig`."""
    names = []
    for name, field in RunConfig.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, _Record):
            names += [f"{name}.{inner}" for inner in kind.model_fields]
        else:
            names.append(name)
    return tuple(names)


def _validated(asked: str, values: Any) -> RunConfig:
    if not isinstance(values, Mapping):
        found = f"it holds {_shown(values)} where sections (data, model, train, …) are expected"
        raise UsageError(asked, found, "Write it as `section:` with indented `field: value` lines")
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        found = "; ".join(_explain(detail) for detail in error.errors())
        raise UsageError(asked, found, "Correct each field named, or leave it out") from error


def _explain(detail: ErrorDetails) -> str:
    dotted = ".".join(str(part) for part in detail["loc"])
    if detail["type"] == "extra_forbidden":
        return _unknown(dotted)
    message = detail["msg"].removeprefix("Value error, ")
    allowed = message.removeprefix("Input should ")
    if isinstance(detail["input"], Mapping):  # a rule between the fields of one section
        return f"in {dotted}, {message}"
    return f"{dotted} is {_shown(detail['input'])}, and should {allowed}"


def _unknown(dotted: str) -> str:
    close = difflib.get_close_matches(dotted, field_names(), n=3, cutoff=0.5)
    section = dotted.rpartition(".")[0]
    known = close or [name for name in field_names() if name.startswith(section)] or field_names()
    return f"{dotted} is not a field (there is {', '.join(known)})"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"


def _one_line(text: str) -> str:
    return " ".join(text.split())


class _Loader(yaml.SafeLoader):
    """Safe YAML that refuses a key given twice, of which PyYAML silently keeps the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """The mapping of `node`, its keys distinct."""
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"the key {key.value} is given twice", problem_mark=key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)
