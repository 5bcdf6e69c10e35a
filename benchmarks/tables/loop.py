"""The demo over three seeds, its bars, and what chance alone does."""

from tables.shared import bar_rows, machine, percent

PAGE = "results"
RESULTS = ("loop", "loop_ties_file")
SHOWN = {
    "arp": ("arp", "aplt", "gini", "coverage", "ndcg@10", "hr@10", "val_loss", "test_loss"),
    "hellinger": ("hellinger", "dp", "hellinger@10", "dp@10", "arp", "ndcg@10", "hr@10",
                  "val_loss", "test_loss"),
}  # fmt: skip
TITLES = {
    "arp": "Steered at popularity (`--objective arp`)",
    "hellinger": "Steered at the gap between genders (`--objective hellinger`)",
}


def objective(name: str, result: dict) -> list[str]:
    """The table of one objective, means over the seeds."""
    lines = [
        f"### {TITLES[name]}",
        "",
        "| metric | trained | closed form | retrained | change | retrained's change "
        "| held-out users |",
        "|---|---|---|---|---|---|---|",
    ]
    for metric in SHOWN[name]:
        row = result["figures"][metric]
        means = row["mean"]
        held = result["heldout_mean_relative_change"][metric]
        lines.append(
            f"| {metric} | {means['before']:.4g} | {means['after']:.4g} | {means['retrained']:.4g} "
            f"| {percent(row['mean_relative_change'])} "
            f"| {percent(row['mean_relative_change_retrained'])} | {percent(held)} |"
        )
    shares = ", ".join(f"{share:.0%}" for share in result["share_of_training"])
    ratio = result["figures"][name]["closed_form_over_retraining"]
    lines += [
        "",
        f"The closed form's mean change of {name} is {ratio:.2f} times the retraining's. The "
        f"update cost {shares} of the training's wall time (every sample scored, no sketches).",
        "",
    ]
    return lines


def null_rows(result: dict) -> list[str]:
    """The permutation null of each seed, before debiasing."""
    lines = ["| seed | hellinger | permuted groups: mean | 95% | p |", "|---|---|---|---|---|"]
    observed = result["figures"]["hellinger"]["before"]
    for seed, (value, null) in enumerate(zip(observed, result["null"], strict=True)):
        found = null["hellinger"]
        low, high = found["interval"]
        lines.append(
            f"| {seed} | {value:.4f} | {found['mean']:.4f} | {low:.4f} to {high:.4f} "
            f"| {found['p']:.3f} |"
        )
    return lines


def other_ties(record: dict) -> list[str]:
    """The same bars with another order of interactions at the same second."""
    return [
        "### With ties in time left in the file's order",
        "",
        "Many MovieLens ratings of a user share a second, so that their order, and with it every "
        "target, is a convention. By default ties fall by item, and a split does not hang on the "
        "order of a file's rows; `data.ties: file` keeps the file's. The effect depends on it, and "
        "this order is the harder one:",
        "",
        machine(record),
        "",
        *bar_rows(record),
    ]


def render(record: dict, ties_file: dict) -> list[str]:
    """The section."""
    lines = [
        "## The loop on MovieLens-100k",
        "",
        f"Means over seeds {', '.join(map(str, record['seeds']))}; 10% budget, λ_acc = 1, every "
        "sample scored; figures on the test prompts, gradients from the validation prompts of the "
        "same users. *Held-out users*: each user is judged by an update that its own gradient had "
        "no part in (twofold cross-fitting).",
        "",
        machine(record),
        "",
        *bar_rows(record),
        "",
    ]
    for name, result in record["results"].items():
        lines += objective(name, result)
    return [
        *lines,
        "### What chance alone does",
        "",
        "Hellinger distance between the genders before debiasing, and with the genders permuted:",
        "",
        *null_rows(record["results"]["hellinger"]),
        "",
        *other_ties(ties_file),
    ]
