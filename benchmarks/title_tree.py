"""Token passes of scoring MovieLens-100k's titles along a tree, against each title on its own.

    python benchmarks/title_tree.py        # writes benchmarks/results/title_tree.json

Counted for the test prompts of 100 users with BIGRec's prompt and windows of 10; and checked, on a
random model, that the scores of one user are those of each title alone.
"""

import json
from pathlib import Path

import numpy as np
import torch
from fudlr.config import RunConfig, merge
from fudlr.data import leave_last_out, load_ml100k
from fudlr.recommenders import Titles, load_template
from fudlr.train.small_text import small_text_llama, train_tokenizer
from machine import describe
from torch.nn.functional import cross_entropy

USERS = 100
OUT = Path(__file__).parent / "results" / "title_tree.json"


def alone(made, prompt):
    """Mean log-likelihood of every title, each with its prompt through the model anew, [M]."""
    scores = []
    for answer in made.pieces.answers:
        logits = made.model(input_ids=torch.tensor([prompt + answer])).logits[0]
        scores.append(-cross_entropy(logits[len(prompt) - 1 : -1], torch.tensor(answer)))
    return torch.stack(scores)


def measure(vocabulary):
    split = leave_last_out(load_ml100k())
    config = merge(RunConfig(), {"recommender.kind": "titles", "data.window": 10})
    template = load_template("bigrec")
    titles = split.interactions.items["title"].to_list()
    tokenizer = train_tokenizer(template, titles, vocabulary)
    model = small_text_llama(tokenizer, config.model, 0).eval()
    made = Titles.create(model, tokenizer, split.interactions, config)
    samples = split.test.take(np.arange(USERS))
    together, apart = made.token_passes(samples)
    one = split.test.take(np.arange(1))
    with torch.no_grad():
        expected = alone(made, made.prompts(one)[0].tokens)
    difference = float((made.evaluate(one)[0][0] - expected).abs().max())
    return {
        "vocabulary": len(tokenizer),
        "titles": made.n_items,
        "mean_prompt_tokens": float(np.mean([len(p.tokens) for p in made.prompts(samples)])),
        "mean_title_tokens": float(np.mean([len(a) for a in made.pieces.answers])),
        "tree_nodes": len(made.catalogue.tree),
        "token_passes_tree": together / USERS,
        "token_passes_alone": apart / USERS,
        "ratio": apart / together,
        "largest_difference_of_scores": difference,
    }


def main():
    rows = [measure(vocabulary) for vocabulary in (1000, 4000)]
    found = {
        "command": "python benchmarks/title_tree.py",
        "users": USERS,
        "rows": rows,
        "machine": describe(),
    }
    OUT.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    for row in rows:
        print(f"{row['vocabulary']} tokens: {row['ratio']:.1f}x, {row['tree_nodes']} nodes")


if __name__ == "__main__":
    main()
