"""Candidates without a store: what each strategy and share saves, and costs in effect."""

from statistics import mean

from tables.shared import machine, percent, rows

PAGE = "results"
RESULTS = ("candidates",)


def _row(record: dict, place: int) -> list[str]:
    """Means over the seeds of one strategy and share."""
    found = [run["rows"][place] for run in record["runs"]]
    cells = [found[0]["strategy"], f"{found[0]['share']:.0%}"]
    cells += [f"{mean(r['gradients'] for r in found):.1f}"]
    cells += [f"{mean(r['of_training'] for r in found):.1%}"]
    for name in found[0]["lambda_acc"]:
        each = [row["lambda_acc"][name] for row in found]
        cells += [f"{mean(e['of_all'][key] for e in each):.0%}" for key in ("arp", "arp@k")]
        cells += [percent(mean(e["loss_rise"] for e in each))]
    return cells


def render(record: dict) -> list[str]:
    """One row a strategy and share."""
    runs = record["runs"]
    head = ["candidates", "share", "gradients, CPU s", "of the training"]
    for name in runs[0]["rows"][0]["lambda_acc"]:
        head += [f"surrogate, λ_acc {name}", f"ARP@10, λ_acc {name}", f"loss, λ_acc {name}"]
    whole = runs[0]["rows"][0]["lambda_acc"]
    full = "; ".join(
        f"λ_acc {name}: surrogate {percent(found['arp'])}, ARP@10 {percent(found['arp@k'])}"
        for name, found in whole.items()
    )
    return [
        "## Candidates without a store",
        "",
        f"Popularity steered down, budget {record['budget']:.0%}, seeds "
        f"{', '.join(str(run['seed']) for run in runs)}, closed form measured on the test prompts. "
        "Columns *surrogate* and *ARP@10* are the change as a share of what scoring all samples "
        "gives, *loss* the validation loss's change. The gradients' CPU seconds contain the "
        "choosing; the training's are one epoch's times the epochs. Changes with all samples at "
        f"seed {runs[0]['seed']}: {full}.",
        "",
        machine(record),
        "",
        *rows(head, (_row(record, place) for place in range(len(runs[0]["rows"])))),
    ]
