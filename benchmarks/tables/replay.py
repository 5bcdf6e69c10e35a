"""The training gone again, beside both closed forms, where real retraining is the truth."""

from tables.shared import machine, rows

PAGE = "results"
RESULTS = ("replay",)
NAMES = {"identity": "one number", "adam": "Adam's metric", "replay": "replay"}


def render(record: dict) -> list[str]:
    """Two tables for each training: the ways over all removals, and one of each removal."""
    lines = [
        "## Trainings gone again",
        "",
        f"Three ways to take {record['share']:.0%} of the samples out, beside real retraining "
        "without them: the closed form with one damping for all parameters, the closed form in "
        "Adam's metric, and the replay. *Cosine* is of the adapter's two shifts, *of its way* how "
        "much of a way's shift retraining goes along it (1 is wanted); then changes on the "
        "validation prompts, the way's / retraining's. Means over seeds "
        f"{', '.join(next(iter(record['trainings'].values())))}, where there are several.",
        "",
        machine(record),
        "",
    ]
    for name, seeds in record["trainings"].items():
        lines += [f"### {name[:1].upper()}{name[1:]} training", "", _about(seeds), ""]
        lines += [*rows(_HEAD, _body(list(seeds.values()))), ""]
    return lines[:-1]


_HEAD = ("removed", "way", "cosine", "of its way", "ARP of the lists", "its surrogate",
         "validation loss")  # fmt: skip


def _about(seeds: dict) -> str:
    first = next(iter(seeds.values()))
    cpu = first["cpu_seconds"]
    costs = "; ".join(
        f"{NAMES[way]} {cpu[way]['scores']:.1f} and {cpu[way]['update']:.1f}" for way in NAMES
    )
    return (
        f"{first['samples']:,} samples, {first['parameters']:,} parameters, {first['epochs']} "
        f"epochs, the batches' rows kept. CPU seconds of scores and of one update: {costs}; a "
        f"retraining {cpu['retraining']:.1f}."
    )


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _body(seeds: list[dict]) -> list[tuple[str, ...]]:
    body = []
    for removed in seeds[0]["removals"]:
        of = [seed["removals"][removed] for seed in seeds]
        shown = removed
        for key, words in NAMES.items():
            shown = shown.replace(f"chosen, {key}", f"chosen by {words}")
        for way, words in NAMES.items():
            ways = [each["ways"][way] for each in of]
            changes = (
                f"{_mean([each['changes'][metric] for each in ways]):{form}} / "
                f"{_mean([each['retrained'][metric] for each in of]):{form}}"
                for metric, form in (("arp", "+.1f"), ("arp_soft", "+.4f"), ("val_loss", "+.4f"))
            )
            cosine, along = (_mean([each[key] for each in ways]) for key in ("cosine", "along"))
            body.append((shown, words, f"{cosine:.2f}", f"{along:.2f}", *changes))
    return body
