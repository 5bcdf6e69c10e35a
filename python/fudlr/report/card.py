"""The model card beside the debiased adapter: what was removed from it, and what that changed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fudlr.report.data import ReportData, number, section
from fudlr.report.metrics_table import headline, metric_rows
from fudlr.report.numbers import share


def model_card(data: ReportData, base: str) -> str:
    """Markdown with the front matter that model hubs read.

    Args:
        data: What `fudlr debias` found.
        base: Name or path of the base model.
    """
    summary = data.summary
    removed, total = data.removed.height, data.mask.height
    config = section(summary, "config")
    solver = section(summary, "solver")
    lines = [
        "---",
        "library_name: peft",
        f"base_model: {base}",
        "tags: [recommendation, fairness, unlearning, lora]",
        "---",
        "",
        "# Debiased LoRA adapter",
        "",
        headline(data),
        "",
        *_steered(section(summary, "steering")),
        "## What was removed",
        "",
        f"The effect of {removed:,} of {total:,} training samples "
        f"({share(removed / max(total, 1))}), chosen for the objective "
        f"`{summary.get('objective', '')}` and taken out in closed form,"
        " without retraining: θ* + (1/n) H⁻¹ Gᵀ m.",
        "",
        *(f"- {name}: {value}" for name, value in _settings(config, solver).items()),
        "",
        "## What changed",
        "",
        "| metric | better | before | after | change | retrained without the samples |",
        "|---|---|---|---|---|---|",
    ]
    for row in metric_rows(summary):
        cells = (row.name, row.direction, row.before.text, row.after.text, row.change.text)
        lines.append(f"| {' | '.join(cells)} | {row.retrained.text} |")
    said = summary.get("warnings") or []
    if said:
        lines += ["", "## Warnings", "", *(f"- {text}" for text in said)]
    lines += ["", "Made by fudlr. Figures are on the test prompts of the run's own data.", ""]
    return "\n".join(lines)


def _steered(steering: Mapping[str, Any]) -> list[str]:
    """What the removal's own paragraph must not be taken for."""
    if not steering:
        return []
    return [
        "## Steered, not removed",
        "",
        f"This adapter was steered further than the removal below goes (mode `{steering['mode']}`)."
        " It is not nearly an adapter that never saw the samples.",
        "",
    ]


def _settings(config: Mapping[str, Any], solver: Mapping[str, Any]) -> dict[str, Any]:
    debias, data = section(config, "debias"), section(config, "data")
    found = {
        "recommender": section(config, "recommender").get("kind"),
        "data": data.get("source"),
        "budget": debias.get("budget"),
        "curvature": debias.get("curvature"),
        "damping": number(solver.get("damping")),
        "damping's metric": debias.get("metric"),
    }
    return {name: value for name, value in found.items() if value is not None}
