"""An adapter that was trained elsewhere: shown as the model will read it, before it is trusted."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fudlr.common.errors import UsageError
from fudlr.common.progress import duration
from fudlr.common.terminal import say
from fudlr.data import Samples
from fudlr.data.rows import RowSamples
from fudlr.evaluation import Prompts
from fudlr.gradients.metric import metric_gradients
from fudlr.metrics import find_metric
from fudlr.recommenders import Prompted, Recommender
from fudlr_ext import Engine
from fudlr_ext.reducers import Sums

SAMPLES = 64
"""Samples whose loss is shown, at most."""


def show(
    recommender: Recommender, engine: Engine, theta: Tensor, train: Samples, valid: Prompts
) -> None:
    """Print whether the adapter lowers the loss, a whole prompt with its answer, the groups, the
    device and the time to expect; the model holds the adapter afterwards.

    Args:
        recommender, engine: With the model.
        theta: The adapter [d].
        train: What it was trained on.
        valid: Prompts of the data.

    Raises:
        UsageError: The adapter does not lower the loss of prompts whose words nobody named.
    """
    few, rows = (s.take(np.arange(min(SAMPLES, len(s)))) for s in (valid.samples, train))
    asked = {"validation prompts": few} | (
        {"rows it was trained on": rows} if isinstance(train, RowSamples) else {}
    )
    losses: dict[str, list[float]] = {name: [] for name in asked}
    for vector in (None, theta):
        if vector is not None:
            engine.load(vector)
        for name, samples in asked.items():
            losses[name].append(float(recommender.losses(samples, len(samples)).mean()))
    told = [
        f"{len(asked[name])} {name}: loss {before:.3f} without the adapter, {after:.3f} with it"
        for name, (before, after) in losses.items()
    ]
    worse = [line for line, (a, b) in zip(told, losses.values(), strict=True) if b >= a]
    ours = isinstance(recommender, Prompted) and recommender.config.template is None
    if worse and ours:
        assert isinstance(recommender, Prompted)
        say("The prompt, as the model reads it, and its answer:")
        for line in _example(recommender, few):
            say(line)
        raise UsageError(
            f"an adapter was to be taken with a prompt of ours, {recommender.usual_template}",
            f"it does not lower the loss ({'; '.join(worse)})",
            "Write the prompt that it was trained on into a YAML file, and name that: --set "
            "recommender.template=FILE (docs/recommenders.md); or another recommender.kind",
        )
    if worse:
        say("THE ADAPTER DOES NOT LOWER THE LOSS: compare the prompt with those it was trained on.",
            "red")  # fmt: skip
    for line in told:
        say(line)
    if isinstance(recommender, Prompted):
        say("One prompt, as the model reads it, and its answer:")
        for line in _example(recommender, few):
            say(line)
        if recommender.config.template is None:
            say(f"No template was named: this is our own, {recommender.usual_template}.")
        if isinstance(train, RowSamples):
            say("One row that it was trained on:")
            for line in _example(recommender, rows):
                say(line)
    say(f"Groups of users: {_groups(valid)}; {len(train)} training samples, "
        f"{len(valid.samples)} users asked; device {engine.parameters()[0].device}")  # fmt: skip
    seconds = _expected(recommender, engine, train, valid)
    say(f"To expect: {duration(seconds['store'])} for `fudlr record`, and from its store about "
        f"{duration(seconds['request'])} for a request's gradients")  # fmt: skip


def check_reads(recommender: Recommender, samples: Samples) -> None:
    """Raise where samples are texts that the recommender cannot read."""
    if isinstance(samples, RowSamples) and not isinstance(recommender, Prompted):
        raise UsageError(
            "texts were to be what the adapter was trained on (--rows)",
            f"recommender.kind={recommender.name} reads no texts",
            "Set recommender.kind to titles, yes_no or grounded, or name user_id and item_id",
        )


def _example(recommender: Prompted, samples: Samples) -> list[str]:
    prompts, answers = texts(recommender, samples.take(np.arange(1)))
    return [f"    {line}" for line in f"{prompts[0]}⟶{answers[0]}".splitlines()]


def _groups(valid: Prompts) -> str:
    labels, group = valid.side.group_labels, valid.side.user_group
    sizes = [f"{label} {int((group == i).sum())}" for i, label in enumerate(labels)]
    return ", ".join(sizes) or "none"


def _expected(
    recommender: Recommender, engine: Engine, train: Samples, valid: Prompts
) -> dict[str, float]:
    """Seconds, from one small batch each."""
    rows = train.take(np.arange(min(16, len(train))))
    few = valid.take(np.arange(min(16, len(valid.samples))))
    found = {}
    started = time.perf_counter()
    batch = recommender.collate(rows)
    sums = [Sums(torch.ones(1, len(rows)))]
    engine.reduce(recommender.forward, recommender.loss, batch, sums)
    found["store"] = (time.perf_counter() - started) * len(train) / len(rows)
    started = time.perf_counter()
    metrics = [find_metric("arp")]
    metric_gradients(recommender, engine, few.samples, few.side, metrics, batch_size=16)
    spent = time.perf_counter() - started
    found["request"] = spent * len(valid.samples) / len(few.samples)
    return found


def texts(recommender: Prompted, samples: Samples) -> tuple[list[str], list[str]]:
    """The prompt and the answer of every sample, in words."""
    if isinstance(samples, RowSamples):
        pairs: list[dict[str, Any]] = samples.rows
        return [row["prompt"] for row in pairs], [row["answer"] for row in pairs]
    pieces = recommender.pieces
    decode = pieces.tokenizer.decode
    prompts = [decode(p.tokens) for p in recommender.prompts(samples)]
    targets = samples.target.tolist()
    if not recommender.asks_for_item:
        return prompts, [pieces.answer(t) for t in targets]
    asked = [decode(pieces.asked[t] + pieces.suffix) for t in targets]
    whole = [text + question for text, question in zip(prompts, asked, strict=True)]
    return whole, [pieces.template.answer_yes] * len(whole)
