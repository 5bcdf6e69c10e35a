"""How many directions a store needs: a number for all matrices, or a share of their energy."""

from statistics import mean

from tables.shared import machine, rows

PAGE = "results"
RESULTS = ("record_dims",)


def render(record: dict) -> list[str]:
    """One row a choice, means over the seeds."""
    seeds = record["seeds"]
    names = list(seeds[0]["full"])

    def line(place: int) -> list[str]:
        found = [seed["choices"][place] for seed in seeds]
        first = found[0]
        said = f"dims {first['dims']}" if first["dims"] else f"energy {first['energy']:g}"
        effects = [
            f"{mean(row['requests'][name]['effect'] for row in found):.1%}" for name in names
        ]
        least = min(row["requests"][name]["effect"] for row in found for name in names)
        scores = mean(row["requests"][name]["spearman"] for row in found for name in names)
        return [
            said,
            f"{mean(row['dim'] for row in found):.0f}",
            f"{mean(row['of_gradients'] for row in found):.1%}",
            f"{mean(row['audit']['energy'] for row in found):.1%}",
            f"{mean(row['audit']['influences'] for row in found):.1%}",
            *effects,
            f"{least:.1%}",
            f"{scores:.4f}",
        ]

    head = ["directions", "numbers a row", "of the gradients' size", "energy kept",
            "influences kept", *(f"effect: {name}" for name in names), "least",
            "Spearman"]  # fmt: skip
    return [
        "## How many directions",
        "",
        "The demo's trained adapter recorded in a scoring pass, in bfloat16, with as many "
        "principal directions for every B, or the fewest for each that keep a share of its "
        "energy. *Energy* and *influences kept* are the audit's, of all LoRA matrices' gradients; "
        "*effect* is the change of the metric on the test prompts as a share of the full method's "
        "with every whole gradient; *Spearman* is of the scores with the full method's. Means over "
        f"seeds {', '.join(str(seed['seed']) for seed in seeds)}; *least* is the smallest effect "
        "of any request and seed.",
        "",
        machine(record),
        "",
        *rows(head, (line(place) for place in range(len(seeds[0]["choices"])))),
    ]
