"""Figures depend on data and weights alone: on no order in files, batch, padding or threads."""

import numpy as np
import pytest
import torch
from fudlr.data import leave_last_out, read_data, synthetic
from fudlr.evaluation import make_prompts
from fudlr.metrics import evaluate
from fudlr.recommenders import RECOMMENDERS
from prompt_models import CODES, ITEMS, KINDS, adapted, base, config, tokenizer

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.05}
"""Of scores, over their spread: bf16 states round at 2^-8, some ten times on their way; distances
of float32 states are up to 200 times their spread, at 2^-24."""


def files(folder, seed):
    """The same interactions, users and items; their rows stand as the seed says."""
    data = synthetic(24, ITEMS, seed=1, per_user=(8, 14))
    users, items = data.users["user_id"].to_list(), data.items["item_id"].to_list()
    tables = {
        "interactions": ["user_id,item_id,time"]
        + [f"{users[u]},{items[i]},{t // 40}" for u, i, t in zip(data.user, data.item, data.time,
                                                               strict=True)],
        "users": ["user_id,gender"] + [",".join(row[:2]) for row in data.users.iter_rows()],
        "items": ["item_id,title,genres,codes"]
        + [f"{i},{title},{'|'.join(genres)},{''.join(own)}"
           for (i, title, genres), own in zip(data.items.iter_rows(), CODES, strict=True)],
    }  # fmt: skip
    folder.mkdir()
    for name, (head, *lines) in tables.items():
        np.random.default_rng(seed).shuffle(lines)
        (folder / f"{name}.csv").write_text("\n".join([head, *lines]))
    return leave_last_out(read_data(folder))


@pytest.mark.parametrize("dtype", TOLERANCE, ids=["float32", "bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_figures_however_they_are_computed(kind, dtype, tmp_path):
    threads, options = torch.get_num_threads(), config(kind, **{"data.user_group": "gender"})
    found = []
    try:
        for seed, size, side, count in ((0, 5, "left", 1), (1, 5, "right", 1), (1, 24, "left", 2)):
            torch.set_num_threads(count)
            split = files(tmp_path / f"{len(found)}", seed)
            words = None
            if RECOMMENDERS[kind].prompted:
                words = tokenizer(kind, split.interactions.items["title"].sort().to_list())
                words.padding_side = side
            made = RECOMMENDERS[kind](adapted(base().to(dtype)), words, split.interactions, options)
            scores, _ = made.evaluate(split.test, size)
            prompts = make_prompts(split, split.test, options.data)
            found.append((scores, evaluate(scores, prompts.side)))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(found[0][0], found[1][0])
    assert found[0][1] == found[1][1]
    spread = float(found[0][0].std(1).mean())
    assert float((found[2][0] - found[0][0]).abs().max()) < TOLERANCE[dtype] * spread
    if dtype == torch.float32:
        assert found[2][1] == pytest.approx(found[0][1], rel=1e-4)
