"""Other libraries that score samples: one file and one line here make a row of the benchmark.

A rival is a module with

    scorer(work) -> (call, vectors)

where `call()` gives the products [n, k] of the batch's per-sample gradients with `vectors` [k, d],
in the engine's order. What is done once for all batches (hooks, queries, factors) is not in `call`.
They live in an environment of their own, `requirements.txt` beside this file; all run in one
process of it, together with the engine.
"""

from functools import partial
from importlib import import_module

RIVALS = {
    "hooks": "hooks and bmm",
    "vmap_grad": "vmap(grad)",
    "opacus_samples": "opacus 1.6.0",
    "bergson_scorer": "bergson 2.5.1",
    "dattri_hooks": "dattri-llm 0.1.0",
    "kronfluence_scorer": "kronfluence 1.0.1, identity",
    "kronfluence_scorer:ekfac": "kronfluence 1.0.1, EK-FAC",
}
"""Modules, with an option of theirs, and what the table calls them."""


def load(name: str):
    """The scorer of one rival; raises where its library is not there."""
    module, _, option = name.partition(":")
    return partial(
        import_module(f"rivals.{module}").scorer, **({"strategy": option} if option else {})
    )
