"""Rows of docs/results.md: catalogues of up to a million items, and a pass beside its floor."""

from __future__ import annotations

from rows import result, row


def catalogue_request() -> list[str]:
    found = result("catalogue_request")
    compared = dict(found["compared"])
    peak = compared.pop("peak_gb_beside_weights")
    compared.pop("largest_relative_difference_of_figures")
    sizes = [
        row(
            f"{each['items']:,}",
            f"{each['users']:,} ({each['users_judged']:,})",
            f"{each['gradients_ms_a_user']:.2f}",
            f"{each['evaluation_ms_a_user']:.2f}",
            f"{each['peak_gb_beside_weights']:.2f}",
        )
        for each in found["rows"]
    ]
    stages = [
        row(
            name,
            f"{each['factors']:.2f} s",
            f"{each['matrices']:.2f} s",
            f"{each['matrices'] / each['factors']:.1f}",
        )
        for name, each in compared.items()
    ]
    memory = row(
        "peak memory",
        f"{peak['factors']:.2f} GB",
        f"{peak['matrices']:.2f} GB",
        f"{peak['matrices'] / peak['factors']:.1f}",
    )
    return [*sizes, *stages, memory, *_bars(found)]


def catalogue_training() -> list[str]:
    found = result("catalogue_training")
    steps = [
        row(
            f"{each['items']:,}",
            f"{each['fudlr_cpu_s_a_step']:.2f}",
            f"{each['peft_cpu_s_a_step']:.2f}",
            f"{each['speed']:.1f}",
            f"{each['fudlr_peak_gb_beside_weights']:.2f}",
            f"{each['peft_peak_gb_beside_weights']:.2f}",
            f"{each['memory']:.1f}",
        )
        for each in found["rows"]
    ]
    return [*steps, *_bars(found)]


def catalogue_expectation() -> list[str]:
    found = result("catalogue_expectation")
    speeds = [
        row(
            each["isa"],
            each["gradients"],
            f"{each['seconds']['ours']:.2f} s",
            f"{each['seconds'][each['fastest_torch']]:.2f} s",
            f"{each['times_torch']:.2f}",
            f"{max(each['errors_beside_float64']['ours']):.1e}",
        )
        for each in found["rows"]
    ]
    parts = ("items", "tiles", "tiles_of_128_prompts", "tiles_by_the_bound")
    shares = [
        row(f"{each['tolerance']:g}", *(f"{each[part]:.1%}" for part in parts))
        for each in found["left_out"]["shares"]
    ]
    return [*speeds, *shares]


def floor() -> list[str]:
    cells: dict[tuple[str, int], dict[int, dict]] = {}
    for each in result("floor")["rows"]:
        cells.setdefault((each["base"], each["hidden"]), {})[each["tokens"]] = each
    lengths = sorted({tokens for found in cells.values() for tokens in found})

    def figures(found: dict[int, dict], name: str) -> list[str]:
        values = [found.get(tokens, {}).get(name) for tokens in lengths]
        return [f"{value:.2f}" if value else "–" for value in values]

    return [
        row(
            base,
            hidden,
            f"{max(each['floor_gflops'] for each in found.values()):.0f}",
            *figures(found, "times_the_floor"),
            *figures(found, "times_torch"),
        )
        for (base, hidden), found in cells.items()
    ]


def _bars(found: dict) -> list[str]:
    return [
        row(each["bar"], f"{each['threshold']:g}", f"{each['measured']:.2f}",
            "met" if each["met"] else "missed")
        for each in found["bars"]
    ]  # fmt: skip
