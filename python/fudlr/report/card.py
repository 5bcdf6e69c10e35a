"""The model card beside the debiased adapter: what it is, how to load it, what to expect of it."""

from __future__ import annotations

from typing import Any

from fudlr.report.data import ReportData, number, section
from fudlr.report.numbers import share
from fudlr.report.rows import metric_rows
from fudlr.report.words import agreement_sentences, headline, worse_sentence


def model_card(data: ReportData, base: str) -> str:
    """Markdown with the front matter that model hubs read.

    Args:
        data: What `fudlr debias` found.
        base: Name of the base model on a hub, or a local path, which the card does not repeat.
    """
    summary = data.summary
    named = base if _public(base) else None
    removed, total = data.removed.height, data.mask.height
    front = ["library_name: peft", *([f"base_model: {named}"] if named else [])]
    lines = [
        "---",
        *front,
        "license: other",
        "tags: [recommendation, fairness, unlearning, lora]",
        "---",
        "",
        "# Debiased LoRA adapter",
        "",
        headline(data),
        *([worse_sentence(summary)] if worse_sentence(summary) else []),
        *agreement_sentences(summary),
        "",
        "## Load it",
        "",
        "```python",
        "from peft import PeftModel",
        "from transformers import AutoModelForCausalLM",
        "",
        f'base = AutoModelForCausalLM.from_pretrained("{named or "PATH OF THE BASE MODEL"}")',
        'model = PeftModel.from_pretrained(base, "PATH OF THIS FOLDER")',
        "```",
        "",
        "The base must be the one that the adapter was trained on. Items are recommended by the "
        f"run's recommender, `{_kind(summary)}`: `fudlr evaluate RUN --adapter PATH` measures the "
        "two together.",
        "",
        "## Data",
        "",
        f"{total:,} training samples of {_source(summary)}. The effect of {removed:,} of them "
        f"({share(removed / max(total, 1))}), chosen for the objective "
        f"`{summary.get('objective', '')}`, was taken out without retraining. Figures are on the "
        "test prompts of the same data.",
        "",
        "| figure | better | before | after | change | held-out users | retrained |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in metric_rows(summary):
        cells = (row.label, row.direction, row.before.text, row.after.text, row.change.text)
        lines.append(
            f"| {' | '.join(cells)} | {row.heldout_change.text} | {row.retrained_change.text} |"
        )
    lines += ["", *(f"- {name}: {value}" for name, value in _settings(summary).items())]
    lines += [
        "",
        "## Limits",
        "",
        "- The figures hold for users and items like those of the data above, and for lists of the "
        "same length.",
        "- The update approximates retraining. It does not prove that the removed samples left no "
        "trace, and is no erasure in the sense of privacy law.",
        "- Fairness was measured by the figures above alone.",
        *(f"- {text}" for text in summary.get("warnings") or []),
        "",
        "## Licence",
        "",
        "The terms of the base model and of the training data apply; `license` above is to be set "
        "by whoever publishes this adapter. Made by fudlr.",
        "",
    ]
    return "\n".join(lines)


def _public(name: str) -> bool:
    """Whether a base's name can be one of a hub: `owner/name`, and no path of this machine."""
    owner, slash, rest = name.partition("/")
    return bool(owner.strip(".~") and slash and rest and "/" not in rest)


def _kind(summary: Any) -> str:
    return str(section(section(summary, "config"), "recommender").get("kind", "not known"))


def _source(summary: Any) -> str:
    """The data's name; of a path its last part."""
    named = str(section(section(summary, "config"), "data").get("source", "data not named"))
    return named.replace("\\", "/").rstrip("/").rpartition("/")[2]


def _settings(summary: Any) -> dict[str, Any]:
    debias = section(section(summary, "config"), "debias")
    solver = section(summary, "solver")
    found = {
        "budget": debias.get("budget"),
        "curvature": debias.get("curvature"),
        "damping": number(solver.get("damping")),
    }
    return {name: value for name, value in found.items() if value is not None}
