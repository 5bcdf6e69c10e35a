"""Semantic IDs: an item is a short tuple of codes, each a token; its score is their log-likelihood.

    s_j = Σ_l log p(c_l | prompt, c_<l),   c₁ … c_L the codes of item j       ℓ = −s_target / L

All items have L codes, so that no tuple begins another and no end token is needed: the last code
is only predicted, and a user costs the prompt and the distinct beginnings of up to L − 1 codes. The
history is written in codes as well. The codes' rows of embedding and output matrix are trained with
the adapter (peft's `trainable_token_indices`).

Rajput et al. 2023, "Recommender systems with generative retrieval", arXiv 2305.05065; Kong et al.
2025, "MiniOneRec", arXiv 2510.24431, whose prompt is the usual template.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fudlr.common.errors import ModelError
from fudlr.config import RunConfig
from fudlr.data.codes import Codes, item_codes
from fudlr.data.interactions import DataWarning, Interactions
from fudlr.data.text import listed
from fudlr.recommenders.new_rows import APART, start_rows
from fudlr.recommenders.prompting import written_titles
from fudlr.recommenders.titles import Titles, TitleTree
from fudlr.recommenders.tree import Seen
from fudlr.recommenders.words import Words


class CodeTree(TitleTree):
    """The tree of some items' codes."""

    def scores(self, seen: Iterable[Seen]) -> Tensor:
        """Log-likelihood of every item's codes, [n, C]."""
        means = super().scores(seen)
        return means * self.length.to(means)


class SemanticIds(Titles):
    """Scores the codes of items along their prefix tree.

    `record` has `codes`, those of every item, beside the template.

    Raises:
        ModelError: A code is no token of the tokenizer, or has no row in the model.
    """

    name: ClassVar[str] = "semantic_ids"
    usual_template: ClassVar[str] = "minionerec"
    coded: ClassVar[bool] = True

    @classmethod
    def extend(
        cls, model: nn.Module | None, tokenizer: Any, interactions: Interactions, config: RunConfig
    ) -> list[int]:
        """Give tokenizer and model the codes that they lack, one token each.

        A new token's rows are the mean of the tokens of its items' titles. An adapter from
        elsewhere was trained on the tokens of its base: none is added then.
        """
        codes = item_codes(interactions.items, config.recommender.codes)
        every = sorted({code for own in codes for code in own})
        new = _unknown(tokenizer, every)
        if new and config.lora.adapter is not None:
            raise _untokenised(new, every)
        if new:
            made_of = None if model is None else _titles_of(tokenizer, interactions, codes, new)
            tokenizer.add_tokens(new)
            if model is not None and made_of is not None:
                ids = torch.tensor(tokenizer.convert_tokens_to_ids(new))
                _warn(start_rows(model, ids, made_of))
        return tokenizer.convert_tokens_to_ids(every) if config.recommender.train_codes else []

    def words(self, interactions: Interactions, record: Mapping[str, Any] | None) -> list[str]:
        """The codes of every item, one behind the other."""
        given = (record or {}).get("codes")
        file = self.config.codes
        codes = item_codes(interactions.items, file) if given is None else [tuple(c) for c in given]
        every = sorted({code for own in codes for code in own})
        if new := _unknown(self.tokenizer, every):
            raise _untokenised(new, every)
        rows = int(self.model.get_input_embeddings().weight.shape[0])  # type: ignore[operator]
        last = max(self.tokenizer.convert_tokens_to_ids(every))
        if last >= rows:
            raise ModelError(
                "items were to be written as semantic IDs",
                f"the codes' tokens go up to {last}, and the model has {rows} rows of embeddings",
                "Name the model that the tokenizer belongs to",
            )
        self.codes: Codes = codes
        return ["".join(own) for own in codes]

    def record(self) -> dict[str, Any]:
        """The template and the codes, so that a changed file changes no run."""
        return {**super().record(), "codes": [list(own) for own in self.codes]}

    def scorer(self, items: Iterable[int]) -> CodeTree:
        """The tree of the codes of `items`."""
        return CodeTree([self.pieces.answers[item] for item in items])


def _unknown(tokenizer: Any, codes: list[str]) -> list[str]:
    known = tokenizer.get_vocab()
    return [code for code in codes if code not in known]


def _untokenised(new: list[str], every: list[str]) -> ModelError:
    return ModelError(
        "items were to be written as semantic IDs",
        f"{len(new)} of {len(every)} codes are no tokens of the model's tokenizer "
        f"({listed(new, 3)})",
        "Name the base model and tokenizer that were trained with these codes",
    )


def _titles_of(
    tokenizer: Any, interactions: Interactions, codes: Codes, new: list[str]
) -> list[list[int]]:
    """The tokens of the titles of each code's items, one title behind the other."""
    titles = Words(tokenizer).titles(written_titles(interactions))
    found: dict[str, list[int]] = {code: [] for code in new}
    for own, tokens in zip(codes, titles, strict=True):
        for code in found.keys() & set(own):
            found[code] += tokens
    return [found[code] for code in new]


def _warn(twins: int) -> None:
    if twins:
        text = (
            f"{twins} codes have items with the titles of another's; their embeddings start with a "
            f"random offset of {APART:.0%}"
        )
        warnings.warn(DataWarning(text, "title_tokens", twins), stacklevel=3)
