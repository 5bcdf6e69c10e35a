"""Recommenders: how a causal LM scores a catalogue. One file and one line here for each."""

from fudlr.recommenders.base import Batch, Recommender
from fudlr.recommenders.item_tokens import ItemTokens, add_item_tokens

RECOMMENDERS: dict[str, type[Recommender]] = {
    ItemTokens.name: ItemTokens,
}

__all__ = ["RECOMMENDERS", "Batch", "ItemTokens", "Recommender", "add_item_tokens"]
