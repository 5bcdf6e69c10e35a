"""What every recommender of the table must do, whatever it is."""

import json

import numpy as np
import pytest
import torch
from fudlr.common.errors import DataError, UsageError
from fudlr.common.factors import Factors, dense
from fudlr.config import merge
from fudlr.evaluation import make_prompts
from fudlr.gradients.metric import metric_gradients
from fudlr.metrics import METRICS
from fudlr.recommenders import RECOMMENDERS
from fudlr.recommenders.prompting import scattered
from prompt_models import (
    ITEMS,
    KINDS,
    PROMPTED,
    adapted,
    base,
    config,
    recommender,
    split,
    tokenizer,
)

from fudlr_ext import Engine


@pytest.fixture(scope="module")
def data():
    return split()


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def made(kind, data):
    return recommender(kind, data)


def test_scores_and_losses_have_their_shapes_and_no_holes(made, data):
    scores, losses = made.evaluate(data.valid, size=7)
    assert scores.shape == (len(data.valid), ITEMS)
    assert losses.shape == (len(data.valid),)
    assert scores.isfinite().all()
    assert (losses > 0).all()
    assert scores.std(1).min() > 1e-4, "the items are told apart"


def test_a_loss_is_the_mean_of_as_many_terms_as_it_says(made, data):
    """Labels of the answer, questions, or the one next item: what the batch has."""
    samples = data.train.take(np.arange(6))
    batch = made.batch(samples)
    if "labels" in batch:
        expected = (batch["labels"] != -100).sum(1)
        assert int(expected.min()) > 1
    elif "place" in batch:
        expected = torch.full((6,), batch["place"].shape[1])
        assert int(expected[0]) > 1
    else:
        expected = torch.ones(6)
    assert made.terms(samples).tolist() == expected.tolist()


def test_batches_by_tokens_give_the_same_in_the_order_of_the_samples(made, data):
    starts = data.interactions.user_starts[:8]  # histories of one item to four
    samples = type(data.valid)(data.interactions, starts + 1 + np.arange(8) % 4)
    lengths = made.lengths(samples)
    assert len(set(lengths.tolist())) > 1
    batch = made.batch(samples, scoring=True)
    if batch["attention_mask"].dim() == 2:  # else questions are packed behind the prompts
        assert torch.equal(batch["attention_mask"].sum(1), lengths)
    with torch.no_grad():  # all in one batch, as they stand
        outputs = made.forward(made.model, batch)
        together, losses = made.item_scores(outputs, batch), made.loss(outputs, batch)
    scores, found = made.evaluate(samples, 3)
    torch.testing.assert_close(scores, together, rtol=1e-4, atol=2e-5)
    torch.testing.assert_close(found, losses, rtol=1e-4, atol=1e-5)


def test_loss_of_a_training_batch_is_that_of_a_scoring_batch(made, data):
    samples = data.valid.take(np.arange(6))
    with torch.no_grad():
        batch = made.batch(samples)
        losses = made.loss(made.forward(made.model, batch), batch)
    torch.testing.assert_close(losses, made.evaluate(samples)[1], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(made.losses(samples, 4), losses, rtol=1e-5, atol=1e-6)


def test_losses_alone_do_not_pay_for_scores(made, data, monkeypatch):
    asked = []
    collate = made.collate
    monkeypatch.setattr(
        made, "collate", lambda part, scoring=False: (asked.append(scoring), collate(part))[1]
    )
    made.losses(data.valid.take(np.arange(4)), 2)
    assert asked == [False, False]


def test_a_pass_without_gradients_gives_what_one_with_gradients_does(made, data):
    """Where there is no gradient, a cached prompt may serve loss and scores."""
    samples = data.valid.take(np.arange(6))
    batch = made.batch(samples, scoring=True)
    found = []
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            outputs = made.forward(made.model, dict(batch))
            found.append((made.item_scores(outputs, batch), made.loss(outputs, batch)))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one.detach(), other, rtol=1e-4, atol=2e-5)


def test_metric_gradients_are_the_same_with_graphs_and_without(made, data):
    samples = data.valid.take(np.arange(4))

    class Weighted:
        name = "weighted"

        def surrogate(self, scores, side):
            return (scores.softmax(1) * side).sum()

    side = torch.randn(4, ITEMS, generator=torch.Generator().manual_seed(1))
    given = (made, Engine(made.model), samples, side, [Weighted()])
    kept = metric_gradients(*given, batch_size=2)
    again = metric_gradients(*given, batch_size=2, graph_bytes=0)
    for name, (value, gradient) in kept.items():
        assert again[name].value == pytest.approx(value, rel=1e-4)
        assert float((again[name].gradient - gradient).norm() / gradient.norm()) < 1e-4


def test_gradient_of_scores_is_the_change_of_scores(made, data):
    """Through trees, caches and grounding: the engine's vjp against central differences."""
    samples = data.valid.take(np.arange(3))
    engine = Engine(made.model)
    theta = engine.theta()
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(engine.d, generator=generator)
    weights = torch.randn(3, ITEMS, generator=generator)
    batch = made.batch(samples, scoring=True)

    def score(model, batch):
        outputs = made.forward(model, batch)
        return made.item_scores(outputs, batch), made.loss(outputs, batch)

    gradient = engine.vjp(score, batch, (weights[None], torch.zeros(1, 3)))[0]
    step = 2e-3
    values = []
    for sign in (1, -1):
        engine.load(theta + sign * step * direction)
        values.append(float((made.evaluate(samples)[0].double() * weights).sum()))
    engine.load(theta)
    slope = (values[0] - values[1]) / (2 * step)
    assert slope == pytest.approx(float(gradient @ direction), rel=2e-2, abs=1e-2)


def test_saved_and_made_again_it_gives_the_same(kind, data, tmp_path):
    from fudlr import lora
    from transformers import AutoModelForCausalLM, AutoTokenizer

    made = recommender(kind, data)
    made.model.get_base_model().save_pretrained(tmp_path / "base")
    lora.save(made.model, tmp_path / "adapter")
    words = None
    # peft renames layers while attached; a fresh base is what a user loads.
    base().save_pretrained(tmp_path / "base")
    if RECOMMENDERS[kind].prompted:
        made.pieces.tokenizer.save_pretrained(tmp_path / "base")
        words = AutoTokenizer.from_pretrained(tmp_path / "base")
    model = lora.load(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), tmp_path / "adapter")
    again = RECOMMENDERS[kind](model.eval(), words, data.interactions, config(kind), made.record())
    for a, b in zip(made.evaluate(data.test), again.evaluate(data.test), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", PROMPTED)
def test_candidates_may_be_named(kind, data, tmp_path):
    """Lists of unlike length, in a table or as lists of a row: scores and seen items follow."""
    samples = data.valid.take(np.arange(4))
    users, items = (data.interactions.users["user_id"], data.interactions.items["item_id"])
    named = {users[int(u)]: items[i : 2 * i + 3].to_list() for i, u in enumerate(samples.user)}
    lines = [f"{user},{item}" for user, own in named.items() for item in own]
    (tmp_path / "long.csv").write_text("user_id,item_id\n" + "\n".join(lines) + "\nnobody,i1\n")
    rows = [{"user_id": user, "item_id": own} for user, own in named.items()]
    (tmp_path / "wide.json").write_text(json.dumps(rows))
    whole, _ = recommender(kind, data).evaluate(samples)
    for file in ("long.csv", "wide.json"):
        options = config(kind, **{"data.candidates": str(tmp_path / file), "data.k": 1})
        some = recommender(kind, data, **{"data.candidates": str(tmp_path / file)})
        scores, _ = some.evaluate(samples)
        side = make_prompts(data, samples, options.data).side
        for i, (user, target) in enumerate(zip(samples.user, samples.target, strict=True)):
            own = {items.to_list().index(item) for item in named[users[int(user)]]} | {int(target)}
            inside = torch.tensor(sorted(own))
            torch.testing.assert_close(scores[i, inside], whole[i, inside], rtol=1e-4, atol=2e-5)
            assert set((~side.seen[i]).nonzero().flatten().tolist()) <= own
            rest = [j for j in range(ITEMS) if j not in own]
            assert (scores[i, rest] == scores[i, inside].min()).all()
    with pytest.raises(DataError, match="names none for 2 of the 6 users"):
        some.evaluate(data.valid.take(np.arange(6)))


def test_a_candidate_that_stands_twice_counts_once():
    values = torch.tensor([[1.0, 2.0, 2.0, 3.0]], requires_grad=True)
    rows = scattered(values, torch.tensor([[0, 2, 2, 3]]), 5)
    assert rows.tolist() == [[1, 1, 2, 3, 1]]
    (rows * torch.arange(1.0, 6)).sum().backward()
    assert values.grad.tolist() == [[1, 3, 0, 4]]


@pytest.mark.parametrize("kind", PROMPTED)
def test_scores_of_a_batch_that_was_not_made_for_them_are_refused(kind, data):
    made = recommender(kind, data)
    batch = made.batch(data.valid.take(np.arange(2)))
    with pytest.raises(UsageError, match="scoring=True"):
        made.item_scores(made.forward(made.model, batch), batch)


@pytest.mark.parametrize("kind", PROMPTED)
def test_a_prompt_longer_than_the_model_is_refused_before_work(kind, data):
    words = tokenizer(kind, data.interactions.items["title"].to_list())
    short = adapted(base(max_position_embeddings=128))
    options = merge(config(kind), {"recommender.max_tokens": 200})
    with pytest.raises(UsageError, match="knows 128 positions"):
        RECOMMENDERS[kind](short, words, data.interactions, options)


def test_what_the_model_writes_is_written_once_for_the_same_weights(data, monkeypatch):
    made = recommender("grounded", data)
    engine, batch = Engine(made.model), made.batch(data.valid.take(np.arange(3)), scoring=True)
    written = []
    write = made._write
    monkeypatch.setattr(made, "_write", lambda *given: (written.append(1), write(*given))[1])
    with torch.no_grad():
        made.forward(made.model, batch)
    engine.deferred_vjp(made.forward, batch)
    assert len(written) == 1
    engine.load(engine.theta() * 1.5)
    engine.deferred_vjp(made.forward, batch)
    assert len(written) == 2


def test_states_are_what_scores_are_made_of(data):
    made, samples = recommender("grounded", data), data.valid
    scores, _ = made.evaluate(samples, len(samples))
    with torch.no_grad():
        states = made.forward(made.model, made.batch(samples, scoring=True))[1].double()
    items = made.embeddings.double()
    # An item's distance to itself is 0 to the root of rounding.
    spread = float(torch.cdist(items, items).std(1).mean())
    assert made._spread == pytest.approx(spread, rel=5e-3)
    expected = -torch.cdist(states, items) / made._spread
    torch.testing.assert_close(scores.double(), expected, rtol=1e-4, atol=1e-4)


def test_a_title_that_ends_early_is_read_where_it_ends(data):
    made = recommender("grounded", data)
    batch = made.batch(data.valid.take(np.arange(6)), scoring=True)
    with torch.no_grad():
        made.forward(made.model, batch)
    rows = [set(row) for row in batch.pop("written").tokens.tolist()]
    made.pieces.end = next(t for row in rows for t in sorted(row) if not all(t in r for r in rows))
    found = []
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            given = dict(batch)
            found.append(made.forward(made.model, given)[1].detach())
            ended = given["written"].tokens[:, -1] == -100
            assert ended.any()
            assert not ended.all()
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["grounded", "item_tokens"])
def test_factors_give_the_scores_and_gradients_of_the_matrix(kind, data, monkeypatch):
    side = make_prompts(data, data.valid, config(kind).data).side
    found = []
    for least in (2**13, 1):
        monkeypatch.setattr(f"fudlr.recommenders.{kind}.LARGE", least)
        made = recommender(kind, data)
        scores, _ = made.evaluate(data.valid)
        assert isinstance(scores, Factors if least == 1 else torch.Tensor)
        metrics = [METRICS[name] for name in ("arp", "gini", "ndcg")]
        engine = Engine(made.model)
        gradients = metric_gradients(made, engine, data.valid, side, metrics)
        found.append((dense(scores), gradients))
    (matrix, wanted), (own, given) = found
    spread = float(matrix.std(1).mean())
    torch.testing.assert_close(own, matrix, rtol=0, atol=1e-3 * spread)
    for name in wanted:
        off = given[name].gradient - wanted[name].gradient
        assert float(off.norm() / wanted[name].gradient.norm()) < 2e-3, name
        assert given[name].value == pytest.approx(wanted[name].value, rel=1e-4)
