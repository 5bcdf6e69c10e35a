"""One damping for all parameters, and one by Adam's pace, where training stopped early."""

from tables.shared import machine, rows

PAGE = "results"
RESULTS = ("early_stop",)
NAMES = {"identity": "one number", "adam": "Adam's metric"}


def render(record: dict) -> list[str]:
    """A table for each training: a row for each removal and damping."""
    lines = [
        "## Trainings that stop early",
        "",
        f"Closed form beside real retraining without {record['share']:.0%} of the samples. "
        "*Cosine* is of the adapter's two shifts, *of its way* how much of the closed form's way "
        "retraining goes along it (1 is wanted); then their lengths, and the changes of the "
        "validation loss and of ARP's surrogate on the validation prompts: the closed form's / "
        "retraining's.",
        "",
        machine(record),
        "",
    ]
    for name, found in record["trainings"].items():
        lines += [f"### {name[:1].upper()}{name[1:]}", "", _about(record, name, found), ""]
        lines += [*rows(_HEAD, _body(found)), ""]
    return lines[:-1]


_HEAD = (
    "removed",
    "damping",
    "cosine",
    "of its way",
    "lengths",
    "validation loss",
    "ARP, surrogate",
)


def _about(record: dict, name: str, found: dict) -> str:
    model = f"The real run's options on the model's first {record['layers']} layers" \
        if name == "short" else "The demo's own training"  # fmt: skip
    losses = ", ".join(f"{loss:.2f}" for loss in found["losses"])
    return (
        f"{model}: {found['samples']:,} samples, {found['parameters']:,} parameters, losses of "
        f"{found['epochs']} epochs {losses}; {found['slope_left']:.2f} of the slope is left. One "
        f"number: {found['damping']:g}; Adam's metric: {found['mean_damping']:.3g} on average."
    )


def _body(found: dict) -> list[tuple[str, ...]]:
    body = []
    for removed, of in found["removals"].items():
        for damping, way in of["ways"].items():
            changes = (
                f"{way['changes'][metric]:+.4f} / {of['retrained'][metric]:+.4f}"
                for metric in ("val_loss", "arp")
            )
            shown = removed
            for key, words in NAMES.items():
                shown = shown.replace(f"chosen, {key}", f"chosen by {words}")
            lengths = f"{way['length']:.2f} / {way['retrained_length']:.2f}"
            cells = (f"{way['cosine']:.2f}", f"{way['along']:.2f}", lengths)
            body.append((shown, NAMES[damping], *cells, *changes))
    return body
