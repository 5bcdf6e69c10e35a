"""A run of live objects: a trained peft model, and the data set, functions and items around it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor, nn

from fudlr import lora
from fudlr.common.digest import digest
from fudlr.common.errors import DataError, ModelError, UsageError
from fudlr.config import RunConfig, merge
from fudlr.data import Split
from fudlr.data.rows import COLUMNS, Catalogue, RowSamples, RowTable, choices
from fudlr.gradients.store import Store, model_fingerprint
from fudlr.recommenders.base import evaluating
from fudlr.recommenders.live import Face, Live
from fudlr.run.folder import Run
from fudlr_ext import Engine, label_logits, label_loss

ASKED = "a trained model was to be adopted"
SAME_AS_VALID = (
    "No test prompts were given: figures are of the prompts that gradients come from, and the "
    "held-out column alone says what other users would see."
)
Rows = Sequence[Any]
"""Anything with a length whose items are mappings, such as a `datasets.Dataset`."""


def adopt(
    model: nn.Module,
    *,
    train: Rows,
    valid: Rows,
    items: pl.DataFrame | Iterable[Any],
    collate: Callable[[list[Any]], Mapping[str, Any]],
    scores: Callable[[nn.Module, Any], Tensor],
    test: Rows | None = None,
    users: pl.DataFrame | Iterable[Any] | None = None,
    forward: Callable[[nn.Module, Any], Any] = label_logits,
    loss: Callable[[Any, Any], Tensor] = label_loss,
    columns: Mapping[str, str] | None = None,
    store: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Run:
    """Take a model that was trained elsewhere as it is, for `debias`, `verify` and the like.

    Rows are mappings. Whatever `collate` reads is in them, and: `user_id`, `item_id` (the target),
    `history` (ids of items chosen before, which are not recommended again) and `id` (a whole
    number; else rows are counted). Rows of `valid` and `test` need user and target, one a user.

    Args:
        model: A peft model with a LoRA adapter.
        train: What the adapter was trained on.
        valid: Prompts for gradients, one a user.
        test: Prompts for figures, of the same users in the same order.
        items: The catalogue in the order of the scores: ids, or a table with `item_id`, and
            `title`, `genres` (the item groups) and `popularity` where they are known.
        collate: Makes a batch, a mapping of tensors, of a list of rows.
        scores: `scores(model, batch) -> [n, M]`, differentiable; higher is better.
        users: A table with `user_id` and columns of groups, such as `gender`.
        forward: As `Engine` takes it; a causal language model's with `labels` where not given.
        loss: The same.
        columns: Other names of the rows' fields: `{"item": "target"}`.
        store: Its training's gradients, as `Recorder` or `RecorderCallback` left them.
        settings: Options by their dotted names, such as `{"data.k": 20}`.

    Raises:
        DataError: Rows, users and items do not fit together, or scores and losses are of another
            shape.
        EngineError: The model's LoRA layers are of a kind that is not known.
        StoreError: The store is of another model, adapter or data.
    """
    names = {**COLUMNS, **(columns or {})}
    if unknown := sorted(names.keys() - COLUMNS.keys()):
        raise UsageError(ASKED, f"columns name {unknown}", f"Name some of {', '.join(COLUMNS)}")
    given = {"train": train, "valid": valid} | ({} if test is None else {"test": test})
    for name, rows in given.items():
        if not len(rows):
            raise DataError(ASKED, f"`{name}` has no rows", "Give at least one")
    catalogue = Catalogue(_users(users, given, names["user"]), _table(items, "item_id"))
    tables = {name: catalogue.table(rows, name, names) for name, rows in given.items()}
    _check_prompts(tables)
    interactions = catalogue.interactions(tables.values())
    parts = {
        name: RowSamples(interactions, np.arange(len(table.ids)), table)
        for name, table in tables.items()
    }
    split = Split(
        interactions,
        np.zeros((0, 3), dtype=np.int64),
        parts["train"],
        parts["valid"],
        parts.get("test", parts["valid"]),
        _popularity(catalogue.items, tables),
    )
    base = getattr(getattr(model, "config", None), "_name_or_path", "") or type(model).__name__
    fixed = {"recommender.kind": Live.name, "model.base": base, "data.source": "live"}
    config = merge(RunConfig(), {**(settings or {}), **fixed})
    recommender = Live(model, interactions, config, Face(collate, scores, forward, loss))
    engine = Engine(model, check=True)
    theta = engine.theta().cpu()
    run = Run(config, split, recommender, engine, lora.without_b(engine, theta), theta, 0.0, [])
    run.recipe = {}
    run.notes = () if test is not None else (SAME_AS_VALID,)
    _try(recommender, parts["valid"])
    return run if store is None else _with_store(run, Path(store))


def _with_store(run: Run, folder: Path) -> Run:
    """The run bound to what was recorded of its training: the same model, adapter and samples."""
    store = Store.open(folder)
    own = {"model": model_fingerprint(run.recommender.model), "adapter": digest(run.theta)}
    wrong = [f"another {name}" for name, of in own.items() if getattr(store.binding, name) != of]
    missing = set(run.split.train.ids.tolist()) ^ set(store.ids.tolist())
    if missing:
        wrong.append(f"{len(missing)} samples that are in one of store and `train` alone")
    if wrong:
        raise UsageError(
            f"{ASKED} with the store {folder}",
            f"it has {', '.join(wrong)}",
            "Give the model as its training left it, and the rows with the ids they had there",
        )
    settings = merge(run.config, {"debias.store": str(folder)})
    start = store.training()["start"] if store.manifest.recipe is not None else run.start
    return replace(run, config=settings, bound=store.binding, start=start.to(run.theta))


def _table(given: Any, key: str) -> pl.DataFrame:
    """A table with `key` first, as text, of a frame, of mappings, or of bare ids."""
    if not isinstance(given, pl.DataFrame):
        rows = list(given)
        given = pl.DataFrame(rows if rows and isinstance(rows[0], Mapping) else {key: rows})
    if key not in given.columns or given[key].is_duplicated().any():
        found = "has no such column" if key not in given.columns else "has one twice"
        raise DataError(f"{ASKED}, {key} naming rows", f"the table {found}", "Give each once")
    return given.select(pl.col(key).cast(pl.String), pl.exclude(key))


def _users(given: Any, rows: Mapping[str, Rows], column: str) -> pl.DataFrame:
    if given is not None:
        return _table(given, "user_id")
    seen = (row.get(column) for part in rows.values() for row in part)
    return _table([name for name in dict.fromkeys(seen) if name is not None], "user_id")


def _check_prompts(tables: Mapping[str, RowTable]) -> None:
    """Prompts have a user and a target, and those of test are of valid's users."""
    for name in tables.keys() - {"train"}:
        table = tables[name]
        if bool((table.user < 0).any()) or bool((table.target < 0).any()):
            raise DataError(
                f"{ASKED}, `{name}` being prompts",
                "some of its rows have no user or no target",
                "Give each row user_id and item_id (or other names of them with `columns`)",
            )
    if "test" in tables and tables["test"].user.tolist() != tables["valid"].user.tolist():
        raise DataError(
            ASKED,
            "the rows of `test` are not of the users of `valid`, in their order",
            "Give both one row for each user, in the same order",
        )


def _popularity(items: pl.DataFrame, tables: Mapping[str, RowTable]) -> Any:
    """φ [M]: as the items' table has it, else how many users chose each before the prompts."""
    if "popularity" in items.columns:
        return items["popularity"].cast(pl.Int64).to_numpy()
    train, valid = tables["train"], tables["valid"]
    asked = replace(valid, target=np.full_like(valid.target, -1))
    pairs = {pair for table in (train, asked) for pair in choices(table)}
    targets = [target for target, user in zip(train.target, train.user, strict=True) if user < 0]
    counted = [*(item for _, item in pairs), *(int(item) for item in targets if item >= 0)]
    if not counted:
        raise DataError(
            f"{ASKED}, with the popularity of its items",
            "neither training rows nor histories name an item",
            "Give the items a column `popularity`, or the rows item_id",
        )
    return np.bincount(counted, minlength=items.height).astype(np.int64)


def _try(recommender: Live, prompts: RowSamples) -> None:
    """Losses and scores of two prompts have the shapes that they should have.

    Raises:
        DataError: They have not.
    """
    few = prompts.take(slice(0, 2))
    with evaluating(recommender.model), torch.no_grad():
        batch = recommender.collate(few, scoring=True)
        outputs = recommender.forward(recommender.model, batch)
        found = recommender.loss(outputs, batch), recommender.item_scores(outputs, batch)
    wanted = (len(few),), (len(few), recommender.n_items)
    for name, tensor, shape in zip(("loss", "scores"), found, wanted, strict=True):
        if tuple(tensor.shape) != shape:
            raise DataError(
                f"{name} of {len(few)} prompts were to be {list(shape)}",
                f"they are {list(tensor.shape)}",
                "Give one loss a row, undivided, and a score for every item of `items`",
            )
        if not bool(tensor.isfinite().all()):
            raise ModelError(f"{name} of {len(few)} prompts were to be finite", "some are not",
                             "Look for NaN in the model's weights")  # fmt: skip
