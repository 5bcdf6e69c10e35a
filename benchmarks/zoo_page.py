"""docs/models.md from the table of `zoo.py`; a test holds the page to the file."""

from __future__ import annotations

from typing import Any

from zoo_recommenders import KINDS

INTRO = """# Models and adapters

Every causal language model of transformers {transformers} that can be built small, with LoRA on its
linear layers, and every kind of adapter of peft {peft}, held to autograd on batches of one sample
(`python benchmarks/zoo.py`, `benchmarks/results/zoo.json`; this page is made from it). *Exact*:
per-sample gradients, Hessian and Gauss-Newton products agree to rounding in float32 and float64,
with eager and SDPA attention, without padding and with padding on either side. *Refused*: the first
call says what stands in the way and what to do, before anything is trained.

| | exact | refused | wrong | not built |
|---|---|---|---|---|
{counts}

## Models

A row an outcome. *Layers* says whether decoder layers run fused or each LoRA layer by itself
([engine](engine.md)). The columns of the recommenders say whether scores equal those of each item
in a row of its own; models whose attention does not follow masks and positions are refused for
prompts that share a beginning.

| engine | layers | {kinds} | types |
|---|---|{lines}|---|
{models}

What is refused, and why:

{model_reasons}

Not built from a few small sizes, so that nothing is said of them: {missing}.

## Adapters

On a small Llama unless the name says otherwise. An adapter in a folder (`lora.adapter`) is taken in
fewer kinds: what it does not take, it names.

| adapter | engine | what it says |
|---|---|---|
{adapters}

Of other types than LoRA, each refused by its name: {types}.
"""


def page(found: dict[str, Any]) -> str:
    """Return docs/models.md."""
    models, adapters = found["models"], found["adapters"]
    types = [name for name, row in adapters.items() if "of peft's type" in _short(row)]
    built = {name: row for name, row in models.items() if row["result"] != "not built"}
    missing = [f"`{name}`" for name in models if name not in built]
    versions = found["machine"]["versions"]
    return INTRO.format(
        transformers=versions["transformers"],
        peft=versions["peft"],
        counts="\n".join(_counts(found["counts"])),
        kinds=" | ".join(f"`{kind}`" for kind in KINDS),
        lines="|".join(["---"] * len(KINDS)),
        models="\n".join(_outcomes(built)),
        model_reasons="\n".join(_reasons(built)),
        missing=", ".join(missing),
        adapters="\n".join(
            _row(name, row["result"], _short(row))
            for name, row in adapters.items()
            if row["result"] != "not built" and name not in types
        ),
        types=", ".join(types),
    )


def _row(*cells: object) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def _counts(counts: dict[str, dict[str, int]]) -> list[str]:
    named = {kind: f"{kind}, models" for kind in KINDS}
    return [
        _row(named.get(part, part), *(each[s] for s in ("exact", "refused", "wrong", "not built")))
        for part, each in counts.items()
    ]


def _outcomes(models: dict[str, Any]) -> list[str]:
    """A row for each outcome with the types that have it, most fused and most exact first."""
    found: dict[tuple[str, ...], list[str]] = {}
    for name, row in models.items():
        parts = [row[a] for a in ("eager", "sdpa") if row[a]["result"] == "exact"]
        layers = "fused" if parts and all(part["fused"] for part in parts) else "single"
        scored = [row["recommenders"][kind]["result"] for kind in KINDS]
        outcome = (row["result"], layers if parts else "", *scored)
        found.setdefault(outcome, []).append(f"`{name}`")
    order = sorted(found, key=lambda outcome: (outcome[0], outcome[1] != "fused", *outcome[2:]))
    return [_row(*outcome, ", ".join(found[outcome])) for outcome in order]


def _reasons(models: dict[str, Any]) -> list[str]:
    reasons: dict[str, list[str]] = {}
    for name, row in models.items():
        if row["result"] == "refused":
            said = next(row[a]["said"] for a in ("eager", "sdpa") if row[a]["result"] == "refused")
            reasons.setdefault(said, []).append(f"`{name}`")
    return [f"- {', '.join(names)}: {said}" for said, names in reasons.items()]


def _short(row: dict[str, Any]) -> str:
    return "" if row["result"] == "exact" else row["said"]
