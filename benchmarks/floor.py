"""What a scoring pass with 8 vectors cannot avoid, beside what it takes.

    python benchmarks/floor.py
    python benchmarks/floor.py --hidden 2048 --tokens 100 --add

The floor is torch's own matrix products of the base weights alone, each shape run as `torch.mm`
into place: forward and back to the inputs, queries, keys and values as one matrix, gate and up as
one; in the last layer what follows attention at the label positions alone, in the first nothing
back to the embeddings, the head at the labels. Adapter, vectors, attention, norms and gates come on
top of it. The engine and the floor take turns; ratios are of the same round, times CPU seconds of
one thread. Models are workload.py's, of 2 layers, with 8 labels a prompt. A bfloat16 base beside
the floor of bfloat16 products.

The floor is of MKL where torch uses that; the engine's products of float32 are oneDNN's on a CPU
with AVX-512 (fudlr_ext/products.py). `torch` is the engine without that, `times_torch` what it
gains. Writes benchmarks/results/floor.json.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, bar, interleaved, write_result
from fudlr.common.files import read_json
from torch import Tensor
from transformers import LlamaForCausalLM
from workload import FACE, LABELS, VECTORS, VOCABULARY, adapted, held_as, llama_config, prompts

from fudlr_ext import Engine
from fudlr_ext import products as products_of

HIDDEN, TOKENS, BASE = (256, 512, 1024, 2048), (20, 100, 400), ("float32", "bfloat16")
POSITIONS = 1600
"""Of a batch, in prompts of 20 to 400 tokens."""
LAYERS, ASKED, FROM = 2, 1.35, 512


def products(config: Any, rows: int, samples: int) -> list[tuple[int, int, int]]:
    """Rows, columns in and out of every product with base weights that cannot be avoided."""
    hidden, inner = config.hidden_size, config.intermediate_size
    keys = hidden * config.num_key_value_heads // config.num_attention_heads
    joint, labels = (hidden, hidden + 2 * keys), samples * LABELS
    found = []
    for layer in range(config.num_hidden_layers):
        ends = labels if layer == config.num_hidden_layers - 1 else rows
        after = ((hidden, hidden), (hidden, 2 * inner), (inner, hidden))
        found += [(rows, *joint)] * (1 if layer == 0 else 2)
        found += [(ends, *shape) for shape in after for _ in range(2)]
    return found + [(labels, hidden, config.vocab_size)] * 2


def floor(shapes: list[tuple[int, int, int]], dtype: torch.dtype) -> Callable[[], None]:
    """These products, whose weights are as many matrices as the model has."""
    work: list[tuple[Tensor, Tensor, Tensor]] = []
    for rows, inside, out in shapes:
        given = torch.randn(rows, inside).to(dtype), torch.randn(out, inside).to(dtype)
        work.append((*given, torch.empty(rows, out, dtype=dtype)))

    def run() -> None:
        for x, weight, to in work:
            torch.mm(x, weight.t(), out=to)

    return run


def with_torch(call: Callable[[], object]) -> None:
    """Call it with every product by torch."""
    least, products_of.LEAST = products_of.LEAST, 2**62
    try:
        call()
    finally:
        products_of.LEAST = least


def cell(hidden: int, tokens: int, base: str, repeats: int) -> dict[str, Any]:
    """One width, length and dtype."""
    torch.manual_seed(0)
    config = llama_config(hidden)
    config.num_hidden_layers = LAYERS
    model = held_as(LlamaForCausalLM(config), base)
    samples = POSITIONS // tokens
    batch, queries = prompts(tokens, samples, 1), prompts(tokens, VECTORS, 2)
    engine = Engine(adapted(copy.deepcopy(model)))
    vectors = engine.sample_grads(*FACE, queries)
    shapes = products(config, samples * (tokens - 1), samples)
    work: dict[str, Callable[[], object]] = {
        "engine": lambda: engine.sample_dots(*FACE, batch, vectors),
        "floor": floor(shapes, getattr(torch, base)),
    }
    if base == "float32":
        work["torch"] = lambda: with_torch(work["engine"])
    times = interleaved(work, repeats)

    def ratios(above: str, below: str) -> list[float]:
        pairs = zip(times[above]["cpu_all_s"], times[below]["cpu_all_s"], strict=True)  # type: ignore[arg-type]
        return sorted(a / b for a, b in pairs)

    over = ratios("engine", "floor")
    operations = 2 * sum(rows * inside * out for rows, inside, out in shapes)
    return {
        "hidden": hidden,
        "tokens": tokens,
        "samples": samples,
        "base": base,
        "engine_s": times["engine"]["cpu_s"],
        "floor_s": times["floor"]["cpu_s"],
        "floor_gflops": operations / times["floor"]["cpu_s"] / 1e9,
        "times_the_floor": statistics.median(over),
        "range": [over[0], over[-1]],
        "times_torch": statistics.median(ratios("torch", "engine")) if "torch" in work else None,
        "ran": str(engine.report()),
    }


def main() -> None:
    """Measure and write, cell by cell."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--hidden", type=int, nargs="+", default=list(HIDDEN))
    parser.add_argument("--tokens", type=int, nargs="+", default=list(TOKENS))
    parser.add_argument("--base", nargs="+", choices=BASE, default=list(BASE))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--add", action="store_true", help="keep the other cells of the file")
    parser.add_argument("--out", type=Path, default=RESULTS / "floor.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    kept = read_json(args.out, dict[str, Any])["rows"] if args.add else []
    rows = {(each["base"], each["hidden"], each["tokens"]): each for each in kept}
    for base, hidden, tokens in itertools.product(args.base, args.hidden, args.tokens):
        rows[base, hidden, tokens] = cell(hidden, tokens, base, args.repeats)
        found = [rows[key] for key in sorted(rows, key=lambda key: (BASE.index(key[0]), *key[1:]))]
        write_result(
            args.out,
            f"python benchmarks/floor.py --repeats {args.repeats}",
            vocabulary=VOCABULARY,
            layers=LAYERS,
            vectors=VECTORS,
            rows=found,
            bars=[
                bar(
                    "times the floor, {base}, hidden {hidden}, {tokens} tokens".format(**row),
                    row["times_the_floor"],
                    ASKED,
                    least=False,
                )
                for row in found
                if row["hidden"] >= FROM
            ],
        )


if __name__ == "__main__":
    main()
