"""Scores and losses of the recommenders on any model, held to each title in a row of its own."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from fudlr.common.errors import FudlrError
from fudlr.config import RunConfig, merge
from fudlr.data import leave_last_out, synthetic
from fudlr.recommenders import RECOMMENDERS, load_template
from fudlr.train.pretrain import train_tokenizer
from torch import Tensor, nn
from zoo_judge import refused

KINDS = {"item_tokens": "", "titles": "bigrec", "yes_no": "tallrec"}
ITEMS, VOCABULARY, POSITIONS, LIMIT = 12, 480, 512, 1e-3
_MADE: dict[str, Any] = {}


def judge(kind: str, model: nn.Module) -> dict[str, Any]:
    """Compare two users' scores, as a fraction of their spread, with every item's alone."""
    if not _MADE:
        _MADE["data"] = leave_last_out(synthetic(20, ITEMS, seed=1, per_user=(6, 9)))
    data = _MADE["data"]
    titles = data.interactions.items["title"].to_list()
    if KINDS[kind] and kind not in _MADE:
        _MADE[kind] = train_tokenizer(load_template(KINDS[kind]), titles, 420)
    config = merge(RunConfig(), {"recommender.kind": kind, "data.window": 4, "data.k": 5,
                                 "recommender.max_tokens": 256})  # fmt: skip
    samples = data.valid.take(np.arange(2))
    try:
        made = RECOMMENDERS[kind](model, _MADE.get(kind), data.interactions, config)
        scores, losses = made.evaluate(samples)
    except FudlrError as error:
        return refused(error)
    except Exception as error:
        said = f"{type(error).__name__}: {error}".splitlines()[0]
        return {"result": "wrong", "said": f"an error without words: {said}"[:300]}
    with torch.no_grad():
        alone, loss = _alone(kind, made, samples)
    spread = (alone - alone.mean(1, keepdim=True)).square().mean().sqrt().clamp_min(1e-12)
    off = float((scores.double() - alone).abs().max() / spread)
    off = max(off, float(((losses.double() - loss) / loss).abs().max()))
    row = {"result": "exact" if off <= LIMIT else "wrong", "off": off}
    return row if off <= LIMIT else row | {"said": f"off by {off:.2g} of the scores' spread"}


def _alone(kind: str, made: Any, samples: Any) -> tuple[Tensor, Tensor]:
    """Scores [n, M] and losses [n], every row of tokens through the model by itself."""
    scores, losses = [], []
    targets = samples.target.tolist()
    for i, target in enumerate(targets):
        part = samples.take(np.array([i]))
        if kind == "item_tokens":
            shown = made.collate(part)["input_ids"]
            row = made.model(input_ids=shown).logits[0, -1, made.item_tokens].double()
            scores.append(row)
            losses.append(-row.log_softmax(0)[target])
            continue
        (prompt,) = made.prompts(part)
        tails = made.pieces.answers
        if kind == "yes_no":
            tails = [made.question(j) for j in range(ITEMS)]
        logits = [made.model(input_ids=torch.tensor([prompt.tokens + t])).logits[0] for t in tails]
        if kind == "titles":
            pairs = zip(logits, tails, strict=True)
            rows = [_mean_log_p(at[len(prompt.tokens) - 1 :], tail) for at, tail in pairs]
            scores.append(torch.stack(rows))
            losses.append(-rows[target])
        else:
            yes, no = made.answers
            last = [at[-1].double().log_softmax(0) for at in logits]
            scores.append(torch.stack([at[yes] - at[no] for at in last]))
            asked = made._asked(part)[0]
            right = [-last[j][no if place else yes] for place, j in enumerate(asked)]
            losses.append(torch.stack(right).mean())
    return torch.stack(scores), torch.stack(losses)


def _mean_log_p(logits: Tensor, tail: list[int]) -> Tensor:
    p = logits[: len(tail)].double().log_softmax(-1)
    return p.gather(1, torch.tensor(tail)[:, None]).mean()
