"""The base model, its tokenizer and its adapter as training begins: loaded from a folder, or small
and made on the spot."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from fudlr import lora
from fudlr.common.device import Place, place
from fudlr.common.errors import DataError, ModelError, UsageError
from fudlr.common.reading import read_json
from fudlr.config import RunConfig, merge
from fudlr.data import Split
from fudlr.recommenders import (
    RECOMMENDERS,
    Prompted,
    Recommender,
    add_item_tokens,
    load_template,
)
from fudlr.recommenders.prompting import written_titles
from fudlr.train.pretrain import (
    VOCABULARY,
    pretrain,
    pretrain_text,
    small_llama,
    small_text_llama,
    train_tokenizer,
)
from fudlr_ext import Engine
from fudlr_ext.quantised import PACKS

RECORD = "recommender.json"
"""How a run recommends, beside its base."""


@dataclass(frozen=True)
class Base:
    """A base model ready for an adapter.

    Attributes:
        model: Without an adapter.
        tokenizer: Its tokenizer; None where the recommender needs none and there is none.
        record: What `Recommender.create` needs to make the same recommender again.
        losses: Of each epoch of pretraining, where there was any.
        trained: Tokens whose rows are trained with the adapter.
    """

    model: nn.Module
    tokenizer: Any
    record: dict[str, Any] | None
    losses: list[float]
    trained: tuple[int, ...] = ()


def make_base(split: Split, config: RunConfig, where: Place) -> Base:
    """The base that the configuration names: loaded from a folder, or small and pretrained here.

    It is on the host, for an adapter to be attached to.
    """
    kind = recommender_kind(config)
    if config.model.base == "small-llama":
        return _small_base(kind, split, config, where.device)
    folder = Path(config.model.base)
    record = None if kind.prompted else _of_a_run(folder, split)
    if record is None and not kind.prompted and config.lora.adapter is not None:
        raise UsageError(
            f"the adapter {config.lora.adapter} was to be taken as it is, with item tokens",
            "its base has none, and tokens that it never saw would be added",
            "Say how it recommends: --set recommender.kind=titles, yes_no or grounded, and its own "
            "words with recommender.template; or name the base of the run that made it, RUN/base",
        )
    # A run's base has learnt them already.
    learns = bool(config.model.pretrain_epochs) and not _is_of_a_run(folder)
    if learns and kind.prompted:
        raise UsageError(
            f"{folder} was to be trained on older histories (model.pretrain_epochs="
            f"{config.model.pretrain_epochs})",
            f"{kind.name} has no item tokens",
            "Leave model.pretrain_epochs out",
        )
    # Steps would be lost to rounding in half precision.
    model = load_base(folder, torch.float32 if learns else where.dtype)
    if record is not None:
        return Base(model, None, record, [])
    tokenizer = load_tokenizer(folder)
    if kind.prompted:
        trained = kind.extend(model, tokenizer, split.interactions, config)
        return Base(model, tokenizer, None, [], tuple(trained))
    titles = split.interactions.items
    if "title" not in titles.columns:
        raise DataError(
            "item tokens were to be made for a pretrained model",
            "the items have no titles",
            "Add a title column to the item table",
        )
    tokens = add_item_tokens(model, tokenizer, titles["title"].to_list())
    losses: list[float] = []
    if learns:
        options, window = config.model, config.data.window
        model.to(where.device)
        losses = pretrain(
            model, tokens, split, window, options, seed=config.seed, dtype=where.dtype
        )
        model.cpu().to(where.dtype)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    return Base(model, tokenizer, {"tokens": tokens.tolist(), "pad_token": int(pad)}, losses)


def adapted(
    base: Base, config: RunConfig, device: torch.device
) -> tuple[PeftModel, Engine, Tensor | None]:
    """The base with the adapter as training begins, on `device`; its engine; and θ* `[d]` of an
    adapter that was trained elsewhere, on the host.

    Raises:
        ModelError: The adapter does not fit the base.
    """
    if config.lora.adapter is None:
        model = lora.attach(base.model, config.lora, config.seed, base.trained)
        return model, Engine(model.to(device), check=True), None
    model = lora.load(base.model, Path(config.lora.adapter))
    engine = Engine(model.to(device), check=True)
    trained = engine.theta().cpu()
    # Its start is not known; the base model's function is that of B = 0, whatever A was.
    engine.load(lora.without_b(engine, trained))
    return model, engine, trained


def _of_a_run(folder: Path, split: Split) -> dict[str, Any] | None:
    """The item tokens that the base of an earlier run has, `RUN/base`; None for another folder.

    Raises:
        ModelError: They are of other items.
    """
    if not _is_of_a_run(folder):
        return None
    record = read_json(folder.resolve().parent / RECORD, dict[str, Any])
    if "tokens" not in record:
        return None
    if record.get("item_ids") != split.interactions.items["item_id"].to_list():
        raise ModelError(
            f"the base model in {folder} was to be used again",
            "its item tokens are of other items",
            "Name the data of that run, or another base model",
        )
    return {name: record[name] for name in record if name not in ("kind", "item_ids")}


def _is_of_a_run(folder: Path) -> bool:
    whole = folder.resolve()
    return whole.name == "base" and (whole.parent / RECORD).is_file()


def _small_base(
    kind: type[Recommender], split: Split, config: RunConfig, device: torch.device
) -> Base:
    """Made on the host, so that it starts from the same numbers, and pretrained on `device`."""
    interactions, window = split.interactions, config.data.window
    if not kind.prompted:
        small = small_llama(interactions.n_items, window, config.model, config.seed)
        small.to(device)
        tokens = torch.arange(interactions.n_items)
        losses = pretrain(small, tokens, split, window, config.model, seed=config.seed)
        return Base(small.cpu(), None, None, losses)
    assert issubclass(kind, Prompted)
    template = load_template(config.recommender.template or kind.usual_template)
    titles = [] if kind.coded else written_titles(interactions)
    tokenizer = train_tokenizer(template, titles, VOCABULARY)
    trained = kind.extend(None, tokenizer, interactions, config)
    model = small_text_llama(tokenizer, config.model, config.seed)
    model.to(device)
    recommender = kind(model, tokenizer, interactions, config)
    per_user = config.data.max_train_per_user
    losses = pretrain_text(recommender, split, per_user, config.model, config.seed)
    return Base(model.cpu(), tokenizer, recommender.record(), losses, tuple(trained))


def placed(config: RunConfig, base: Path | None) -> tuple[Place, RunConfig]:
    """Where the model is to be, and the options without it: no file and no digest depends on it.

    `base` is the base model's folder, where that is not the one that the options name.
    """
    options = config.model
    where = place(options.device, options.dtype, base or Path(options.base))
    return where, merge(config, {"model.device": "auto"})


def recommender_kind(config: RunConfig) -> type[Recommender]:
    """The recommender's class in the table.

    Raises:
        UsageError: There is none of that name.
    """
    name = config.recommender.kind
    if name not in RECOMMENDERS:
        raise UsageError(
            f"the recommender {name!r} was asked for",
            "there is none of that name",
            f"Choose one of {', '.join(RECOMMENDERS)} for recommender.kind",
        )
    return RECOMMENDERS[name]


def save_base(base: Base, folder: Path) -> None:
    """Write the base model, and its tokenizer where it has one, as `load_base` reads them."""
    # Quantised weights have no other form to be turned back to.
    plain = getattr(base.model, "hf_quantizer", None) is None
    base.model.save_pretrained(str(folder), save_original_format=plain)  # type: ignore[operator]
    if base.tokenizer is not None:
        base.tokenizer.save_pretrained(str(folder))


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer in `folder`.

    Raises:
        ModelError: There is none, or it cannot be read.
    """
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # of the file's many forms, each with its own
        raise ModelError(
            f"the tokenizer in {folder} was to be loaded",
            f"it cannot be read ({_first_line(error)})",
            "Save the tokenizer beside the model",
        ) from error


def load_base(folder: Path, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The causal LM in `folder`, on the host and without an adapter.

    Raises:
        ModelError: There is none, it cannot be read, or its weights are not finite.
    """
    asked = f"the base model in {folder} was to be loaded"
    if not (folder / "config.json").is_file():
        raise ModelError(
            asked,
            "there is no config.json",
            "Name `small-llama`, or a folder that Hugging Face's save_pretrained wrote",
        )
    try:
        model: nn.Module
        model, told = AutoModelForCausalLM.from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            dtype=dtype,
            output_loading_info=True,
        )
    except ImportError as error:
        raise ModelError(
            asked,
            f"it is quantised, and its library is not there ({_first_line(error)})",
            "Install it (pip install 'fudlr-ext[quantised]'), or name the model unquantised",
        ) from error
    except Exception as error:  # a configuration with wrong types fails anywhere
        raise ModelError(
            asked, f"it cannot be read ({_first_line(error)})", "Save it again as safetensors"
        ) from error
    lost = sorted(told["missing_keys"])
    if lost:
        raise ModelError(
            asked,
            f"its files lack {len(lost)} of the model's tensors ({', '.join(lost[:3])}), which "
            "would be drawn at random",
            "Restore a whole copy of the model",
        )
    for module in model.modules():
        if hasattr(module, PACKS):  # an evaluation would leave weights that training cannot use
            setattr(module, PACKS, False)
    plain = ((n, p) for n, p in model.named_parameters() if type(p) is nn.Parameter)
    bad = [n for n, p in plain if not bool(torch.isfinite(p).all())]
    if bad:
        raise ModelError(
            asked, f"{bad[0]} holds NaN or infinity", "Restore a sound copy of the model"
        )
    return model


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
