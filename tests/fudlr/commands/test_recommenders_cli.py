"""Every recommender from the command line, each with another form of data: train to evaluate."""

import json

import pytest
import written
import yaml
from fudlr.data import read_data
from fudlr.data.codes import item_codes
from fudlr.recommenders import RECOMMENDERS
from safetensors.torch import load_file

TINY = [
    "data.k=5", "data.window=4", "data.max_train_per_user=2", "data.candidates=8",
    "data.prompt_users=30", "model.hidden=16", "model.heads=2", "model.kv_heads=1",
    "model.intermediate=24", "model.pretrain_epochs=1", "lora.rank=2", "train.epochs=2",
    "train.batch=64", "debias.batch=64", "debias.damping=0.1", "debias.lambda_acc=0",
]  # fmt: skip
OWN = {"prompt": "Seen: {history}.\nNext:\n"}
ASKS = {"prompt": "Seen: {history}. Next {item}?\n", "answer_yes": "Yes", "answer_no": "No"}
CASES = {
    ("item_tokens", "dat"): ["data.split=time", "data.candidates=null"],
    ("yes_no", "csv"): ["model.dtype=bfloat16"],
    ("titles", "parquet"): ["train.checkpointing=true"],
    # A row is a user: no older half, and no groups.
    ("titles", "bigrec"): ["data.pretrain_share=0.4"],
    ("grounded", "csv"): ["train.through=engine"],
    ("semantic_ids", "csv"): ["data.candidates=null"],
}
"""What else has to work from the command line, each with one of the kinds and forms."""


def item_codes_of(run):
    record = json.loads((run / "recommender.json").read_text())
    return dict(zip(record["item_ids"], record["codes"], strict=True))


def test_every_recommender_has_a_case():
    assert {kind for kind, _ in CASES} == set(RECOMMENDERS)


@pytest.mark.parametrize(("kind", "form"), CASES)
def test_train_debias_evaluate_and_save(done, fudlr, kind, form, tmp_path):
    (tmp_path / "data").mkdir()
    data, template = getattr(written, form)(tmp_path / "data"), tmp_path / "own.yaml"
    template.write_text(yaml.safe_dump(ASKS if kind == "yes_no" else OWN))
    chosen = [f"recommender.kind={kind}", f"recommender.template={template}"]
    if kind == "semantic_ids":
        done("data", "codes", data, "--out", tmp_path / "codes.json")
        chosen.append(f"recommender.codes={tmp_path / 'codes.json'}")
    settings = [f"--set={each}" for each in (*TINY, *chosen, *CASES[kind, form])]
    run, result, out = tmp_path / "run", tmp_path / "result", tmp_path / "figures.json"
    done("train", "--data", data, "--out", run, *settings)
    assert json.loads((run / "recommender.json").read_text())["kind"] == kind
    template.unlink()  # the run has its own copy
    (tmp_path / "codes.json").unlink(missing_ok=True)
    grouped = "" if form == "bigrec" else " + hellinger"
    # So little training fails diagnostics: noise, and shifts longer than itself.
    done("debias", run, "--out", result, "--objective", f"arp{grouped}", "--quick", "--force")
    summary = json.loads((result / "summary.json").read_text())
    assert summary["samples"]["removed"] > 0
    assert summary["before"]["arp_soft"] != summary["after"]["arp_soft"]
    done("evaluate", run, "--adapter", result / "adapter", "--out", out)
    for name, value in json.loads(out.read_text()).items():
        assert value == pytest.approx(summary["after"][name], rel=1e-4, abs=1e-6), name
    before, after = (
        load_file(folder / "adapter" / "adapter_model.safetensors") for folder in (run, result)
    )
    assert before.keys() == after.keys()
    assert any(not before[name].equal(after[name]) for name in before)
    if kind == "semantic_ids":
        rows = [name for name in before if "trainable_tokens" in name]
        assert rows
        assert not before[rows[0]].equal(after[rows[0]]), "the codes' rows are updated as well"
        kept = tmp_path / "kept.csv"
        done("export", result, "--out", kept)
        again = read_data(kept).items
        codes = dict(zip(again["item_id"], map(list, item_codes(again, None)), strict=True))
        assert codes.items() <= item_codes_of(run).items(), "as MiniOneRec's own data are read"
    if kind == "grounded":
        refused = fudlr("evaluate", run, "--beams", 3)
        assert refused.code == 2
        assert "no titles" in refused.err
    if form == "parquet":
        _check_beams(done, run, out, summary["before"])


def _check_beams(done, run, out, full):
    """Lists by beam search: those of full scoring at full width."""
    done("evaluate", run, "--beams", 500, "--out", out)
    wide = json.loads(out.read_text())
    assert {"arp", "ndcg@5"} <= wide.keys() < full.keys(), wide.keys()
    assert wide == pytest.approx({name: full[name] for name in wide}, rel=1e-4)
    done("evaluate", run, "--beams", 1, "--out", out)
    narrow = json.loads(out.read_text())
    assert narrow.keys() == wide.keys()
    assert narrow != wide
