"""The table rows of docs/results.md and the README, with the figures of benchmarks/results/."""

from __future__ import annotations

from statistics import mean
from typing import Any

from catalogue_figures import (
    catalogue_expectation,
    catalogue_request,
    catalogue_training,
    floor,
)
from command_figures import hostile, startup, wait
from question_figures import explain, forget, query_speed
from rank_figures import many_rows, rank_kills, ranks
from recommender_figures import semantic_ids
from rows import result, row
from unrolled_figures import (
    attribution,
    costs,
    error_bar,
    rounding,
    unrolled,
    unrolled_before,
    unrolled_parts,
)


def percent(values: Any, digits: int = 1) -> list[str]:
    return [f"{value:+.{digits}%}" for value in values]


def loop() -> list[str]:
    found = result("loop")["results"]
    shown = {
        "arp": ("arp", "aplt", "gini", "coverage", "ndcg@10", "test_loss"),
        "hellinger": ("hellinger", "dp", "hellinger@10", "arp", "ndcg@10", "test_loss"),
    }
    rows = []
    for objective, metrics in shown.items():
        held = found[objective]["heldout_mean_relative_change"]
        for metric in metrics:
            each = found[objective]["figures"][metric]
            changes = [each[f"mean_relative_change{of}"] for of in ("", "_retrained")]
            before = f"{each['mean']['before']:.4g}"
            rows.append(row(objective, metric, before, *percent([*changes, held[metric]])))
    return rows


def ties() -> list[str]:
    rows = []
    for name, label in (("loop", "by item (default)"), ("loop_ties_file", "as in the file")):
        cells = []
        for key in ("arp", "hellinger"):
            found = result(name)["results"][key]["figures"][key]
            cells += percent([found["mean_relative_change"]])
            cells.append(f"{found['closed_form_over_retraining']:.2f}")
        rows.append(row(label, *cells))
    return rows


def null() -> list[str]:
    found = result("loop")
    gap = found["results"]["hellinger"]
    values = gap["figures"]["hellinger"]["before"]
    nulls = [each["hellinger"] for each in gap["null"]]
    return [
        row(seed, f"{value:.4f}", f"{each['mean']:.4f}", f"{each['p']:.3f}")
        for seed, value, each in zip(found["seeds"], values, nulls, strict=True)
    ]


def lds() -> list[str]:
    def cell(each: dict[str, Any], name: str) -> str:
        low, high = each[f"{name}_interval"]
        return f"{each[name]:.2f} ({low:.2f} to {high:.2f})"

    return [
        row(kind, metric, each["removals"], cell(each, "spearman"), cell(each, "slope"))
        for kind, metrics in result("lds")["pooled"].items()
        for metric, each in metrics.items()
    ]


def rivals() -> list[str]:
    rows = []
    found = [result(f"compare_{name}")["records"] for name in ("arp", "hellinger")]
    for rival in found[0][0]["rivals"]:
        cells = [rival]
        for records in found:
            points = [each["rivals"][rival] for each in records]
            chosen = [each["points"][each["chosen"]] for each in points]
            for key in (records[0]["steered"], "ndcg@10"):
                changes = [
                    point["figures"][key] / each["trained"][key] - 1
                    for point, each in zip(chosen, records, strict=True)
                ]
                cells += percent([mean(changes)])
        cells.append(f"{mean(each['cpu_seconds'] for each in chosen):.1f}")
        rows.append(row(*cells, "yes" if points[0]["names_samples"] else "no"))
    return rows


def record_once() -> list[str]:
    kinds = {"first": 1, "further": 1, "full_method": 1, "effect": 0, "of_retraining": 0}
    return [
        row(request, *(f"{mean(e[kind] for e in seeds):.{n}%}" for kind, n in kinds.items()))
        for request, seeds in result("record_once")["shares"].items()
    ]


def brief() -> list[str]:
    """Short trainings: the ways to take samples out, beside retraining."""
    seeds = list(result("replay")["trainings"]["brief"].values())
    names = {"identity": "closed form", "replay": "unrolled"}
    rows = []
    for removal in ("drawn 1", "most popular targets", "chosen, replay"):
        label = removal.replace(", replay", " by unrolling")
        found = [each["removals"][removal] for each in seeds]
        retrained = f"{mean(each['retrained']['arp'] for each in found):+.1f}"
        for name, way in names.items():
            ways = [each["ways"][name] for each in found]
            cosine = f"{mean(each['cosine'] for each in ways):.2f}"
            change = f"{mean(each['changes']['arp'] for each in ways):+.1f}"
            rows.append(row(label, way, cosine, change, retrained))
    return rows


def by_width(name: str, figure: str, sign: int) -> list[str]:
    """A row a way with its figure at every width, the best at the first width first."""
    cases = [case["rows"] for case in result(name)["cases"]]
    names = sorted(cases[0], key=lambda way: sign * cases[0][way][figure])
    return [row(way, *(f"{rows[way][figure]:.2f}" for rows in cases)) for way in names]


def scoring() -> list[str]:
    return by_width("scoring", "speed", -1)


def bases() -> list[str]:
    """Products over bases of other types, in steps of peft on the same base, by width; titles."""
    both = [result(f"scoring_{name}") for name in ("bfloat16", "quantised")]
    found = {kind: [case for each in both for case in each[kind]] for kind in ("cases", "titles")}
    widths = sorted({case["hidden"] for case in found["cases"]}, reverse=True)

    def speeds(kind: str, base: str, way: str) -> list[str]:
        rows = {c["hidden"]: c["rows"] for c in found[kind] if c["base"] == base}
        return [f"{rows[width][way]['speed']:.2f}" if rows else "–" for width in widths]

    names = dict.fromkeys(case["base"] for case in found["cases"])
    return [
        row(name, *speeds("cases", name, "fudlr_ext"), *speeds("titles", name, "fudlr_ext"),
            *speeds("cases", name, "fudlr_ext, base in float32"))
        for name in names
    ]  # fmt: skip


def curvature() -> list[str]:
    return by_width("curvature_products", "cost", 1)


def large() -> list[str]:
    sizes = [
        row(
            f"{cell['interactions']:,}",
            f"{cell['record_seconds'] + cell['request_seconds']:.1f}",
            f"{cell['retraining_seconds_extrapolated']:.0f}",
            f"{cell['share']:.1%}",
            f"{cell['request_share']:.2%}",
            f"{cell['peak_bytes'] / 1e6:.0f}",
        )
        for cell in result("experiment_scale")["cells"].values()
    ]
    stream, memory = result("store_stream"), result("scoring_memory")["rows"]
    forms = result("data_large")["forms"]
    peaks = [f"{form['peak_bytes'] / 2**30:.1f} GiB ({name})" for name, form in forms.items()]
    others = {
        f"`store_stream`: unrolled request from a store of {stream['write']['store_gb']:.1f} GB": (
            f"{stream['request']['peak_gb']:.2f} GB of memory at most, "
            f"{stream['request']['share_of_read_bandwidth']:.0%} of the speed of reading its files "
            "(60% was asked for)"
        ),
        "`data_large`: reading 10⁷ interactions, peak memory": ", ".join(peaks),
        "`scoring_memory`: growth of memory from 10³ to 10⁵ samples": (
            f"{memory[-1]['grown_mb'] - memory[0]['grown_mb']:.1f} MB"
        ),
    }
    return [*sizes, *(row(*each) for each in others.items())]


def experiments() -> list[str]:
    names = ("planted", "lambdas", "not_differentiable", "full_parameters")
    return [
        row(f"`{name}`", each["hypothesis"], "held" if each["held"] else "did not hold")
        for name in names
        for each in result(f"experiment_{name}")["outcomes"]
    ]


def bigrec() -> list[str]:
    rows = []
    for name, label in (("bigrec", "first request"), ("bigrec_again", "second request")):
        found = result(name)
        arp, cosine = found["results"]["arp"], f"{found['shifts']['arp']['cosine']:.2f}"
        for metric in ("arp", "arp_soft"):
            before = arp["before"][metric]
            low, high = arp["intervals"]["retrained_change"][metric]
            changes = [f"{arp[of][metric] - before:+.3g}" for of in ("after", "retrained")]
            interval = f"{low:+.3g} to {high:+.3g}"
            rows.append(row(label, metric, f"{before:.4g}", *changes, interval, cosine))
    return rows


def kills() -> list[str]:
    record, store, found = (result(name) for name in ("record_kills", "store_kills", "malformed"))
    assert store["all_equal"]
    assert record["bars"][0]["met"]
    return [
        row("`store_kills`", store["kills"], "equal, byte for byte"),
        row("`record_kills`", record["kills"], "equal, byte for byte"),
        row(f"{found['cases']:,}", len(found["wrong"])),
    ]


def compat() -> list[str]:
    """A row an environment: what is in it, and what passed there."""
    rows = []
    for each in result("compat")["rows"]:
        passed = (each[part]["passed"] for part in ("ops", "engine", "demo", "examples"))
        cells = ["yes" if part else "no" for part in passed]
        names = (each[name] for name in ("torch", "transformers", "peft", "python"))
        rows.append(row(*names, len(each["changed"]), *cells))
    return rows


def stable_abi() -> list[str]:
    """A tiny call's microseconds, and the engine's milliseconds, by either binding."""
    rows = []
    for each in result("same_speed_abi")["rows"]:
        engine = each["hidden"] or each["call"].startswith("engine")
        calls = 1 if each["hidden"] else 10 if engine else 10_000
        unit, factor = ("ms", 1e3) if engine else ("µs", 1e6)
        name = f"`{each['call']}`" + (f", hidden {each['hidden']}" if each["hidden"] else "")
        times = (each["seconds"][tree] / calls * factor for tree in ("other", "this"))
        cells = (f"{time:.1f} {unit}" for time in times)
        rows.append(row(name, *cells, f"{each['speed']:.2f}"))
    return rows


def wheels() -> list[str]:
    """What each wheel is for, and its size."""
    rows = []
    for each in result("wheels")["wheels"]:
        kernels = [*each.get("isas", ["portable"]), *each.get("gpus", [])]
        rows.append(row(each["platform"], ", ".join(kernels), f"{each['bytes'] / 1e6:.1f} MB"))
    return rows


def dropped() -> list[str]:
    """What was tried and is no longer there; the last cell is the result file."""
    curves = result("curvatures")["curvatures"]
    closer = {key: each["rules"] for key, each in result("closer")["results"].items()}
    bed = result("bed")["seeds"]["0"]["hessian"]["errors"]
    early = result("early_stop")["trainings"]["short"]["removals"]["chosen, adam"]["ways"]
    brief_ = [e["removals"] for e in result("replay")["trainings"]["brief"].values()]
    candidates = result("candidates")["runs"][0]["rows"]
    steering = list(result("steering")["seeds"].values())
    mask = result("mask_step")
    heads = {k: h["times_torch"] for k, h in result("cross_entropy")["heads"].items()}
    small = [t for key, t in heads.items() if "x64x" not in key]
    full = result("experiment_full_parameters")["outcomes"][0]["found"]

    def share(name: str) -> str:
        return f"{curves[name]['closed_form_over_retraining']:.2f}"

    def rule(name: str) -> str:
        values = (each[name]["share_of_retraining_mean"] for each in closer.values())
        return "ARP {:.2f}, Hellinger {:.2f} of retraining's change".format(*values)

    def mode(name: str) -> str:
        change = mean(each[name]["change"]["arp"] for each in steering)
        truth = mean(each[name]["retrained"]["arp"] for each in steering)
        return f"ARP {change:+.1%}, really retrained {truth:+.1%}"

    def of_all(strategy: str) -> str:
        (found,) = (r for r in candidates if (r["strategy"], r["share"]) == (strategy, 0.1))
        return f"{strategy} {found['lambda_acc']['1']['of_all']['arp@k']:.0%}"

    calibrated = "of retraining's change of ARP, once calibrated"
    adam = mean(r["chosen, adam"]["ways"]["adam"]["changes"]["arp"] for r in brief_)
    adam_truth = mean(r["chosen, adam"]["retrained"]["arp"] for r in brief_)
    return [
        row("block Fisher", f"{share('block_fisher')} {calibrated}", "`curvatures`"),
        row("DataInf", f"{share('datainf')} {calibrated}", "`curvatures`"),
        row("K-FAC (EK-FAC stays)", f"{share('kfac')} {calibrated}", "`curvatures`"),
        row(
            "true Fisher",
            f"{share('true_fisher')} of retraining's change, {curves['true_fisher']['seconds']:.0f}"
            f" s where the empirical Fisher gives {share('empirical_fisher')} in "
            f"{curves['empirical_fisher']['seconds']:.0f} s",
            "`curvatures`",
        ),
        row("curvature of the kept samples", rule("kept_curvature"), "`closer`"),
        row(
            "series update, order 3",
            f"error {bed['series, order 3'][2]:+.1%} at 10% removed, two Newton steps "
            f"{bed['newton, 2'][2]:+.1%}",
            "`bed`",
        ),
        row("mean gradient descended (`slope`)", rule("one_step, slope descended"), "`closer`"),
        row(
            "damping in Adam's metric",
            f"ARP {adam:+.1f} where retraining gives {adam_truth:+.1f}; on a language model's two "
            f"layers cosine {early['adam']['cosine']:.2f}",
            "`replay`, `early_stop`",
        ),
        row("steering: soft masks", mode("soft"), "`steering`"),
        row("steering: signed masks", mode("signed"), "`steering`"),
        row("steering: line search", mode("line_search"), "`steering`"),
        row("steering: direct (a rival in `compare`)", mode("direct"), "`steering`"),
        row(
            "candidate strategies, 10% of the samples",
            ", ".join(map(of_all, ("popularity", "random", "stratified", "group", "loss")))
            + " of the change with all samples",
            "`candidates`",
        ),
        row(
            "a head's cross-entropy as an op (`linear_cross_entropy`)",
            f"{min(small):.2f} to {max(small):.2f} of torch's speed on a language model's sizes, "
            f"{heads['512x64x100000, hidden']:.1f} times with states 64 wide and 100,000 items; "
            "nothing called it",
            "`cross_entropy`",
        ),
        row(
            "native mask descent (`mask_step`)",
            f"{mask['times_torch']:.1f} times torch in place; milliseconds of a request either way",
            "`mask_step`",
        ),
        row(
            "all parameters instead of LoRA",
            f"change over retraining's, LoRA and all parameters: {full}",
            "`experiment_full_parameters`",
        ),
        row("LiSSA, Lanczos, Woodbury", "solvers of the same equations; no figure was kept", "–"),
        row(
            "polish",
            "held-out figures and curve described another adapter; no figure was kept",
            "–",
        ),
    ]


def sft() -> list[str]:
    lines = []
    for epochs, found in result("sft")["epochs"].items():
        low, high = found["range"]
        cells = percent([found["whole"], found["median_step"]])
        lines.append(row(f"SFTTrainer, {epochs}", *cells, f"{low:+.1%} to {high:+.1%}"))
    return lines


def zoo() -> list[str]:
    return [row(part, *list(n.values())[:3]) for part, n in result("zoo")["counts"].items()]


TOPICS = (
    semantic_ids, loop, ties, null, lds, rivals, record_once, unrolled, error_bar, rounding,
    unrolled_before, unrolled_parts, brief, costs, attribution, scoring, bases, curvature, large,
    experiments, bigrec, kills, rank_kills, ranks, many_rows, forget, explain,
    query_speed, wait, startup, dropped, sft, zoo, hostile, compat, stable_abi, wheels,
    catalogue_expectation, catalogue_request, catalogue_training, floor,
)  # fmt: skip
