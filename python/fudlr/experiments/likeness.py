"""How alike two vectors are: cosine, and the correlation of values or of ranks."""

from __future__ import annotations

import polars as pl
import torch
from torch import Tensor


def cosine(a: Tensor, b: Tensor) -> float:
    """Of the angle between `a` and `b`, both [d]."""
    return float(torch.nn.functional.cosine_similarity(a.double(), b.double(), dim=0))


def correlations(a: Tensor, b: Tensor) -> dict[str, float]:
    """Pearson's and Spearman's correlation of `a` and `b`, both [n]."""
    table = pl.DataFrame({"a": a.double().numpy(), "b": b.double().numpy()})
    found = table.select(pearson=pl.corr("a", "b"), spearman=pl.corr("a", "b", method="spearman"))
    return {name: float(found[name].item()) for name in found.columns}
