"""What a sequential recommender of the usual kind reaches on a run's split: item-kNN and SASRec.

SASRec (Kang and McAuley 2018) is a causal transformer of two blocks over items, trained to predict
each next item; its blocks are transformers' GPT-2, its loss the softmax over the whole catalogue,
its epochs those after which the validation targets are ranked best.
"""

import copy

import numpy as np
import torch
from fudlr.evaluation import Prompts
from fudlr.metrics import evaluate_lists, top_k
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import GPT2Config, GPT2LMHeadModel

WIDTH, BLOCKS, HEADS, DROPOUT = 64, 2, 2, 0.2
LENGTH = 50  # items of history
BATCH, RATE, EPOCHS, PATIENCE = 64, 1e-3, 300, 20


def figures(scores: Tensor, prompts: Prompts) -> dict[str, float]:
    """Metrics of the lists that scores [n, M] give."""
    return evaluate_lists(top_k(scores, prompts.side), prompts.side)


def histories(prompts: Prompts) -> list[np.ndarray]:
    """Each prompt's items before its target, oldest first."""
    samples = prompts.samples
    first = samples.interactions.user_starts[samples.user]
    item = samples.interactions.item
    return [item[a:b] for a, b in zip(first, samples.position, strict=True)]


def item_knn(train: Prompts, test: Prompts, neighbours: int = 50) -> Tensor:
    """Scores [n, M]: sums of cosines between the user's items and each item's nearest ones.

    Cosines are of the items' columns in the user × item matrix of what lies before `train`'s
    targets.
    """
    n_items = test.samples.interactions.n_items
    seen = [_flags(each, n_items) for each in (histories(train), histories(test))]
    unit = seen[0] / seen[0].norm(dim=0).clamp(min=1e-12)
    cosines = (unit.T @ unit).fill_diagonal_(0)
    least = cosines.topk(min(neighbours, n_items), dim=1).values[:, -1:]
    return seen[1] @ torch.where(cosines >= least, cosines, 0)


def _flags(rows: list[np.ndarray], n_items: int) -> Tensor:
    found = torch.zeros(len(rows), n_items)
    for row, items in zip(found, rows, strict=True):
        row[torch.from_numpy(items)] = 1
    return found


def sasrec(valid: Prompts, test: Prompts, seed: int) -> Tensor:
    """Scores [n, M] on the test prompts, by a SASRec of all before the validation targets."""
    torch.manual_seed(seed)
    n_items = test.samples.interactions.n_items
    sizes = {"n_embd": WIDTH, "n_layer": BLOCKS, "n_head": HEADS, "n_positions": LENGTH}
    dropouts = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), DROPOUT)
    ends = {"bos_token_id": None, "eos_token_id": None}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=n_items + 1, **sizes, **dropouts, **ends))
    pieces = [
        _padded(items[max(0, end - LENGTH - 1) : end], LENGTH + 1, n_items)
        for items in histories(valid)
        for end in range(len(items), 1, -LENGTH)
    ]
    rows = torch.from_numpy(np.stack(pieces))
    optimiser = torch.optim.Adam(model.parameters(), lr=RATE, betas=(0.9, 0.98))
    best, since, kept = -1.0, 0, copy.deepcopy(model.state_dict())
    for _ in range(EPOCHS):
        model.train()
        for index in torch.randperm(len(rows)).split(BATCH):
            logits = model(rows[index, :-1]).logits[..., :n_items]
            target = rows[index, 1:].flatten()
            loss = cross_entropy(logits.flatten(0, 1), target, ignore_index=n_items)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        reached = figures(_scores(model, valid), valid)["ndcg@10"]
        if reached > best:
            best, since, kept = reached, 0, copy.deepcopy(model.state_dict())
        elif (since := since + 1) == PATIENCE:
            break
    model.load_state_dict(kept)
    return _scores(model, test)


def _padded(items: np.ndarray, length: int, pad: int) -> np.ndarray:
    """On the right, where a causal model does not see it."""
    return np.pad(items, (0, length - len(items)), constant_values=pad)


@torch.no_grad()
def _scores(model: GPT2LMHeadModel, prompts: Prompts) -> Tensor:
    model.eval()
    n_items = prompts.samples.interactions.n_items
    latest = [items[-LENGTH:] for items in histories(prompts)]
    rows = torch.from_numpy(np.stack([_padded(each, LENGTH, n_items) for each in latest]))
    last = torch.tensor([len(each) - 1 for each in latest])
    states = [model.transformer(part).last_hidden_state for part in rows.split(256)]
    return model.lm_head(torch.cat(states)[torch.arange(len(rows)), last])[:, :n_items]
