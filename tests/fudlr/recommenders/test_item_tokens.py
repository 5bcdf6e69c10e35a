"""Item tokens: prompts, padding, columns, and new tokens on a pretrained model."""

from contextlib import contextmanager, nullcontext

import numpy as np
import pytest
import torch
from fudlr.common.errors import ModelError
from fudlr.config import LoraSettings, ModelConfig, RunConfig, merge
from fudlr.data import DataWarning, leave_last_out, synthetic
from fudlr.lora import attach
from fudlr.recommenders import ItemTokens, add_item_tokens, item_tokens
from fudlr.train.pretrain import small_llama
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from fudlr_ext import Engine

WINDOW = 12
SIZES = ModelConfig(hidden=16, heads=2, kv_heads=1, intermediate=24)


@pytest.fixture(scope="module")
def split():
    return leave_last_out(synthetic(30, 40, seed=1, per_user=(8, 25)))


def over(model, split, tokens=range(40), pad=40):
    options = merge(RunConfig(), {"data.window": WINDOW})
    record = {"tokens": list(tokens), "pad_token": pad}
    return ItemTokens(model, None, split.interactions, options, record)


@pytest.fixture(scope="module")
def recommender(split):
    model = small_llama(40, WINDOW, SIZES, seed=0).eval()
    return over(model, split)


def test_prompt_is_the_latest_items_before_the_target(recommender, split):
    samples = split.train
    batch = recommender.collate(samples)
    for i in range(len(samples)):
        real = batch["attention_mask"][i].bool()
        expected = samples.history(i)[-WINDOW:]
        assert batch["input_ids"][i][real].tolist() == expected.tolist()
        assert bool(real[-1]), "the prompt must end at the last position"
        assert batch["position_ids"][i][real].tolist() == list(range(len(expected)))
    assert batch["target"].tolist() == samples.target.tolist()


def test_padding_is_left_out_of_an_engine_pass(recommender, split, monkeypatch):
    """The engine's rows with and without, and that the request reached the trunk."""
    model = small_llama(40, WINDOW, SIZES, seed=0)
    engine = Engine(attach(model, LoraSettings(rank=2, targets=("q_proj", "down_proj")), seed=0))
    engine.load(torch.randn(engine.d, generator=torch.Generator().manual_seed(0)) / 4)
    short = over(engine.model, split)
    batch = short.collate(split.train)
    assert not batch["attention_mask"].all()
    requests, only = [], item_tokens.only

    @contextmanager
    def watched(*args):
        with only(*args) as request:
            requests.append(request)
            yield request

    monkeypatch.setattr(item_tokens, "only", watched)
    served = engine.sample_grads(short.forward, short.loss, batch)
    assert requests[0].served
    monkeypatch.setattr(item_tokens, "only", lambda *args: nullcontext())
    plain = engine.sample_grads(short.forward, short.loss, batch)
    torch.testing.assert_close(served, plain, rtol=0, atol=2e-5 * float(plain.abs().max()))


def test_scattered_tokens_are_gathered_in_the_items_order(split):
    model = small_llama(60, WINDOW, SIZES, seed=0).eval()
    tokens = torch.from_numpy(np.random.default_rng(0).permutation(60)[:40].copy())
    found, _ = over(model, split, tokens.tolist(), 60).evaluate(split.valid)
    batch = over(model, split, tokens.tolist(), 60).collate(split.valid)
    with torch.no_grad():
        logits = model(**{k: v for k, v in batch.items() if k != "target"}).logits[:, -1]
    torch.testing.assert_close(found, logits[:, tokens], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("tokens", [[0, 1, 1], [0, 1, 99], [-1, 0, 1], []])
def test_tokens_that_cannot_be(tokens, split):
    with pytest.raises(ModelError, match="token"):
        over(small_llama(40, WINDOW, SIZES, 0), split, tokens)


@pytest.fixture
def tokenizer():
    words = {word: i for i, word in enumerate(["[UNK]", "the", "film", "red", "blue"])}
    plain = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=plain, unk_token="[UNK]", pad_token="[UNK]")


def five_words(tied):
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
    options = LlamaConfig(vocab_size=5, num_hidden_layers=1, tie_word_embeddings=tied, **sizes)
    return LlamaForCausalLM(options)


@pytest.mark.parametrize("tied", [True, False])
def test_new_tokens_start_as_the_mean_of_their_titles(tokenizer, tied):
    model = five_words(tied)
    tokens = add_item_tokens(model, tokenizer, ["the red film", "blue"])
    assert tokens.tolist() == [5, 6]
    for table in (model.get_input_embeddings().weight, model.get_output_embeddings().weight):
        torch.testing.assert_close(table[5], table[[1, 3, 2]].mean(0))
        torch.testing.assert_close(table[6], table[4])


def test_a_title_without_tokens_is_refused(tokenizer):
    model = five_words(tied=True)
    with pytest.raises(ModelError, match="title"):
        add_item_tokens(model, tokenizer, ["the", ""])


def test_titles_of_the_same_tokens_are_told_apart_and_counted(tokenizer):
    model = five_words(tied=False)
    titles = ["the red film", "film the red", "blue", "red the film", "blue blue"]
    with pytest.warns(DataWarning, match="3 items have titles of the same tokens"):
        add_item_tokens(model, tokenizer, titles)
    for table in (model.get_input_embeddings().weight, model.get_output_embeddings().weight):
        torch.testing.assert_close(table[5], table[[1, 3, 2]].mean(0))
        torch.testing.assert_close(table[7], table[4])
        assert len(table[5:].unique(dim=0)) == 5
        for row, first in ((6, 5), (8, 5), (9, 7)):
            share = float(((table[row] - table[first]).norm() / table[first].norm()).detach())
            assert 0.02 < share < 0.1
