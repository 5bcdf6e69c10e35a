"""8 Hessian and 8 Gauss-Newton products: the engine and other ways, in peft steps a vector.

    python benchmarks/curvature_products.py
    python benchmarks/curvature_products.py --hidden 128 --repeats 3

Work and clock as in scoring.py; all in turn in one process of the rivals' environment, and answers
compared with the engine's first. The result goes to benchmarks/results/curvature_products.json.
"""

from __future__ import annotations

import argparse
import statistics
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, bar, interleaved, write_result
from torch.func import functional_call, grad, jvp, vjp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from workload import FACE, SIZES, Work, at_labels, losses, peft_step

BARS = {"Hessian: fudlr_ext": 0.9, "Gauss-Newton: fudlr_ext": 0.8}


class _AtLabels(torch.nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Any) -> torch.Tensor:
        with sdpa_kernel(SDPBackend.MATH):
            return at_labels(self.model, batch)


def ways(work: Work) -> dict[str, Callable[[], torch.Tensor]]:
    """Every way to the products [k, d]."""
    module, batch = _AtLabels(work.model), work.batch
    parts = work.split(work.vectors)
    parameters = {f"model.{n}": p for n, p in work.model.named_parameters() if n in parts}
    values = {name: p.detach() for name, p in parameters.items()}
    along = {f"model.{name}": v for name, v in parts.items()}
    listed = list(parameters.values())

    def outputs(given: Any) -> torch.Tensor:
        return functional_call(module, given, (batch,))

    def mean_loss(given: Any) -> torch.Tensor:
        return losses(outputs(given), batch).mean()

    def named(found: dict[str, torch.Tensor]) -> torch.Tensor:
        return work.flat({name.removeprefix("model."): rows for name, rows in found.items()})

    def one(graph: tuple[torch.Tensor, ...], j: int, keep: bool) -> torch.Tensor:
        vectors = [along[name][j] for name in parameters]
        found = torch.autograd.grad(graph, listed, vectors, retain_graph=keep)
        return named({n: g[None] for n, g in zip(parameters, found, strict=True)})[0]

    def graph(full: bool) -> tuple[torch.Tensor, ...]:
        with sdpa_kernel(SDPBackend.MATH):
            loss = (
                work.model(**batch, use_cache=False).loss
                if full
                else losses(at_labels(work.model, batch), batch).mean()
            )
            return torch.autograd.grad(loss, listed, create_graph=True)

    def rebuilt() -> torch.Tensor:
        return torch.stack([one(graph(True), j, False) for j in range(len(work.vectors))])

    def kept() -> torch.Tensor:
        built = graph(False)
        return torch.stack([one(built, j, True) for j in range(len(work.vectors))])

    def forward_over_reverse() -> torch.Tensor:
        return named(vmap(lambda v: jvp(grad(mean_loss), (values,), (v,))[1])(along))

    def gauss_newton() -> torch.Tensor:
        def product(v: Any) -> Any:
            z, dz = jvp(outputs, (values,), (v,))
            _, curved = jvp(grad(lambda o: losses(o, batch).mean()), (z,), (dz,))
            return vjp(outputs, values)[1](curved)[0]

        return named(vmap(product)(along))

    return {
        "Hessian: fudlr_ext": lambda: work.engine.hvp(*FACE, batch, work.vectors),
        "Hessian: double backward, graph rebuilt, all logits": rebuilt,
        "Hessian: double backward, graph kept": kept,
        "Hessian: vmap(jvp(grad))": forward_over_reverse,
        "Gauss-Newton: fudlr_ext": lambda: work.engine.ggn_vp(*FACE, batch, work.vectors),
        "Gauss-Newton: vmap": gauss_newton,
        "Gauss-Newton: curvlinops 3.0.1": curvlinops(work, module, listed),
    }


def curvlinops(work: Work, module: Any, listed: list[Any]) -> Callable[[], torch.Tensor]:
    """Its Gauss-Newton operator on the same model and loss."""

    def call() -> torch.Tensor:
        from curvlinops import GGNLinearOperator  # noqa: PLC0415  # its absence is its row's error

        inputs, labels = {"input_ids": work.batch["input_ids"]}, work.batch["labels"][:, -8:]

        class Flat(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.module = module

            def forward(self, batch: Any) -> torch.Tensor:
                return self.module(batch).flatten(0, 1)

        operator = GGNLinearOperator(
            Flat(), torch.nn.CrossEntropyLoss(), listed, [(inputs, labels.flatten())],
            batch_size_fn=lambda batch: len(batch["input_ids"]), check_deterministic=False,
        )  # fmt: skip
        return (operator @ work.vectors.t()).t()

    return call


def case(hidden: int, repeats: int) -> dict[str, Any]:
    """One size."""
    work = Work(hidden)
    expected: dict[str, torch.Tensor] = {}
    calls: dict[str, Callable[[], object]] = {"peft": lambda: peft_step(work.model, work.batch)}
    errors, failed = {}, {}
    for name, call in ways(work).items():
        kind = name.partition(":")[0]
        try:
            got = call()
            reference = expected.setdefault(kind, got)
            errors[name] = float((got - reference).norm() / reference.norm())
            if not errors[name] <= 1e-3:
                raise RuntimeError(f"its answers differ from the engine's by {errors[name]:.2g}")
            calls[name] = call
        except Exception as error:
            failed[name] = f"{type(error).__name__}: {error}".splitlines()[0]
    found = interleaved(calls, repeats)
    unit: Any = found["peft"]["cpu_all_s"]
    rows = {}
    for name in errors.keys() & calls.keys():
        each: Any = found[name]["cpu_all_s"]
        costs = [t / u / len(work.vectors) for t, u in zip(each, unit, strict=True)]
        rows[name] = {"cost": statistics.median(costs), "costs": costs, "error": errors[name]}
    return {"hidden": hidden, "peft_seconds": statistics.median(unit), "rows": rows,
            "failed": failed}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--hidden", type=int, nargs="+", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS / "curvature_products.json")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    cases = []
    for hidden in args.hidden:
        cases.append(case(hidden, args.repeats))
        print(hidden, {name: round(row["cost"], 3) for name, row in cases[-1]["rows"].items()},
              cases[-1]["failed"], flush=True)  # fmt: skip
    bars = [
        bar(f"{name}, hidden {found['hidden']}", found["rows"][name]["cost"], most, least=False)
        for found in cases
        for name, most in BARS.items()
    ]
    command = f"--hidden {' '.join(map(str, args.hidden))} --repeats {args.repeats}"
    write_result(
        args.out, f"python benchmarks/curvature_products.py {command}", bars=bars, cases=cases
    )


if __name__ == "__main__":
    main()
