"""Semantic IDs: exact scores and gradients over the codes' tree, token rows included; bad codes."""

import json

import numpy as np
import pytest
import torch
from fudlr import lora
from fudlr.common.errors import DataError, ModelError, UsageError
from fudlr.config import LoraSettings
from fudlr.data.codes import item_codes
from fudlr.gradients.metric import metric_gradients
from fudlr.recommenders import SemanticIds, packing
from fudlr.recommenders.titles import Titles
from prompt_models import CODES, ITEMS, adapted, base, config, recommender, split, tokenizer
from torch.nn.functional import log_softmax

from fudlr_ext import Engine


@pytest.fixture(scope="module")
def data():
    return split()


def with_rows(tie):
    """A model whose codes' rows are trained with the adapter, away from where they started."""
    words = tokenizer("semantic_ids", [])
    tokens = [
        words.convert_tokens_to_ids(code) for code in sorted({c for own in CODES for c in own})
    ]
    model = base("qwen2" if not tie else "llama", tie_word_embeddings=tie)
    found = lora.attach(
        model, LoraSettings(rank=2, alpha=4, targets=("q_proj", "down_proj")), 3, tokens
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        for name, parameter in found.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.2)
            elif "trainable_tokens_delta" in name:
                parameter.data += 0.1 * torch.randn_like(parameter)
    return found.eval()


def alone(made, prompt, item):
    """Σ log p of the item's codes, in a row of their own through the model's plain forward."""
    tokens = [made.pieces.tokenizer.convert_tokens_to_ids(code) for code in CODES[item]]
    logits = made.model(input_ids=torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1]
    return log_softmax(logits, -1).gather(1, torch.tensor(tokens)[:, None]).sum()


@pytest.mark.parametrize("tie", [True, False])
def test_scores_and_metric_gradients_are_those_of_each_item_alone(tie, data):
    made = recommender("semantic_ids", data, with_rows(tie))
    assert len(made.catalogue.tree) == len({tuple(c[:i]) for c in CODES for i in (1, 2)})
    samples = data.valid.take(np.arange(2))
    prompts = [prompt.tokens for prompt in made.prompts(samples)]
    engine = Engine(made.model)
    expected = torch.stack(
        [torch.stack([alone(made, prompt, j) for j in range(ITEMS)]) for prompt in prompts]
    )
    found, _ = made.evaluate(samples)
    torch.testing.assert_close(found, expected.detach(), rtol=1e-5, atol=1e-5)

    class Popular:
        name = "popular"

        def surrogate(self, scores, side):
            return (scores.softmax(1) * side).sum()

    side = torch.rand(2, ITEMS, generator=torch.Generator().manual_seed(0))
    value = Popular().surrogate(expected, side)
    exact = torch.cat([g.flatten() for g in torch.autograd.grad(value, engine.parameters())])
    given = metric_gradients(made, engine, samples, side, [Popular()], batch_size=2)["popular"]
    assert given.value == pytest.approx(value.item(), rel=1e-5)
    assert float((given.gradient - exact).norm() / exact.norm()) < 1e-5


@pytest.mark.parametrize("tie", [True, False])
def test_sample_gradients_are_those_of_batches_of_one_token_rows_included(tie, data):
    made = recommender("semantic_ids", data, with_rows(tie))
    engine, samples = Engine(made.model), data.train.take(np.arange(5))
    found = engine.sample_grads(made.forward, made.loss, made.batch(samples))
    rows = [n for n in engine.names if "trainable_tokens_delta" in n]
    assert len(rows) == (1 if tie else 2)
    for i in range(5):
        batch = made.batch(samples.take(np.arange(i, i + 1)))
        loss = made.loss(made.forward(made.model, batch), batch).sum()
        exact = torch.autograd.grad(loss, engine.parameters())
        for name, own, ours in zip(
            engine.names, exact, engine.unflatten(found[i]).values(), strict=True
        ):
            assert float(own.norm()) > 0, name
            assert float((ours - own).norm() / own.norm()) < 1e-5, name


def test_the_loss_is_the_mean_over_the_codes_without_an_end(data):
    made, samples = recommender("semantic_ids", data), data.valid.take(np.arange(4))
    scores, losses = made.evaluate(samples)
    target = scores.gather(1, torch.from_numpy(samples.target)[:, None])[:, 0]
    torch.testing.assert_close(losses, -target / 3, rtol=1e-5, atol=1e-6)
    assert made.terms(samples).tolist() == [3.0] * 4


def test_few_prompts_go_together_where_logits_are_large(data, monkeypatch):
    made, samples = recommender("semantic_ids", data), data.valid.take(np.arange(5))
    expected, _ = made.evaluate(samples)
    rows, walked = [], packing.walk

    def watched(model, prompt, *given):
        rows.append(len(prompt["input_ids"]))
        return walked(model, prompt, *given)

    monkeypatch.setattr(packing, "LARGEST", 2 * 16 * 500)  # 15 beginnings and the prompt's end
    monkeypatch.setattr(packing, "walk", watched)
    for engine in (None, Engine(made.model)):
        made.engine = engine
        found, _ = made.evaluate(samples)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert sorted(rows) == [1, 1, 2, 2, 2, 2]


def test_lists_by_beam_search_are_those_of_exact_scores(data):
    made, samples = recommender("semantic_ids", data), data.valid.take(np.arange(6))
    assert isinstance(made, Titles)
    scores, _ = made.evaluate(samples)
    exact = scores.masked_fill(torch.from_numpy(samples.seen()), -torch.inf).topk(5).indices
    assert torch.equal(made.best(samples, 5, beams=ITEMS), exact)


def test_prompts_and_answers_are_written_in_codes(data):
    made, samples = recommender("semantic_ids", data), data.valid.take(np.arange(1))
    decode = made.pieces.tokenizer.decode
    history = samples.history(0)[-5:].tolist()
    shown = ", ".join("".join(CODES[item]) for item in history)
    assert f"interacted with items {shown} in chronological order" in decode(
        made.prompts(samples)[0].tokens
    )
    assert made.pieces.answer(7) == "".join(CODES[7])
    assert not [note for note in made.notes(samples) if "tokenizer cannot" in note]


def test_codes_are_given_to_tokenizer_and_model_with_rows_of_their_titles(data):
    titles = data.interactions.items["title"].to_list()
    words, model = tokenizer("titles", titles), base(vocabulary=450, tie_word_embeddings=False)
    old = len(words)
    before = model.get_input_embeddings().weight.clone()
    ids = SemanticIds.extend(model, words, data.interactions, config("semantic_ids"))
    every = sorted({code for own in CODES for code in own})
    assert ids == [words.convert_tokens_to_ids(code) for code in every]
    assert min(ids) >= old
    own = [title for title, codes in zip(titles, CODES, strict=True) if "<c_1>" in codes]
    tokens = [t for title in own for t in words(title, add_special_tokens=False)["input_ids"]]
    row = model.get_input_embeddings().weight[words.convert_tokens_to_ids("<c_1>")]
    torch.testing.assert_close(row, before[tokens].mean(0))
    table = model.get_input_embeddings().weight[ids]
    assert torch.unique(table, dim=0).shape == table.shape, "codes start apart"
    assert SemanticIds.extend(model, words, data.interactions, config("semantic_ids")) == ids
    frozen = config("semantic_ids", **{"recommender.train_codes": False})
    assert SemanticIds.extend(model, words, data.interactions, frozen) == []


def test_codes_that_the_tokenizer_lacks_are_refused(data):
    words = tokenizer("titles", [])
    words.add_tokens(["<c_2>"])
    with pytest.raises(ModelError, match=r"9 of 10 codes are no tokens .*'<a_0>', '<a_1>'"):
        SemanticIds(adapted(base()), words, data.interactions, config("semantic_ids"))
    elsewhere = config("semantic_ids", **{"lora.adapter": "somewhere"})
    with pytest.raises(ModelError, match="no tokens of the model's tokenizer"):
        SemanticIds.extend(None, words, data.interactions, elsewhere)


def test_codes_without_rows_in_the_model_are_refused(data):
    words = tokenizer("semantic_ids", [])
    small = adapted(base(vocabulary=len(words) - 1))
    with pytest.raises(ModelError, match="and the model has"):
        SemanticIds(small, words, data.interactions, config("semantic_ids"))


WRONG = {
    "missing": ({"i3": None}, r"1 items have none \('i3'\)"),
    "collide": (
        {"i3": ["<a_0>", "<b_0>", "<c_0>"]},
        r"2 items have the codes of another \('i0 and i3'\)",
    ),
    "length": ({"i3": ["<a_0>", "<b_0>"]}, r"1 items have not 3 codes as the others \('i3'\)"),
    "form": ({"i3": ["a 0", "b", "c"]}, r"1 items have other text in them \('i3: a 0bc'\)"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_codes_are_refused_by_the_items_names(case, data, tmp_path):
    changes, found = WRONG[case]
    items = data.interactions.items.drop("codes")
    ids = items["item_id"].to_list()
    given = {**dict(zip(ids, CODES, strict=True)), **changes}
    path = tmp_path / "codes.json"
    path.write_text(json.dumps({name: own for name, own in given.items() if own is not None}))
    with pytest.raises(DataError, match=found):
        item_codes(items, str(path))


def test_codes_are_read_as_texts_numbers_and_from_the_table(data, tmp_path):
    items, path = data.interactions.items, tmp_path / "codes.json"
    ids = items["item_id"].to_list()
    expected = [tuple(own) for own in CODES]
    assert item_codes(items, None) == expected
    numbers = [[int(code[3:-1]) for code in own] for own in CODES]
    for form in (CODES, ["".join(own) for own in CODES], numbers):
        path.write_text(json.dumps({**dict(zip(ids, form, strict=True)), "other": form[0]}))
        with pytest.warns(UserWarning, match="1 items are not in the data"):
            assert item_codes(items, str(path)) == expected
    with pytest.raises(UsageError, match=r"no file of codes is named"):
        item_codes(items.drop("codes"), None)
    with pytest.raises(DataError, match="was to be read"):
        item_codes(items, str(tmp_path / "none.json"))


def test_an_adapter_with_a_full_copy_of_embeddings_is_refused_by_name(tmp_path):
    saved = adapted(base(), modules_to_save=["embed_tokens"])
    saved.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"modules_to_save.*trainable_token_indices"):
        lora.load(base(), tmp_path)
