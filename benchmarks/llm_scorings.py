"""The real run's adapters under other grounded scorings: is ARP of lists missed by them or by one?

    python benchmarks/llm_scorings.py [--out out/llm] [--small]

After `make llm`: the trained adapter, the request's and the retrained one, each held against the
catalogue in twelve ways. The state is the one at the end of the title that the model writes (the
run's own) or at the prompt's end; it and the items' embeddings are compared as they are by distance
(the run's own) and by dot product, by cosine, less the mean on each side by distance and by
cosine, and whitened. Means and directions are of the base model, over the test users' prompts and
over the items, so that no adapter moves them. States cluster in a narrow cone ("hubs"), so that
each of these ways has other lists; all twelve are reported, in this order.
"""

from collections.abc import Callable

import torch
from fudlr.common.files import atomic_file, write_json
from fudlr.common.progress import track
from fudlr.evaluation import make_prompts
from fudlr.metrics import bootstrap, evaluate, find_metric, top_k
from fudlr.train.checkpoint import digest
from llm_report import bar
from llm_work import Work, given_work
from machine import describe
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import normalize

QUERIES = ("generated", "prompt")
DIRECTIONS = 50
"""Principal ones of the items that whitening keeps."""
STATES = ("before", "after", "retrained")
METRICS = ("arp", "arp_soft")

Space = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Of states `[n, h]`, their mean in the base model `[h]` and embeddings `[M, h]`: `[n, M]`."""


def whitened(states: Tensor, mean: Tensor, items: Tensor) -> Tensor:
    centred = items - items.mean(0)
    _, values, directions = torch.linalg.svd(centred, full_matrices=False)
    count = min(DIRECTIONS, len(values))
    to = directions[:count].T / values[:count]
    return normalize((states - mean) @ to) @ normalize(centred @ to).T


SPACES: dict[str, Space] = {
    "distance": lambda q, _, e: -torch.cdist(q, e),
    "dot product": lambda q, _, e: q @ e.T,
    "cosine": lambda q, _, e: normalize(q) @ normalize(e).T,
    "distance, centred": lambda q, mean, e: -torch.cdist(q - mean, e - e.mean(0)),
    "cosine, centred": lambda q, mean, e: normalize(q - mean) @ normalize(e - e.mean(0)).T,
    "cosine, whitened": whitened,
}


def main(arguments: list[str] | None = None) -> None:
    work, ending = given_work(__doc__.splitlines()[0], arguments)
    adapters = {"before": work.run / "adapter", "after": work.out / "arp" / "adapter",
                "retrained": work.out / "arp" / "retrained"}  # fmt: skip
    run = work.loaded
    test = make_prompts(run.split, run.split.test, run.config.data)
    found = {"base": kept_states(work, test.samples, torch.zeros_like(run.theta))}
    for name, folder in track(adapters.items(), description="states of adapters"):
        theta = run.engine.flatten(load_file(folder / "adapter_model.safetensors"))
        found[name] = kept_states(work, test.samples, theta)
    record = {
        "command": "python benchmarks/llm_scorings.py" + (" --small" if work.small else ""),
        "users": len(run.split.test),
        "items": run.interactions.n_items,
        "directions": DIRECTIONS,
        "rows": [
            row(query, space, found, run.recommender.embeddings, test.side)
            for query in QUERIES
            for space in SPACES
        ],
        "machine": describe(),
    }
    path = work.out / f"llm_scorings{ending}.json"
    write_json(path, record)
    print(f"{path} is written; benchmarks/results/ keeps the real run's")


def kept_states(work: Work, samples, theta: Tensor) -> dict[str, Tensor]:
    """The states of one adapter, on disk; at B = 0, of the base model."""
    run = work.loaded
    path = work.out / "states" / f"{digest([theta])}.safetensors"
    if not path.is_file():
        run.engine.load(theta)
        states = run.recommender.states(samples, run.config.debias.batch)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as temporary:
            save_file({name: each.float().contiguous() for name, each in states.items()}, temporary)
    return load_file(path)


def row(query: str, space: str, found: dict, items: Tensor, side) -> dict:
    """Figures under one way, with the interval of retraining's change and the bar."""
    mean = found["base"][query].mean(0)
    items = items.float()
    own = SPACES[space](items, items.mean(0), items)
    spread = own.std(1).mean()  # as the recommender's own σ
    scores = {name: SPACES[space](found[name][query], mean, items) / spread for name in STATES}
    figures = {name: evaluate(scores[name], side) for name in STATES}
    drawn = bootstrap(scores, side, metrics=[find_metric("arp")])["retrained - before"]
    held = {
        "intervals": {"retrained_change": {m: [drawn[m].low, drawn[m].high] for m in METRICS}},
        "agreement": {
            m: (figures["after"][m] - figures["before"][m]) / change
            for m in METRICS
            if (change := figures["retrained"][m] - figures["before"][m])
        },
    }
    return {
        "query": query,
        "space": space,
        "figures": {name: {m: figures[name][m] for m in METRICS} for name in STATES},
        "listed": {name: listed(scores[name], side) for name in STATES},
        "bars": [bar(held, metric) for metric in METRICS],
    }


def listed(scores: Tensor, side) -> int:
    """Items that are in any list."""
    return int(top_k(scores, side).unique().numel())


if __name__ == "__main__":
    main()
