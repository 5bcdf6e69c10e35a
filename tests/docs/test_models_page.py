"""docs/models.md says what the zoo's table says, and the table has what was promised."""

import sys

import pytest
import rows

sys.path.insert(0, str(rows.ROOT / "benchmarks"))
from zoo_page import page

FOUND = rows.result("zoo")
SERVED = (
    "LoRA", "rsLoRA", "rank_pattern", "alpha_pattern", "all linear layers", "lora_bias",
    "embeddings", "lm_head", "trainable_token_indices", "trainable_token_indices, tied head",
    "Conv1D (GPT-2)", "TrainableTokens", "layers_to_transform", "exclude_modules",
)  # fmt: skip


def test_the_page_is_made_from_the_table():
    path = rows.ROOT / "docs" / "models.md"
    assert path.read_text(encoding="utf-8") == page(FOUND)


def test_nothing_was_wrong_and_enough_was_tried():
    counts = FOUND["counts"]
    assert all(each["wrong"] == 0 for each in counts.values())
    assert counts["models"]["exact"] + counts["models"]["refused"] >= 60
    assert counts["adapters"]["exact"] + counts["adapters"]["refused"] >= 24


@pytest.mark.parametrize("name", SERVED)
def test_served_adapters_are_exact(name):
    assert FOUND["adapters"][name]["result"] == "exact"


def test_a_refusal_says_what_to_do():
    for table in (FOUND["models"], FOUND["adapters"]):
        for name, row in table.items():
            said = [row, *(row.get(part, {}) for part in ("eager", "sdpa"))]
            for each in said:
                if each.get("result") == "refused" and "eager" not in each:
                    assert len(each["said"].split(". ")) >= 2, name
