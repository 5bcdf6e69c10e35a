"""Titles along a tree: the scores of each title alone, at a fraction of the tokens."""

import numpy as np
import pytest
import torch
from fudlr.common.errors import DataError, ModelError
from fudlr.recommenders.cached import step
from fudlr.recommenders.prompting import Pieces
from fudlr.recommenders.templates import Template
from fudlr.recommenders.tree import TokenTree, walk
from fudlr.train.pretrain import train_tokenizer
from prompt_models import ARCHITECTURES, adapted, base, recommender, split
from torch import nn
from torch.nn.functional import cross_entropy

SEQUENCES = [[5, 6, 7], [5, 6], [5, 8, 9, 10], [2], [5, 6, 7, 1], [2, 3]]


@pytest.fixture(scope="module")
def data():
    return split()


def test_every_beginning_is_one_node_in_preorder():
    tree = TokenTree(SEQUENCES)
    assert len(tree) == len({tuple(s[: i + 1]) for s in SEQUENCES for i in range(len(s))})
    for sequence, end in zip(SEQUENCES, tree.ends.tolist(), strict=True):
        path = tree.path(end)
        assert tree.token[path].tolist() == sequence
        assert path == sorted(path)
        assert tree.depth[path].tolist() == list(range(len(sequence)))


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_stretches_show_each_node_its_ancestors_and_itself(size):
    tree = TokenTree(SEQUENCES)
    nodes = []
    for stretch in tree.stretches(size):
        columns = [*stretch.path, *range(stretch.start, stretch.stop)]
        for row, node in zip(stretch.sees, range(stretch.start, stretch.stop), strict=True):
            seen = [column for column, yes in zip(columns, row.tolist(), strict=True) if yes]
            assert seen == tree.path(node)
            nodes.append(node)
    assert nodes == list(range(len(tree)))


def alone(made, samples):
    """Each title with its prompt through the model on its own: mean −log p of its tokens."""
    rows = []
    for prompt in made.prompts(samples):
        row = []
        for answer in made.pieces.answers:
            ids = torch.tensor([prompt.tokens + answer])
            logits = made.model(input_ids=ids).logits[0, len(prompt.tokens) - 1 : -1]
            row.append(-cross_entropy(logits, torch.tensor(answer)))
        rows.append(torch.stack(row))
    return torch.stack(rows)


@pytest.mark.parametrize(
    ("architecture", "candidates"), [("llama", 8), *((name, None) for name in ARCHITECTURES)]
)
def test_scores_are_those_of_each_title_alone(architecture, candidates, data):
    changes = {"data.candidates": candidates}
    made = recommender("titles", data, adapted(base(architecture)), **changes)
    samples = data.valid.take(np.arange(3))
    with torch.no_grad():
        expected = alone(made, samples)
    found, _ = made.evaluate(samples)
    if candidates is not None:
        chosen = made.collate(samples, scoring=True)["candidates"]
        found, expected = found.gather(1, chosen), expected.gather(1, chosen)
    assert float((found - expected).abs().max()) < 1e-5


def passed(made, work):
    """Tokens that enter the model while `work` runs."""
    count = []
    embedding = made.model.get_input_embeddings()
    handle = embedding.register_forward_hook(lambda m, given, out: count.append(given[0].numel()))
    with torch.no_grad():
        work()
    handle.remove()
    return sum(count)


def test_a_tree_takes_its_prompt_and_nodes_and_beam_search_fewer(data):
    made = recommender("titles", data)
    samples = data.valid.take(np.arange(1))
    made.probe()
    prompt, tree = made.collate(samples, scoring=True)["prompt"], made.catalogue.tree
    together = passed(made, lambda: list(walk(made.model, prompt, tree, 16)))
    size = len(made.prompts(samples)[0].tokens)
    assert together == size + len(tree)
    assert sum(size + len(answer) - 1 for answer in made.pieces.answers) > 3 * together
    assert passed(made, lambda: made.best(samples, 3, beams=2)) < together


def test_beam_search_is_exact_with_enough_beams_and_close_with_few(data):
    made = recommender("titles", data)
    samples = data.valid.take(np.arange(8))
    scores, _ = made.evaluate(samples)
    masked = scores.masked_fill(torch.from_numpy(samples.seen()), -torch.inf)
    exact = masked.topk(5).indices
    assert torch.equal(made.best(samples, 5, beams=100), exact)
    few = made.best(samples, 5, beams=4)
    overlap = (few[:, :, None] == exact[:, None]).any(1).float().mean()
    assert 0.3 < float(overlap) <= 1
    assert not torch.from_numpy(samples.seen()).gather(1, few).any()


@pytest.fixture(scope="module")
def words():
    return train_tokenizer(Template(prompt="{history}"), ["Twins", "Heat [1]", "2"], 400)


def test_twins_are_told_apart(words):
    pieces = Pieces(words, Template(prompt="{history}"), ["Twins", "Heat", "Twins"], "123", False)
    said = [words.decode(tokens[:-1]) for tokens in pieces.answers]
    assert said == ['"Twins [1]"', '"Heat"', '"Twins [3]"']


def test_twins_with_one_id_are_refused(words):
    with pytest.raises(DataError, match="same tokens even with their ids"):
        Pieces(words, Template(prompt="{history}"), ["Twins", "Twins"], "11", False)


def test_one_title_that_begins_another_has_its_own_end(words):
    pieces = Pieces(
        words, Template(prompt="{history}", answer="{title}"), ["He", "Heat"], "12", False
    )
    assert all(tokens[-1] == words.eos_token_id for tokens in pieces.answers)
    assert pieces.answers[0] != pieces.answers[1][: len(pieces.answers[0])]


def test_attention_without_masks_is_refused(data):
    model = adapted(base())
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ModelError, match="flash_attention_2"):
        recommender("titles", data, model)


def test_the_cache_goes_by_the_name_that_the_model_has_for_it(data, recwarn, caplog):
    """transformers 5.24 renamed it, and warns of the old name until 5.40."""

    class Output(dict):
        logits = torch.zeros(1, 1, 1)

    class New(nn.Module):
        def forward(self, input_ids, cache=None, **_):
            """As from 5.24 on."""
            return Output(cache=cache)

    class Old(nn.Module):
        def forward(self, input_ids, past_key_values=None, **_):
            """As before."""
            return Output(past_key_values=past_key_values)

    for kind in (New, Old):
        kind.get_decoder = lambda self: self
        assert step(kind(), 3, {"input_ids": torch.zeros(1, 1)}).cache == 3
    with caplog.at_level("WARNING"):
        recommender("titles", data).evaluate(data.valid.take(np.arange(2)))
    said = [*(str(w.message) for w in recwarn), *(r.getMessage() for r in caplog.records)]
    assert not [text for text in said if "past_key_values" in text or "`cache`" in text]
