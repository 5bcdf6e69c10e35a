"""Recommenders: how a causal LM scores a catalogue. One file and one line here for each."""

from fudlr.recommenders.base import Batch, Recommender
from fudlr.recommenders.grounded import Grounded
from fudlr.recommenders.item_tokens import ItemTokens, add_item_tokens
from fudlr.recommenders.prompting import Prompted
from fudlr.recommenders.semantic_ids import SemanticIds
from fudlr.recommenders.templates import Template, load_template
from fudlr.recommenders.titles import Titles
from fudlr.recommenders.yes_no import YesNo

RECOMMENDERS: dict[str, type[Recommender]] = {
    ItemTokens.name: ItemTokens,
    YesNo.name: YesNo,
    Titles.name: Titles,
    Grounded.name: Grounded,
    SemanticIds.name: SemanticIds,
}

__all__ = [
    "RECOMMENDERS",
    "Batch",
    "Grounded",
    "ItemTokens",
    "Prompted",
    "Recommender",
    "SemanticIds",
    "Template",
    "Titles",
    "add_item_tokens",
    "load_template",
]
