"""All options of a run, and their YAML form."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from fudlr.common.errors import UsageError
from fudlr.common.files import write_text
from fudlr.config.sections import (
    DataConfig,
    DebiasConfig,
    LoraSettings,
    ModelConfig,
    RecommenderConfig,
    Record,
    RecordConfig,
    Seed,
    TrainConfig,
)

AFTER_TRAINING = (
    "data.source", "data.user_group", "data.item_group", "data.tail", "data.k",
    "data.prompt_users", "data.candidates", "model.device", "record", "debias",
)  # fmt: skip
"""Fields, and sections, that nothing in a run's training depends on: they can be set later."""
SHOWN = 5
"""Wrong fields that an error names."""


class RunConfig(Record):
    """A whole run. `seed` is also that of the training, where it sets none of its own."""

    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    recommender: RecommenderConfig = RecommenderConfig()
    lora: LoraSettings = LoraSettings()
    train: TrainConfig = TrainConfig()
    record: RecordConfig = RecordConfig()
    debias: DebiasConfig = DebiasConfig()
    seed: Seed = 0

    @model_validator(mode="before")
    @classmethod
    def _hand_seed_down(cls, values: Any) -> Any:
        if not isinstance(values, Mapping) or "seed" not in values:
            return values
        train = values.get("train", {})
        if isinstance(train, Mapping):
            train = {"seed": values["seed"], **train}
        return {**values, "train": train}


def to_plain(config: RunConfig) -> dict[str, Any]:
    """The configuration as dictionaries, lists and scalars, as YAML and JSON hold it.

    A seed of the training that equals the run's is left out, so that a changed one reaches it.
    """
    plain = config.model_dump(mode="json")
    if plain["train"]["seed"] == plain["seed"]:
        del plain["train"]["seed"]
    return plain


def load_config(path: str | Path) -> RunConfig:
    """Read and validate a YAML configuration; what it leaves out has its default.

    Raises:
        UsageError: The file is missing, is not YAML, or holds an unknown field or a value out of
            range; the message names each field with its dotted name.
    """
    path = Path(path)
    asked = f"the configuration {path} was to be read"
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for
            raise UsageError(asked, "it is no regular file", "Name a YAML file")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UsageError(asked, str(reason), "Name an existing, readable YAML file") from error
    values = read_yaml(text, asked)
    return _validated(asked, {} if values is None else values)


def read_yaml(text: str, asked: str) -> Any:
    """The value of YAML text.

    Raises:
        UsageError: It is none, names a key twice, is nested too deep, or holds what cannot be.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        reason = "nested too deep" if isinstance(error, RecursionError) else str(error)
        found = f"it is not valid YAML ({' '.join(reason.split())})"
        raise UsageError(asked, found, "Close brackets and quotes, or quote the value") from error


def dump_config(path: Path, config: RunConfig) -> None:
    """Write `config` as YAML that `load_config` reads back to an equal record."""
    text = yaml.safe_dump(to_plain(config), sort_keys=False, allow_unicode=True)
    write_text(path, text)


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


def merge_trained(config: RunConfig, overrides: Mapping[str, Any]) -> RunConfig:
    """`merge` for the options of a run that is trained already.

    Raises:
        UsageError: Also a name that the training depends on.
    """
    for name in overrides:
        late = name in field_names() and not {name, name.partition(".")[0]} & set(AFTER_TRAINING)
        if late:
            fields = [each for each in AFTER_TRAINING if "." in each]
            raise UsageError(
                f"{name} was to be set for a run that is trained already",
                "its training depends on that",
                f"Train another run with it. Free to choose now: {', '.join(fields)}, and all of "
                "debias.* and record.*",
            )
    return merge(config, overrides)


def trained_options(config: RunConfig) -> dict[str, Any]:
    """Those of a result's options that may differ from its run's, for `merge_trained`."""
    plain = to_plain(config)
    names = [name.split(".") for name in AFTER_TRAINING if "." in name]
    return {f"{section}.{name}": plain[section][name] for section, name in names}


def field_names() -> tuple[str, ...]:
    """Dotted names of all fields of a `RunConfig`."""
    return tuple(_fields())


def _fields() -> dict[str, tuple[type[Record], str, FieldInfo]]:
    """Of every dotted name its section, its name there, and pydantic's record of it."""
    found: dict[str, tuple[type[Record], str, FieldInfo]] = {}
    for name, field in RunConfig.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Record):
            inner = kind.model_fields.items()
            found |= {f"{name}.{each}": (kind, each, about) for each, about in inner}
        else:
            found[name] = (RunConfig, name, field)
    return found


def _validated(asked: str, values: Any) -> RunConfig:
    if not isinstance(values, Mapping):
        found = f"it holds {_shown(values)} where sections (data, model, train, …) are expected"
        raise UsageError(asked, found, "Write it as `section:` with indented `field: value` lines")
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        details = error.errors()
        shown = [_explain(detail) for detail in details[:SHOWN]]
        more = [f"{len(details) - SHOWN} more"] if len(details) > SHOWN else []
        found = "; ".join(shown + more)
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
    known = close or [n for n in field_names() if section and n.startswith(section)]
    known = known or list(RunConfig.model_fields)
    return f"{dotted} is not a field (there is {', '.join(known)})"


def _shown(value: Any) -> str:
    # Aliases within aliases are few in memory, and without end in print.
    text = reprlib.repr(value)
    return text if len(text) <= 60 else text[:57] + "…"


class _Loader(yaml.SafeLoader):
    """Safe YAML that refuses a key given twice, of which PyYAML silently keeps the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """The mapping of `node`, its keys distinct."""
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key.value, str):
                raise yaml.constructor.ConstructorError(
                    problem="a key that is no text", problem_mark=key.start_mark
                )
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"the key {key.value} is given twice", problem_mark=key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def describe_fields() -> dict[str, dict[str, Any]]:
    """Every field by its dotted name: `default`, `allowed` where that is told, and `help`.

    The help is the docstring under the field.
    """
    schema, found = RunConfig.model_json_schema(), {}
    for dotted, (kind, name, field) in _fields().items():
        properties = schema if kind is RunConfig else schema["$defs"][kind.__name__]
        found[dotted] = {
            "default": field.default,
            "allowed": _allowed(properties["properties"][name]),
            "help": " ".join((field.description or "").split()),
        }
    return found


def _allowed(schema: Mapping[str, Any]) -> str:
    """A field's JSON schema in words."""
    if "anyOf" in schema:
        return " or ".join(_allowed(each) for each in schema["anyOf"])
    if "enum" in schema:
        return ", ".join(map(str, schema["enum"]))
    words = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    limits = [f"{sign} {schema[key]:g}" for key, sign in words.items() if key in schema]
    return " ".join([str(schema.get("type", "")), *limits]).strip()
