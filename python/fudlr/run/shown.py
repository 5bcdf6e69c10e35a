"""An adapter that was trained elsewhere: shown as the model will read it, before it is trusted."""

from __future__ import annotations

import warnings

import numpy as np
from torch import Tensor

from fudlr.common.terminal import say
from fudlr.data import DataWarning, Samples
from fudlr.recommenders import Prompted, Recommender
from fudlr_ext import Engine

SAMPLES = 64
"""Samples whose loss is shown, at most."""


def show(recommender: Recommender, engine: Engine, theta: Tensor, samples: Samples) -> None:
    """Print a whole prompt with its answer, and the loss of validation samples without the adapter
    and with it, which the model has afterwards."""
    few = samples.take(np.arange(min(SAMPLES, len(samples))))
    if isinstance(recommender, Prompted):
        prompts, answers = texts(recommender, few)
        say("One prompt, as the model reads it, and its answer:")
        for line in f"{prompts[0]}⟶{answers[0]}".splitlines():
            say(f"    {line}")
    before = float(recommender.losses(few, len(few)).mean())
    engine.load(theta)
    after = float(recommender.losses(few, len(few)).mean())
    say(
        f"Loss of {len(few)} validation samples: {before:.3f} without the adapter, {after:.3f} with"
    )
    if after >= before:
        warnings.warn(
            "The adapter does not lower the loss: compare the prompt with those it was trained on "
            "(recommender.kind, recommender.template)",
            DataWarning,
            stacklevel=2,
        )


def texts(recommender: Prompted, samples: Samples) -> tuple[list[str], list[str]]:
    """The prompt and the answer of every sample, in words."""
    pieces = recommender.pieces
    decode = pieces.tokenizer.decode
    prompts = [decode(p.tokens) for p in recommender.prompts(samples)]
    targets = samples.target.tolist()
    if not recommender.asks_for_item:
        return prompts, [decode(pieces.answers[t][:-1]) for t in targets]
    asked = [decode(pieces.asked[t] + pieces.suffix) for t in targets]
    whole = [text + question for text, question in zip(prompts, asked, strict=True)]
    return whole, [pieces.template.answer_yes] * len(whole)
