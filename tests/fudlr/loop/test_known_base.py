"""A pretrained model's item tokens learn the users' older history before there is an adapter."""

from dataclasses import replace
from shutil import copytree

import pytest
import torch
from fudlr.common.device import Place
from fudlr.common.errors import UsageError
from fudlr.config import RunConfig, merge
from fudlr.data import make_split, synthetic
from fudlr.recommenders import add_item_tokens, load_template
from fudlr.run.base import load_base, load_tokenizer, make_base
from fudlr.train.pretrain import small_text_llama, train_tokenizer
from torch.nn.functional import cross_entropy

WINDOW = 5
SIZES = {"model.hidden": 16, "model.layers": 1, "model.heads": 2, "model.kv_heads": 1,
         "model.intermediate": 16, "data.source": "synthetic", "data.window": WINDOW}  # fmt: skip


@pytest.fixture(scope="module")
def split():
    config = merge(RunConfig(), SIZES)
    found = make_split(synthetic(), config.data)
    return replace(found, pretrain=found.pretrain[:12])  # one batch


@pytest.fixture(scope="module")
def folder(split, tmp_path_factory):
    """A model that knows words, and no items."""
    path = tmp_path_factory.mktemp("known")
    titles = split.interactions.items["title"].to_list()
    tokenizer = train_tokenizer(load_template("bigrec"), titles, 400)
    model = small_text_llama(tokenizer, merge(RunConfig(), SIZES).model, 0)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def made(split, folder, dtype=torch.float32, **options):
    config = merge(RunConfig(), {**SIZES, "model.base": str(folder), **options})
    return make_base(split, config, Place(torch.device("cpu"), dtype))


def test_the_first_loss_is_that_of_every_next_item(split, folder):
    model, tokenizer = load_base(folder), load_tokenizer(folder)
    tokens = add_item_tokens(model, tokenizer, split.interactions.items["title"].to_list())
    losses = []
    with torch.no_grad():
        for _, start, stop in split.pretrain:
            for first in range(start, stop - 1, WINDOW):
                items = torch.from_numpy(split.interactions.item[first : first + WINDOW + 1])
                items = items[: stop - first]
                logits = model(input_ids=tokens[items[:-1]][None]).logits[0][:, tokens]
                losses.append(cross_entropy(logits, items[1:], reduction="none"))
    base = made(split, folder, **{"model.pretrain_epochs": 1})
    assert base.losses == pytest.approx([float(torch.cat(losses).mean())], rel=1e-5)


def test_item_rows_learn_and_no_other_row_moves(split, folder):
    start = made(split, folder)
    assert start.losses == []
    base = made(split, folder, **{"model.pretrain_epochs": 4})
    assert base.losses[-1] < base.losses[0]
    tokens = torch.tensor(base.record["tokens"])
    before, after = (each.model.get_input_embeddings().weight.detach() for each in (start, base))
    moved = (after - before).abs().amax(1) > 0
    assert moved[tokens].any()
    assert not moved[: int(tokens[0])].any()
    # Adam's first steps are the rate: the new rows have 20 times the body's.
    body = [(a - b).detach().abs().max() for (name, a), b in
            zip(base.model.named_parameters(), start.model.parameters(), strict=True)
            if "layers" in name]  # fmt: skip
    assert float((after - before).abs().max() / max(body)) == pytest.approx(20, rel=0.2)


def test_half_precision_is_of_the_products_alone(split, folder):
    options = {"model.pretrain_epochs": 2}
    whole = made(split, folder, **options)
    half = made(split, folder, torch.bfloat16, **options)
    assert {each.dtype for each in half.model.parameters()} == {torch.bfloat16}
    assert half.losses == pytest.approx(whole.losses, rel=1e-3)
    assert half.losses != whole.losses


def test_it_is_refused_where_there_is_nothing_to_learn(split, folder):
    options = {"model.pretrain_epochs": 1, "recommender.kind": "titles"}
    with pytest.raises(UsageError, match=r"titles has no item tokens.*pretrain_epochs out"):
        made(split, folder, **options)


def test_a_runs_base_has_learnt_already(split, folder, tmp_path):
    copytree(folder, tmp_path / "base")
    (tmp_path / "recommender.json").write_text("{}", encoding="utf-8")
    options = {"model.pretrain_epochs": 1, "recommender.kind": "titles"}
    assert made(split, tmp_path / "base", **options).losses == []
