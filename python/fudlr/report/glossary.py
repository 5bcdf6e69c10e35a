"""What the report's words mean, each in a sentence, for a reader who knows none of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from fudlr.metrics import METRICS
from fudlr.report.numbers import label

FIGURES = {
    "arp": "Average recommendation popularity: how often the recommended items occur in the "
    "training data.",
    "aplt": "Average percentage of long-tail items: the share of recommendations outside the most "
    "popular items.",
    "gini": "How unequally items are recommended: 0 is all alike, 1 is one item alone.",
    "coverage": "Share of the catalogue that is recommended to anybody at all.",
    "entropy": "How evenly recommendations are spread over the items, in nats.",
    "hellinger": "Distance, from 0 to 1, between the genres recommended to the two groups of users "
    "that differ most.",
    "dp": "Demographic parity: the largest difference between groups of users in the share of any "
    "genre.",
    "hit_gap": "Largest difference between groups of users in how often the next item is found.",
    "mgu": "Mean group unfairness: how far the genres recommended are from those in the users’ "
    "histories.",
    "dgu": "Disparity of group unfairness: the most favoured genre’s share gained, less the least "
    "favoured one’s.",
    "hr": "Hit rate: share of users whose next item is in their list.",
    "ndcg": "Like the hit rate, but a hit counts the more the higher it stands.",
    "mrr": "Mean reciprocal rank: one over the place of the next item, 0 beyond the list.",
    "auc": "Chance that the next item is ranked above another unseen item.",
    "auc_tail_gap": "Difference in that chance between popular next items and long-tail ones.",
    "auc_group_gap": "Largest difference in that chance between groups of users.",
    "val_loss": "How surprised the model is by the next item of the validation prompts; lower is "
    "better.",
    "test_loss": "The same on the test prompts.",
}
TERMS = {
    "Lists and catalogue": "A figure of lists is measured on the items that users see. Its "
    "catalogue twin is the same idea on the probabilities of all items; it is smooth, so it is "
    "what was steered by. The two can move apart: a model may turn towards rare items without any "
    "of them reaching a list, or the other way round.",
    "Held-out users": "Users whose data the correction did not look at. For everyone else a "
    "correction looks better than it is.",
    "Retrained": "The model really trained again without the removed samples: what the update "
    "stands in for.",
    "Interval": "Small figures: where the figure would lie for as many other users, in 95% of the "
    "cases. Of many rows about one in twenty is beyond its noise by chance alone.",
    "Within noise": "The interval of the change holds zero.",
    "By chance": "The gap with the users’ groups shuffled. A gap no larger than that is no gap.",
    "Most popular": "What one list for everyone would give: the most popular items that each user "
    "has not seen. A model that is no better in accuracy has learned nothing about its users.",
    "Influence": "How a figure changes, to first order, when one training sample is removed.",
    "Budget": "The largest share of the training samples that may be removed.",
}


def glossary(names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Term and sentence: the words above, then those of the figures that are in the report."""
    yield from TERMS.items()
    told = set()
    for name in names:
        base = name.partition("@")[0].removesuffix("_soft")
        if base not in told:
            told.add(base)
            text = FIGURES.get(base) or _own(base)
            if text:
                yield label(base), text


def _own(name: str) -> str:
    """The first sentence of a user's own metric's docstring."""
    lines = (type(METRICS[name]).__doc__ or "").splitlines() if name in METRICS else []
    return lines[0] if lines else ""
