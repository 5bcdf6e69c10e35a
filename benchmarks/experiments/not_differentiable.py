"""Metrics of the list that users see, which have no gradient: estimated, or smoothed.

Three discretised metrics, each steered in two ways:

    smooth   the gradient of a differentiable stand-in, on the catalogue softmax
    drawn    the score-function estimate of `metrics.score_function`, of the metric itself on
             lists drawn from the scores

compared in the adapter's gradient (cosine), in the influence of the samples (correlations), and in
what the hard metric itself does when the samples of the lowest scores are removed, in closed form
and by real retraining. The estimate's variance is measured against the number of draws,

    v_R = Σ_s ‖g_R,s − ḡ_R‖² / (S − 1) / ‖ḡ‖²

over S seeds, ḡ being the mean of the estimates of most draws; with control variates, without, and
with the metric as one number for all prompts, of which none knows its own part.
A fourth rule is flat. It has to be refused with its reason, and not to crash.
"""

from __future__ import annotations

from functools import partial

import torch
from fudlr import debias
from fudlr.common.errors import FudlrError
from fudlr.evaluation import make_prompts
from fudlr.gradients.metric import metric_gradients
from fudlr.metrics import (
    METRICS,
    DrawnLists,
    Metric,
    Side,
    catalogue_softmax,
    from_function,
    from_lists,
    top_k,
)
from fudlr.output.results import mask_table
from fudlr.verify import removal, retrain
from torch import Tensor

from experiments.common import Experiment, Options, Outcome, correlations, cosine, trained

QUOTA, WIDTH = 0.3, 0.05
"""The business rule: at least this share of a list is tail. Its smooth stand-in is a sigmoid of the
expected share, of this width."""
DRAWS, SMALL_DRAWS = (8, 32, 128), (4, 8)
SEEDS, SMALL_SEEDS = 4, 2
WAYS = ("smooth", "drawn")
AGREE = 0.5
"""Least Spearman correlation of the two ways' influences."""


def quota_met(top: Tensor, side: Side) -> Tensor:
    """[n] bool: whether the list keeps the rule."""
    return side.tail[top].double().mean(1) >= QUOTA - 1e-9


def quota_expected(scores: Tensor, side: Side) -> Tensor:
    """The smooth stand-in: σ((expected tail share − quota) / width), mean over users."""
    p = catalogue_softmax(scores, side.seen)
    share = p @ side.tail.to(p.dtype)
    return torch.sigmoid((share - QUOTA) / WIDTH).mean()


QUOTA_SMOOTH = from_function("quota", quota_expected, lower_is_better=False)
RULES = {
    "coverage": (METRICS["coverage"], METRICS["coverage"]),
    "tail_share": (METRICS["aplt"], METRICS["aplt"]),
    "quota": (QUOTA_SMOOTH, quota_met),
}
"""A smooth stand-in and the metric of lists itself, higher is better, by name."""
ALWAYS = from_lists("always", lambda top, side: torch.ones(len(top)), lower_is_better=False)


def _number(hard):
    """The same metric as a function that gives one number for all prompts."""
    metric = hard if isinstance(hard, Metric) else from_lists("number", hard, lower_is_better=False)
    return metric.hard


def _cells(options: Options):
    return {
        f"{name}, seed {seed}": partial(work, options, seed, name)
        for seed in options.seeds
        for name, work in {**dict.fromkeys(RULES, _compare), "flat": _flat}.items()
    }


def _compare(options: Options, seed: int, name: str):
    run = trained(options, {"seed": seed}, f"seed-{seed}")
    smooth, hard = RULES[name]
    draws = SMALL_DRAWS if options.small else DRAWS
    seeds = range(SMALL_SEEDS if options.small else SEEDS)

    def drawn(of, count: int, at: int, label: str = "", control: bool = True) -> DrawnLists:
        label = f"drawn_{name}_{count}_{at}{label}"
        return DrawnLists(label, of, False, draws=count, seed=at, control=control)

    families = {str(count): [drawn(hard, count, at) for at in seeds] for count in draws}
    middle = draws[len(draws) // 2]  # of as many draws as this family, to be compared with it
    families["without control"] = [drawn(hard, middle, at, "_plain", False) for at in seeds]
    families["one number"] = [drawn(_number(hard), middle, at, "_number") for at in seeds]
    asked = [smooth, *(metric for family in families.values() for metric in family)]
    valid, test = (make_prompts(run.split, s, run.config.data)
                   for s in (run.split.valid, run.split.test))  # fmt: skip
    run.engine.load(run.theta)
    found = metric_gradients(
        run.recommender, run.engine, valid.samples, valid.side, asked, validation_loss=False
    )
    stacked = {
        label: torch.stack([found[metric.name].gradient.double() for metric in family])
        for label, family in families.items()
    }
    mean = stacked[str(draws[-1])].mean(0)
    results = {}
    for way, metric in (("smooth", smooth), ("drawn", families[str(draws[-1])][0])):
        METRICS[metric.name] = metric
        results[way] = debias(
            run, objective=metric.name, curve=(), heldout=False, also=(), force=True
        )
    names = {"smooth": smooth.name, "drawn": families[str(draws[-1])][0].name}
    influences = [
        torch.from_numpy(mask_table(results[way])[f"influence_{names[way]}"].to_numpy().copy())
        for way in WAYS
    ]
    masks = {way: results[way].mask for way in WAYS}
    jobs = [removal(f"without the {way} mask", masks[way]) for way in WAYS]
    done = retrain(run, jobs, options.out / "retrainings", options.processes)
    states = {"trained": run.theta}
    for way, retrained in zip(WAYS, done, strict=True):
        states[f"{way}, closed form"] = results[way].theta
        states[f"{way}, retrained"] = retrained.theta
    shown = from_lists(name, _number(hard), lower_is_better=False)
    return {
        "metric": name,
        "seed": seed,
        "cosine": cosine(found[smooth.name].gradient, mean),
        "influence": correlations(*influences),
        "variance": {
            label: float(each.var(0).sum() / mean.norm().square())
            for label, each in stacked.items()
        },
        "draws_without_control": middle,
        "removed": {way: int(masks[way].sum()) for way in WAYS},
        "overlap": float((masks["smooth"] & masks["drawn"]).sum() / masks["drawn"].sum()),
        "hard": {state: _hard(run, test, shown, theta) for state, theta in states.items()},
    }


def _flat(options: Options, seed: int, name: str):
    """A request for a rule that every list keeps."""
    run = trained(options, {"seed": seed}, f"seed-{seed}")
    METRICS[ALWAYS.name] = ALWAYS
    try:
        debias(run, objective=ALWAYS.name)
    except FudlrError as error:
        return {"metric": name, "seed": seed, "refused": str(error)}
    return {"metric": name, "seed": seed, "refused": None}


def _hard(run, prompts, metric: Metric, theta: Tensor) -> float:
    """The hard value of the lists on the test prompts."""
    run.engine.load(theta)
    scores, _ = run.recommender.evaluate(prompts.samples, run.config.debias.batch)
    return float(metric.hard(top_k(scores, prompts.side), prompts.side))


def _change(cell, state: str) -> float:
    return cell["hard"][state] - cell["hard"]["trained"]


def _fall(cell) -> tuple[float, float]:
    """How many times smaller the variance is with the most draws, and would be as 1/R."""
    counts = sorted(int(label) for label in cell["variance"] if label.isdigit())
    fewest, most = counts[0], counts[-1]
    return cell["variance"][str(fewest)] / cell["variance"][str(most)], most / fewest


def _outcomes(cells):
    rows = [cell for cell in cells.values() if cell["metric"] != "flat"]
    flat = [cell["refused"] for cell in cells.values() if cell["metric"] == "flat"]
    falls = [_fall(cell) for cell in rows]
    controls = [
        cell["variance"][other] / cell["variance"][str(cell["draws_without_control"])]
        for cell in rows
        for other in ("without control", "one number")
    ]
    spearman = [cell["influence"]["spearman"] for cell in rows]
    further = [[_change(cell, f"{way}, retrained") for way in WAYS] for cell in rows]
    return [
        Outcome(
            "the estimate's variance falls as one over the draws, within a factor of two",
            all(0.5 <= found / expected <= 2 for found, expected in falls),
            "; ".join(f"{found:.1f} times, {expected:.0f} expected" for found, expected in falls),
        ),
        Outcome(
            "its control variates lower the variance, and so does a value of each prompt's own",
            all(each > 1 for each in controls),
            ", ".join(f"{each:.3g} times" for each in controls),
        ),
        Outcome(
            f"the two ways rank samples alike: Spearman of their influences at least {AGREE:g}",
            all(each >= AGREE for each in spearman),
            ", ".join(f"{each:.2f}" for each in spearman),
        ),
        Outcome(
            "retrained without its mask, the drawn way moves the hard metric on the test prompts "
            "at least as far as the smooth one",
            all(drawn >= smooth for smooth, drawn in further),
            "; ".join(f"{drawn:+.4f} against {smooth:+.4f}" for smooth, drawn in further),
        ),
        Outcome(
            "a flat rule is refused with its reason",
            all(each and "gradient" in each for each in flat),
            "; ".join(str(each)[:120] for each in flat),
        ),
    ]


def _rows(cells):
    return [
        {
            "metric": name,
            "cosine": f"{cell['cosine']:.2f}",
            "Spearman": f"{cell['influence']['spearman']:.2f}",
            "masks alike": f"{cell['overlap']:.0%}",
            "hard": f"{cell['hard']['trained']:.4f}",
            **{state: f"{_change(cell, state):+.4f}" for state in cell["hard"] if "," in state},
        }
        for name, cell in cells.items()
        if cell["metric"] != "flat"
    ]


EXPERIMENT = Experiment(
    "Can metrics of lists that have no gradient be steered, and how far from smooth stand-ins?",
    _cells,
    _outcomes,
    _rows,
    defaults={"debias.rows": "memory"},
)
