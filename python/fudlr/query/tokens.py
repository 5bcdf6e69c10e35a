"""Influence of single label tokens within a sample.

    ℓ_i = (1/T) Σ_t ℓ_it      s_ij = Σ_t (1/nT) ∇ℓ_itᵀ H⁻¹ ∇F_j

A token's gradient is that of its sample with all other labels left out: what the tokens before it
are does not change. So the parts add up to the sample's influence.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl
import torch
from torch import Tensor

from fudlr.common.errors import UsageError
from fudlr.run import Run
from fudlr_ext.labels import IGNORED

ASKED = "influence of single label tokens was asked for"
SAME = 1e-3
"""Relative difference up to which a sample's loss is the mean of its tokens'."""


def token_influence(run: Run, index: Tensor, directions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Parts of the samples' influence that their label tokens have.

    Args:
        run: Its model is given θ*.
        index: Training samples by their number `[m]`.
        directions: H⁻¹ ∇F / n, `[k, d]`.

    Returns:
        Of every token which of `index` it is of `[t]`, the token `[t]`, and its part `[t, k]`;
        sample by sample, in their order.

    Raises:
        UsageError: The recommender's loss is not the mean of its label tokens'.
    """
    recommender, samples = run.recommender, run.split.train
    run.engine.load(run.theta)
    owners, tokens, parts = [], [], []
    for at, one in enumerate(index.split(1)):
        batch = recommender.batch(samples.take(one.numpy()))
        labels = batch.get("labels")
        if not isinstance(labels, Tensor):
            raise UsageError(
                ASKED,
                f"{recommender.name} has no label tokens: its loss is one of items or questions",
                "Ask for whole samples",
            )
        places = (labels[0] != IGNORED).nonzero()[:, 0]
        places = places[places > 0]  # nothing predicts the first token
        face = (recommender.forward, recommender.loss)
        found = [
            run.engine.sample_dots(*face, _each(batch, some), directions.to(run.engine.device))
            for some in places.split(run.config.debias.batch)
        ]
        part = torch.cat(found).cpu() / len(places)
        whole = run.engine.sample_dots(*face, batch, directions.to(run.engine.device)).cpu()
        if not torch.allclose(part.sum(0), whole[0], SAME, SAME * float(part.abs().max())):
            raise UsageError(
                ASKED, "a sample's loss is not the mean of its label tokens'", "Ask for whole ones"
            )
        owners.append(torch.full((len(places),), at))
        tokens.append(labels[0, places].cpu())
        parts.append(part)
    return torch.cat(owners), torch.cat(tokens), torch.cat(parts)


def _each(batch: Mapping[str, Any], places: Tensor) -> dict[str, Any]:
    """The batch's one sample as often as there are places, each time with the one label there."""
    count = len(places)
    out = {
        name: value.expand(count, *value.shape[1:]).clone() if isinstance(value, Tensor) else value
        for name, value in batch.items()
    }
    out["labels"] = torch.full_like(out["labels"], IGNORED)
    out["labels"][torch.arange(count), places] = batch["labels"][0, places]
    return out


def token_table(run: Run, table: pl.DataFrame, directions: Tensor) -> pl.DataFrame:
    """`Answers.strongest` with a row for every label token of a sample: `position` from 0 among
    them, `token` as the tokenizer writes it, and `token_influence`, its part of `influence`."""
    train = pl.DataFrame({"sample_id": run.split.train.ids}).with_row_index("number")
    chosen = table.select("sample_id").unique(maintain_order=True).join(train, on="sample_id")
    index = torch.from_numpy(chosen["number"].to_numpy().astype("int64"))
    owner, token, parts = token_influence(run, index, directions)
    tokenizer = getattr(run.recommender, "tokenizer", None)
    words = [str(i) if tokenizer is None else tokenizer.decode([i]) for i in token.tolist()]
    found = pl.DataFrame(
        {
            "sample_id": chosen["sample_id"].gather(owner.numpy()),
            "token": words,
            "parts": parts.numpy(),
        }
    ).with_columns(position=pl.int_range(pl.len()).over("sample_id"))
    joined = table.join(found, on="sample_id", how="left", maintain_order="left_right")
    return joined.with_columns(
        token_influence=pl.col("parts").arr.get(pl.col("prompt")),
    ).drop("parts")
