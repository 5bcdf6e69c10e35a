"""The example of a Trainer's run: recorded, debiased at its end, from `datasets` and back."""

import importlib.util
import runpy
from pathlib import Path

import pytest
import torch
from peft import PeftModel

EXAMPLE = Path(__file__).parents[3] / "examples" / "trainer_run.py"


def test_the_example_debiases_at_the_trainings_end(tmp_path, monkeypatch, capsys):
    if importlib.util.find_spec("datasets") is None:
        pytest.skip("Hugging Face's `datasets` is not installed (pip install fudlr-ext[datasets])")
    import datasets

    monkeypatch.setenv("FUDLR_QUIET", "1")
    datasets.disable_progress_bars()
    example = runpy.run_path(str(EXAMPLE))
    given = example["make_samples"](384, seed=0)
    given.save_to_disk(tmp_path / "given")
    figures = example["main"](str(tmp_path / "out"), str(tmp_path / "given"))
    assert figures["trained"] > 0.35, "half of the answers were a hit"
    assert figures["debiased"] < 0.9 * figures["trained"]

    weighted = datasets.load_from_disk(str(tmp_path / "out" / "weighted"))
    assert weighted.remove_columns("weight").to_list() == given.to_list()
    removed = [row for row in weighted if row["weight"] == 0]
    assert 30 <= len(removed) <= 38, "a tenth at most, and most of it"
    pushed = sum(row["answer"] < example["HITS"] for row in removed)
    assert pushed >= 0.85 * len(removed), "a mask at random would have half of them from the window"

    # The adapter on disk is the debiased one, not the trained one.
    base = example["make_model"]().unload()
    model = PeftModel.from_pretrained(base, str(tmp_path / "out" / "adapter")).eval()
    histories = torch.tensor(example["make_samples"](256, seed=1)["history"])
    with torch.no_grad():
        found = float(example["hits"](model, histories))
    assert found == pytest.approx(figures["debiased"], rel=1e-5)
