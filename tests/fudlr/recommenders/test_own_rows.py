"""Texts that an adapter from elsewhere was trained on: every kind reads them as they stand."""

import numpy as np
import pytest
import torch
from fudlr.data.rows import RowSamples
from fudlr.data.trained_rows import text_samples
from prompt_models import PROMPTED, adapted, base, recommender, split

from fudlr_ext import Engine

TEXTS = [("Seen: Heat.\nNext:\n", "Casino"), ("Will they like it?", " Yes."), ("A", "B C D E"),
         ("<user>Which?</s>", "This</s>")]  # fmt: skip


def rows(data) -> RowSamples:
    unknown = {"user": -1, "target": -1, "history": []}
    return text_samples(
        [{"prompt": p, "answer": a, "chat": p.startswith("<"), **unknown} for p, a in TEXTS],
        data.interactions,
    )


@pytest.mark.parametrize("kind", PROMPTED)
def test_losses_and_gradients_are_of_the_answers_tokens(kind):
    data = split()
    made = recommender(kind, data, adapted(base()))
    samples, tokenizer = rows(data), made.pieces.tokenizer
    engine = Engine(made.model)
    batch = made.collate(samples)
    found = engine.sample_grads(made.forward, made.loss, batch)
    losses = made.losses(samples)
    lengths, terms = made.lengths(samples), made.terms(samples)
    for i, (prompt, answer) in enumerate(TEXTS):
        tokens = tokenizer(prompt + answer, add_special_tokens=not prompt.startswith("<"))
        end = [] if prompt.startswith("<") else [tokenizer.eos_token_id]
        whole = torch.tensor([*tokens["input_ids"], *end])
        start = len(tokenizer(prompt, add_special_tokens=not prompt.startswith("<"))["input_ids"])
        logits = made.model(input_ids=whole[None]).logits[0, :-1]
        picked = logits.log_softmax(-1).gather(1, whole[1:, None])[start - 1 :, 0]
        torch.testing.assert_close(losses[i], -picked.mean(), rtol=1e-4, atol=1e-5)
        assert (int(lengths[i]), int(terms[i])) == (len(whole), len(whole) - start)
        grads = torch.autograd.grad(-picked.mean(), engine.parameters())
        row = torch.cat([grad.flatten() for grad in grads])
        assert float((found[i] - row).norm()) < 1e-3 * float(row.norm())


@pytest.mark.parametrize("kind", PROMPTED)
def test_a_long_text_loses_its_start_and_keeps_its_answer(kind):
    data = split()
    made = recommender(kind, data, adapted(base()))
    longest = made.config.max_tokens
    row = {"prompt": "x" * 2 * longest, "answer": "end", "chat": False}
    unknown = {"user": -1, "target": -1, "history": []}
    samples = text_samples([{**row, **unknown}], data.interactions)
    ((prompt, answer),) = made.own_rows(samples)
    assert len(prompt) + len(answer) == longest
    assert made.pieces.tokenizer.decode(answer[:-1]) == "end"


def test_samples_of_the_data_are_written_by_the_template():
    data = split()
    made = recommender("titles", data, adapted(base()))
    assert made.own_rows(data.train.take(np.arange(2))) is None
