"""The damping rule beside fixed factors of it."""

from statistics import mean

from tables.shared import machine, rows

PAGE = "results"
RESULTS = ("damping",)
KINDS = ("predicted", "closed form")


def render(record: dict) -> list[str]:
    """One row a factor and training: means over the seeds."""
    lines = [
        "## The damping rule",
        "",
        "The rule's damping times a factor, held against real retrainings without 10% of the "
        "samples, random and targeted, on the validation prompts: *ratio* is the change found over "
        "the actual one (least squares through the origin), *error* the distance of the found "
        "changes from the actual ones as a share of these; means over the seeds. *Predicted* is "
        "first order, *closed form* the updated adapter measured; *parameters* compares its shift "
        "with the retrained one's.",
        "",
        machine(record),
        "",
    ]
    for name, seeds in record["trainings"].items():
        found = list(seeds.values())
        if not found:
            continue
        slopes = ", ".join(f"{each['stationarity']:.2f}" for each in found)
        rules = ", ".join(f"{each['rule']:g}" for each in found)
        lines += [
            f"### {name[:1].upper()}{name[1:]}",
            "",
            f"λ = {found[0]['l2']:g}; the slope left at θ* is {slopes} of what would cancel; the "
            f"rule gives {rules}. {found[0]['random']} random and {found[0]['targeted']} targeted "
            "removals a seed.",
            "",
        ]
        head = ["factor"]
        for metric in ("arp", "hellinger"):
            head += [f"{metric}, {kind}: {what}" for kind in KINDS for what in ("ratio", "error")]
        head += ["parameters: ratio", "error"]
        body = []
        for factor in found[0]["factors"]:
            cells = [factor]
            for metric in ("arp", "hellinger"):
                for kind in KINDS:
                    each = [f["factors"][factor][kind][metric] for f in found]
                    cells += [f"{mean(e['ratio'] for e in each):.2f}"]
                    cells += [f"{mean(e['error'] for e in each):.0%}"]
            each = [f["factors"][factor]["parameters"] for f in found]
            cells += [f"{mean(e['ratio'] for e in each):.2f}"]
            cells += [f"{mean(e['error'] for e in each):.0%}"]
            body.append(cells)
        lines += [*rows(head, body), ""]
    return lines[:-1]
