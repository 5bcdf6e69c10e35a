"""A run whose scores are kept as factors gives what a run with matrices of scores gives."""

import fudlr
import pytest
import torch
from fudlr import evaluation, load_run
from fudlr.common.factors import Factors
from fudlr.metrics import METRICS, Seen, from_function, register
from fudlr.query import explain
from fudlr.recommenders import item_tokens
from fudlr.train.adapter import train_adapter


@pytest.fixture
def factored(monkeypatch):
    """From its call on, every catalogue is large."""

    def begin():
        monkeypatch.setattr(item_tokens, "LARGE", 1)
        monkeypatch.setattr(evaluation, "LARGE", 1)

    return begin


def test_a_request_is_the_same(run_folder, factored):
    options = {"objective": "arp + hellinger", "also": tuple(METRICS)[4:], "force": True}
    found = []
    for begin in (list, factored):
        begin()
        run = load_run(run_folder)
        found.append(fudlr.debias(run, curve=(0.1,), **options))
        assert run.recommender.has_factors == (begin is factored)
        assert isinstance(run.test.side.seen, Seen) == (begin is factored)
    dense, own = found
    assert torch.equal(own.mask, dense.mask)
    torch.testing.assert_close(own.theta, dense.theta, rtol=1e-4, atol=1e-6)
    for state in ("before", "after"):
        for name, value in dense.summary[state].items():
            assert own.summary[state][name] == pytest.approx(value, rel=1e-4, abs=1e-5), name
    held = (each.summary["heldout"]["after"] for each in (own, dense))
    assert next(held) == pytest.approx(next(held), rel=1e-3, abs=1e-4)


def test_training_and_its_curvature_are_the_same(run_folder, factored):
    found = []
    for begin in (list, factored):
        begin()
        run = load_run(run_folder)
        made, engine, few = run.recommender, run.engine, run.split.train.take(slice(0, 48))
        batch = made.batch(few)
        vectors = torch.randn(2, engine.d, generator=torch.Generator().manual_seed(0))
        rows = engine.sample_grads(made.forward, made.loss, batch)
        products = [
            product(made.forward, made.loss, batch, vectors)
            for product in (engine.ggn_vp, engine.hvp, engine.fisher_vp)
        ]
        settings = run.config.train.model_copy(update={"epochs": 2})
        trained = train_adapter(made, engine, run.split.train, settings, run.start)
        found.append([rows, *products, trained.theta])
    for own, dense in zip(*reversed(found), strict=True):
        assert float((own - dense).norm() / dense.norm()) < 1e-4


def test_a_plain_metric_of_ones_own_and_questions_about_one_user(run_folder, factored):
    register(from_function("first_five", lambda s, side: s.softmax(1)[:, :5].sum(1).mean(), True))
    try:
        answers = []
        for begin in (list, factored):
            begin()
            run = load_run(run_folder)
            user = run.interactions.users["user_id"][int(run.test.samples.user[0])]
            for of in ("rank", "hellinger", "first_five"):
                answers.append(explain(run, user, of=of).influence)
    finally:
        del METRICS["first_five"]
    for own, dense in zip(answers[3:], answers[:3], strict=True):
        torch.testing.assert_close(own, dense, rtol=1e-3, atol=1e-3 * float(dense.abs().max()))


@pytest.mark.parametrize("change", ["scale", "cap", "bias", "trained"])
def test_a_head_that_does_more_than_multiply_has_no_factors(run_folder, factored, change):
    factored()
    recommender = load_run(run_folder).recommender
    head = recommender.model.get_output_embeddings()
    if change == "bias":
        head.bias = torch.nn.Parameter(torch.zeros(len(head.weight)), requires_grad=False)
    elif change == "trained":
        head.weight.requires_grad_()
    else:
        does = (lambda x: 1.1 * x) if change == "scale" else torch.tanh
        head.register_forward_hook(lambda module, given, out: does(out))
    assert not recommender.has_factors
    assert isinstance(recommender.evaluate(load_run(run_folder).split.test)[0], torch.Tensor)


def test_scattered_item_tokens_and_16_bits(run_folder, factored):
    factored()
    run = load_run(run_folder)
    made = run.recommender
    order = torch.randperm(len(made.item_tokens), generator=torch.Generator().manual_seed(0))
    record = {"tokens": made.item_tokens[order].tolist(), "pad_token": made.pad_token}
    for dtype in (torch.float32, torch.bfloat16):
        other = item_tokens.ItemTokens(
            made.model.to(dtype), None, run.interactions, run.config, record
        )
        scores, losses = other.evaluate(run.split.test)
        assert isinstance(scores, Factors)
        assert scores.items.dtype == dtype
        monkey = item_tokens.ItemTokens(made.model, None, run.interactions, run.config, record)
        monkey._factored = False
        matrix, own = monkey.evaluate(run.split.test)
        torch.testing.assert_close(scores.dense(), matrix, rtol=0, atol=2e-5)
        torch.testing.assert_close(losses, own, rtol=2e-5, atol=2e-5)
