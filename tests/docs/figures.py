"""The table rows of docs/results.md, and of the README's results, as the result files give them.

A row is written here as the page has it, with the figures from benchmarks/results/.
"""

from __future__ import annotations

import json
from pathlib import Path
from statistics import mean
from typing import Any

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"


def result(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def row(*cells: object) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def loop() -> list[str]:
    found = result("loop")["results"]
    shown = {
        "arp": ("arp", "aplt", "gini", "coverage", "ndcg@10", "test_loss"),
        "hellinger": ("hellinger", "dp", "hellinger@10", "arp", "ndcg@10", "test_loss"),
    }
    rows = []
    for objective, metrics in shown.items():
        figures, held = (
            found[objective][key] for key in ("figures", "heldout_mean_relative_change")
        )
        for metric in metrics:
            each = figures[metric]
            rows.append(
                row(
                    objective,
                    metric,
                    f"{each['mean']['before']:.4g}",
                    f"{each['mean_relative_change']:+.1%}",
                    f"{each['mean_relative_change_retrained']:+.1%}",
                    f"{held[metric]:+.1%}",
                )
            )
    return rows


def ties() -> list[str]:
    rows = []
    for name, label in (("loop", "by item (default)"), ("loop_ties_file", "as in the file")):
        arp, gap = (result(name)["results"][key]["figures"] for key in ("arp", "hellinger"))
        rows.append(
            row(
                label,
                f"{arp['arp']['mean_relative_change']:+.1%}",
                f"{arp['arp']['closed_form_over_retraining']:.2f}",
                f"{gap['hellinger']['mean_relative_change']:+.1%}",
                f"{gap['hellinger']['closed_form_over_retraining']:.2f}",
            )
        )
    return rows


def null() -> list[str]:
    found = result("loop")
    values = found["results"]["hellinger"]["figures"]["hellinger"]["before"]
    nulls = found["results"]["hellinger"]["null"]
    return [
        row(seed, f"{value:.4f}", f"{each['mean']:.4f}", f"{each['p']:.3f}")
        for seed, value, each in zip(
            found["seeds"], values, (n["hellinger"] for n in nulls), strict=True
        )
    ]


def lds() -> list[str]:
    rows = []
    for kind, metrics in result("lds")["pooled"].items():
        for metric, each in metrics.items():
            low, high = each["spearman_interval"]
            a, b = each["slope_interval"]
            rows.append(
                row(
                    kind,
                    metric,
                    each["removals"],
                    f"{each['spearman']:.2f} ({low:.2f} to {high:.2f})",
                    f"{each['slope']:.2f} ({a:.2f} to {b:.2f})",
                )
            )
    return rows


def rivals() -> list[str]:
    rows = []
    found = {name: result(f"compare_{name}") for name in ("arp", "hellinger")}
    for rival in found["arp"]["records"][0]["rivals"]:
        cells = [rival]
        for records in (each["records"] for each in found.values()):
            metric = records[0]["steered"]
            points = [each["rivals"][rival] for each in records]
            chosen = [each["points"][each["chosen"]] for each in points]
            for key in (metric, "ndcg@10"):
                cells.append(
                    f"{mean(p['figures'][key] / r['trained'][key] - 1 for p, r in zip(chosen, records, strict=True)):+.1%}"  # noqa: E501
                )
        cells.append(f"{mean(each['cpu_seconds'] for each in chosen):.1f}")
        rows.append(row(*cells, "yes" if points[0]["names_samples"] else "no"))
    return rows


def record_once() -> list[str]:
    return [
        row(
            request,
            f"{mean(e['first'] for e in seeds):.1%}",
            f"{mean(e['further'] for e in seeds):.1%}",
            f"{mean(e['full_method'] for e in seeds):.1%}",
            f"{mean(e['effect'] for e in seeds):.0%}",
            f"{mean(e['of_retraining'] for e in seeds):.0%}",
        )
        for request, seeds in result("record_once")["shares"].items()
    ]


def brief() -> list[str]:
    """Short trainings: the ways to take samples out, beside retraining."""
    seeds = list(result("replay")["trainings"]["brief"].values())
    names = {"identity": "closed form", "replay": "unrolled"}
    rows = []
    for removal in ("drawn 1", "most popular targets", "chosen, replay"):
        for way, label in names.items():
            found = [each["removals"][removal] for each in seeds]
            ways = [each["ways"][way] for each in found]
            rows.append(
                row(
                    removal.replace(", replay", " by unrolling"),
                    label,
                    f"{mean(each['cosine'] for each in ways):.2f}",
                    f"{mean(each['changes']['arp'] for each in ways):+.1f}",
                    f"{mean(each['retrained']['arp'] for each in found):+.1f}",
                )
            )
    return rows


def scoring() -> list[str]:
    cases = {case["hidden"]: case["rows"] for case in result("scoring")["cases"]}
    names = sorted(cases[512], key=lambda name: -cases[512][name]["speed"])
    return [row(name, *(f"{rows[name]['speed']:.2f}" for rows in cases.values())) for name in names]


def curvature() -> list[str]:
    cases = {case["hidden"]: case["rows"] for case in result("curvature_products")["cases"]}
    names = sorted(cases[512], key=lambda name: cases[512][name]["cost"])
    return [row(name, *(f"{rows[name]['cost']:.2f}" for rows in cases.values())) for name in names]


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
    stream = result("store_stream")
    forms = result("data_large")["forms"]
    catalogue = result("catalogue")["expectation"]["float32"]
    memory = result("scoring_memory")["rows"]
    return [
        *sizes,
        row(
            f"`store_stream`: product with a store of {stream['store_gb']:.1f} GB from disk",
            f"{stream['share_of_disk_bandwidth']:.0%} of the speed of reading its files",
        ),
        row(
            "`data_large`: reading 10⁷ interactions, peak memory",
            ", ".join(f"{f['peak_bytes'] / 2**30:.1f} GiB ({name})" for name, f in forms.items()),
        ),
        row(
            "`catalogue`: expectations over 10⁶ items with gradients",
            f"{catalogue['times_chunked']:.2f} times the speed of chunked torch (2 was asked for)",
        ),
        row(
            "`scoring_memory`: growth of memory from 10³ to 10⁵ samples",
            f"{memory[-1]['grown_mb'] - memory[0]['grown_mb']:.1f} MB",
        ),
    ]


def experiments() -> list[str]:
    names = ("planted", "lambdas", "not_differentiable", "full_parameters")
    return [
        row(f"`{name}`", each["hypothesis"], "held" if each["held"] else "did not hold")
        for name in names
        for each in result(f"experiment_{name}")["outcomes"]
    ]


def llm() -> list[str]:
    rows = []
    for name, label in (("llm", "first request"), ("llm_clean", "second request")):
        found = result(name)
        arp, shifts = found["results"]["arp"], found["shifts"]["arp"]
        for metric in ("arp", "arp_soft"):
            low, high = arp["intervals"]["retrained_change"][metric]
            rows.append(
                row(
                    label,
                    metric,
                    f"{arp['before'][metric]:.4g}",
                    f"{arp['after'][metric] - arp['before'][metric]:+.3g}",
                    f"{arp['retrained'][metric] - arp['before'][metric]:+.3g}",
                    f"{low:+.3g} to {high:+.3g}",
                    f"{shifts['cosine']:.2f}",
                )
            )
    return rows


def kills() -> list[str]:
    record, store = result("record_kills"), result("store_kills")
    assert record["all_equal"]
    assert store["all_equal"]
    return [
        row("`store_kills`", store["kills"], "equal, byte for byte"),
        row("`record_kills`", sum(record["kills"].values()), "equal, byte for byte"),
    ]


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


TOPICS = (
    loop, ties, null, lds, rivals, record_once, brief, scoring, curvature, large, experiments,
    llm, kills, dropped,
)  # fmt: skip
