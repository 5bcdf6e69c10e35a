"""Every recommender and every form of data from the command line: train, debias, evaluate."""

import importlib.util
import json

import pytest
import written
import yaml
from fudlr.cli import app, is_expected
from fudlr.recommenders import RECOMMENDERS
from safetensors.torch import load_file
from typer.testing import CliRunner

TINY = [
    "data.k=5", "data.window=4", "data.max_train_per_user=2", "data.candidates=8",
    "model.hidden=16", "model.heads=2", "model.kv_heads=1", "model.intermediate=24",
    "model.pretrain_epochs=1", "lora.rank=2",
    "train.epochs=2", "train.batch=64",
    "debias.batch=64", "debias.damping=0.1", "debias.lambda_acc=0",
]  # fmt: skip
OWN = {"prompt": "Seen: {history}.\nNext:\n"}
ASKS = {"prompt": "Seen: {history}. Next {item}?\n", "answer_yes": "Yes", "answer_no": "No"}
CASES = [
    ("item_tokens", "recbole"), ("item_tokens", "dat"), ("yes_no", "csv"), ("yes_no", "tallrec"),
    ("titles", "parquet"), ("titles", "bigrec"), ("grounded", "jsonl"),
    ("grounded", "saved_dataset"),
]  # fmt: skip

FURTHER = {
    ("titles", "parquet"): ["train.checkpointing=true"],
    ("grounded", "jsonl"): ["train.through=engine"],
    ("yes_no", "csv"): ["model.dtype=bfloat16"],
    ("item_tokens", "dat"): ["data.split=time", "data.candidates=null"],
}
"""What else has to work from the command line, each with one of the cases."""


def fudlr(*arguments):
    result = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result


def test_every_recommender_has_a_case():
    assert {kind for kind, _ in CASES} == set(RECOMMENDERS)


@pytest.mark.parametrize(("kind", "form"), CASES)
def test_train_debias_evaluate_and_save(kind, form, tmp_path, monkeypatch):
    if form == "saved_dataset" and importlib.util.find_spec("datasets") is None:
        pytest.skip("Hugging Face's `datasets` is not installed (pip install fudlr-ext[datasets])")
    monkeypatch.setenv("FUDLR_QUIET", "1")
    (tmp_path / "data").mkdir()
    data = getattr(written, form)(tmp_path / "data")
    template = tmp_path / "own.yaml"
    template.write_text(yaml.safe_dump(ASKS if kind == "yes_no" else OWN))
    chosen = [f"recommender.kind={kind}", f"recommender.template={template}"]
    chosen += FURTHER.get((kind, form), [])
    if form in ("bigrec", "tallrec"):  # a row is a user: no older half, and no groups
        chosen += ["data.pretrain_share=0.4"]
    settings = [word for s in [*TINY, *chosen] for word in ("--set", s)]
    run, result, out = tmp_path / "run", tmp_path / "result", tmp_path / "figures.json"
    fudlr("train", "--data", data, "--out", run, *settings)
    assert json.loads((run / "recommender.json").read_text())["kind"] == kind
    template.unlink()  # the run has its own copy
    grouped = "" if form in ("bigrec", "tallrec") else " + hellinger"
    # So little training fails diagnostics: noise, and shifts longer than itself.
    fudlr("debias", run, "--out", result, "--objective", f"arp{grouped}", "--quick", "--force")
    summary = json.loads((result / "summary.json").read_text())
    assert summary["samples"]["removed"] > 0
    assert summary["before"]["arp_soft"] != summary["after"]["arp_soft"]
    fudlr("evaluate", run, "--adapter", result / "adapter", "--out", out)
    for name, value in json.loads(out.read_text()).items():
        assert value == pytest.approx(summary["after"][name], rel=1e-4, abs=1e-6), name
    if form in ("parquet", "jsonl"):  # titles, and a kind without
        _check_beams(kind, run, out)
    before, after = (
        load_file(folder / "adapter" / "adapter_model.safetensors") for folder in (run, result)
    )
    assert before.keys() == after.keys()
    assert any(not before[name].equal(after[name]) for name in before)


def _check_beams(kind, run, out):
    """Lists by beam search: those of full scoring at full width; refused without titles."""
    fudlr("evaluate", run, "--out", out)
    full = json.loads(out.read_text())
    if kind != "titles":
        refused = CliRunner().invoke(app, ["evaluate", str(run), "--beams", "3"])
        assert is_expected(refused.exception)
        assert "no titles" in str(refused.exception)
        return
    fudlr("evaluate", run, "--beams", 500, "--out", out)
    wide = json.loads(out.read_text())
    assert {"arp", "ndcg@5"} <= wide.keys() < full.keys(), wide.keys()
    assert wide == pytest.approx({name: full[name] for name in wide})
    fudlr("evaluate", run, "--beams", 1, "--out", out)
    narrow = json.loads(out.read_text())
    assert narrow.keys() == wide.keys()
    assert narrow != wide
