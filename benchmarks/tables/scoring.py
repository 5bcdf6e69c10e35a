"""Scoring beside the peft step, the frozen limit and other libraries."""

from tables.shared import bar_rows, machine, rows

PAGE = "benchmarks"
RESULTS = ("scoring",)


def _cells(name: str, row: dict) -> list[str]:
    low, high = row["middle_half"]
    error = f"{row['error']:.1g}" if "error" in row else ""
    return [name, f"{row['seconds']:.3f}", f"{row['speed']:.2f}", f"{low:.2f} to {high:.2f}", error]


def render(record: dict) -> list[str]:
    """The bars, then one table a size, fastest first."""
    head = ("", "seconds", "speed", "middle half", "error beside the engine")
    load = record["machine"]["load"][0]
    lines = [
        "## Scoring with 8 vectors",
        "",
        "Speed 1 is `model(**batch).loss.backward()` of the peft model. The frozen limit is the "
        "base model forward and backward to its embeddings, logits at the labels alone.",
        "",
        f"{machine(record)} Load while it ran: {load:.1f}.",
        "",
        *bar_rows(record),
    ]
    for case in record["cases"]:
        lines += [
            "",
            f"### Hidden {case['hidden']}, {case['samples']} samples of {case['positions']} "
            f"positions, threads: {case['threads']}",
            "",
            *rows(head, (_cells(*item) for item in sorted(
                case["rows"].items(), key=lambda item: -item[1]["speed"]))),
        ]  # fmt: skip
        lines += [f"\n{name} could not run: {why}" for name, why in case["failed"].items()]
    for case in record["titles"]:
        low, mean, high = case["tokens"]
        speed = case["rows"]["fudlr_ext"]["speed"]
        lines += [
            "",
            f"Title prompts of MovieLens-100k, hidden {case['hidden']}, threads: "
            f"{case['threads']}: {case['samples']} prompts of {low} to {high} tokens (mean "
            f"{mean:.0f}; {case['padding']:.0%} of the batches is padding): {speed:.2f} times the "
            "peft step.",
        ]
    return lines
