"""Influence of single label tokens: each is autograd's, and they add up to their sample's."""

import json
import shutil

import fudlr as package
import polars as pl
import pytest
import torch
from fudlr.common.errors import UsageError
from torch.nn.functional import cross_entropy

from fudlr_ext import label_loss
from fudlr_ext.labels import IGNORED


@pytest.fixture(scope="module")
def run(folders):
    return package.load_run(folders / "run")


@pytest.fixture(scope="module")
def found(run):
    prompts = run.valid.samples.take(slice(0, 2))
    return package.query(run, prompts, rows="memory", damping=0.1)


def test_tokens_add_up_to_their_sample(run, found):
    table = found.tokens(3)
    place = ["prompt", "side", "place"]
    sums = table.group_by(place, maintain_order=True).agg(
        pl.col("influence").first(), whole=pl.col("token_influence").sum(), said=pl.col("token")
    )
    assert sums.select(place).equals(found.strongest(3).select(place))
    off = (sums["influence"] - sums["whole"]).abs() / sums["influence"].abs()
    assert off.max() < 1e-4
    assert sums["said"].list.len().min() > 1
    answers = [run.recommender.pieces.answers[t] for t in found.run.split.train.target]
    named = dict(zip(run.split.train.ids.tolist(), answers, strict=True))
    first = table.filter(pl.col("prompt") == 0, pl.col("side") == "raised", pl.col("place") == 1)
    tokens = [run.recommender.tokenizer.decode([t]) for t in named[first["sample_id"][0]]]
    assert first["token"].to_list() == tokens
    assert first["position"].to_list() == list(range(len(tokens)))


def test_a_token_is_autograds(run, found):
    table = found.tokens(1).filter(pl.col("prompt") == 1, pl.col("side") == "lowered")
    index = run.split.train.ids.tolist().index(table["sample_id"][0])
    batch = run.recommender.batch(run.split.train.take([index]))
    run.engine.load(run.theta)
    logits = run.recommender.model(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
    ).logits[0]
    places = (batch["labels"][0] != IGNORED).nonzero()[:, 0]
    parameters = run.engine.parameters()
    for at, told in zip(places, table["token_influence"], strict=True):
        loss = cross_entropy(logits[at - 1], batch["labels"][0, at]) / len(places)
        parts = torch.autograd.grad(loss, parameters, retain_graph=True)
        flat = torch.cat([part.flatten() for part in parts])
        assert float(flat @ found.directions[1]) == pytest.approx(told, rel=1e-3, abs=1e-9)


def test_commands_write_tokens(done, folders, tmp_path, run):
    items = run.interactions.items["item_id"].to_list()
    (tmp_path / "p.jsonl").write_text(json.dumps({"item_id": items[0], "history": items[1:4]}))
    words = ["query", folders / "run", "--prompts", tmp_path / "p.jsonl", "--tokens"]
    for name in ("a.json", "a.parquet"):
        done(*words, "--top", "2", "--damping", "0.1", "--out", tmp_path / name)
    table = pl.read_parquet(tmp_path / "a.parquet").filter(pl.col("side") == "raised")
    told = json.loads((tmp_path / "a.json").read_text())["prompts"][0]["raised"]
    assert [row["sample_id"] for row in told] == table["sample_id"].unique(
        maintain_order=True
    ).to_list()
    flat = [token for row in told for token in row["tokens"]]
    assert [token["token"] for token in flat] == table["token"].to_list()
    assert [token["influence"] for token in flat] == table["token_influence"].to_list()


def test_recorded_rows_have_no_tokens(fudlr, folders, tmp_path, run):
    user = run.interactions.users["user_id"][int(run.test.samples.user[0])]
    out = tmp_path / "a.json"
    for more, said in (
        ([], "they are written to a file"),
        (["--out", out, "--rows", "store"], "recorded rows have no tokens"),
        (["--out", out, "--store", folders / "run" / "store"], "recorded rows have no tokens"),
    ):
        answer = fudlr("explain", folders / "run", "--user", user, "--tokens", *more)
        assert answer.code == 2
        assert said in answer.err


def test_losses_of_no_label_tokens_are_refused(run, found, monkeypatch):
    stored = package.query(run, found.prompts, rows="store", damping=0.1)
    with pytest.raises(UsageError, match="the rows are from store"):
        stored.tokens(1)
    counts = lambda batch: (batch["labels"] != IGNORED).sum(1)  # noqa: E731
    monkeypatch.setattr(run.recommender, "loss", lambda o, b: label_loss(o, b) * counts(b))
    with pytest.raises(UsageError, match="not the mean of its label tokens"):
        found.tokens(1)
    whole = run.recommender.batch
    unlabelled = lambda s: {k: v for k, v in whole(s).items() if k != "labels"}  # noqa: E731
    monkeypatch.setattr(run.recommender, "batch", unlabelled)
    with pytest.raises(UsageError, match="titles has no label tokens"):
        found.tokens(1)


def test_an_explanation_is_a_section_of_the_report(done, fudlr, folders, tmp_path, run):
    result = tmp_path / "result"
    shutil.copytree(folders / "result", result)
    user = run.interactions.users["user_id"][int(run.test.samples.user[0])]
    words = ["explain", folders / "run", "--user", user, "--top", "3", "--report", result]
    assert "Recommendations explained" not in (result / "report.html").read_text()
    for _ in range(2):  # the second replaces the first
        done(*words, "--of", "loss")
    done(*words, "--of", "arp")
    tables = json.loads((result / "summary.json").read_text())["explained"]
    assert [table["title"].split(" of ")[0] for table in tables] == [
        f"What {side} the {of}" for of in ("loss", "arp") for side in ("raised", "lowered")
    ]
    page = (result / "report.html").read_text()
    assert "Recommendations explained" in page
    for table in tables:
        assert all(f'<td class="n">{row[0]}</td>' in page for row in table["rows"])
    summary = json.loads((result / "summary.json").read_text())
    summary["binding"]["adapter"] = "0" * 64
    (result / "summary.json").write_text(json.dumps(summary))
    refused = fudlr(*words)
    assert refused.code == 1
    assert "trained adapter is not what its summary was made with" in refused.err
