"""Which samples raised and lowered single outputs: gradients, influence, prompts, and bad input."""

import json
import math
import sys
from dataclasses import replace

import fudlr
import polars as pl
import pytest
import torch
from fudlr import load_run
from fudlr.cli import app
from fudlr.common.errors import DataError, StoreError, UsageError
from fudlr.common.progress import StageClock
from fudlr.gradients.matrix import record_rows
from fudlr.gradients.metric import metric_gradients
from fudlr.metrics import find_metric
from fudlr.pipeline.plan import prepare, with_options
from fudlr.pipeline.request import solve
from fudlr.query.answers import least
from fudlr.query.figures import contribution, gradients
from fudlr.query.prompts import to_samples
from fudlr.verify import removal, retrain
from typer.testing import CliRunner


@pytest.fixture(scope="module")
def run(run_folder):
    return load_run(run_folder, settings={"debias.damping": None})  # so that it is unrolled


def score(run, answers, theta):
    run.engine.load(theta)
    scores = run.recommender.evaluate(answers.prompts)[0]
    scores = scores.masked_fill(torch.from_numpy(answers.prompts.seen()), -torch.inf)
    return float(scores.log_softmax(1)[0, answers.prompts.target[0]])


def test_what_raised_a_score_lowers_it_when_it_is_gone(run):
    user = run.interactions.users["user_id"][int(run.test.samples.user[3])]
    found = fudlr.explain(run, user)
    assert found.source == "unrolled"
    assert score(run, found, run.theta) == pytest.approx(float(found.values[0]), abs=1e-5)
    table = found.strongest(15)
    made = {}
    for side in ("raised", "lowered"):
        part = table.filter(pl.col("side") == side)
        assert part["place"].to_list() == list(range(1, 16))
        assert part["influence"].abs().is_sorted(descending=True)
        index = pl.Series(run.split.train.ids).is_in(part["sample_id"].implode())
        mask = torch.from_numpy(index.to_numpy().copy())
        (done,) = retrain(run, [removal(side, mask)])
        made[side] = score(run, found, done.theta) - float(found.values[0])
        assert part["influence"].sum() * made[side] > 0
    assert made["raised"] < 0 < made["lowered"]


def test_the_mean_over_prompts_is_the_influence_on_the_mean_loss(run):
    found = fudlr.query(run, run.valid.samples)
    plan = prepare(run, with_options(run.config.debias, {"also": ["val_loss"]}), StageClock())
    whole = solve(plan).influence.of("val_loss")
    torch.testing.assert_close(found.influence.mean(1), whole, rtol=1e-3, atol=1e-7)
    losses = run.recommender.losses(run.valid.samples)
    torch.testing.assert_close(found.values.float(), losses, rtol=1e-4, atol=1e-4)


def test_contributions_add_up_to_the_metric(run):
    few = replace(run, split=replace(run.split, test=run.split.test.take(slice(0, 4))))
    few.engine.load(few.theta)
    metric = find_metric("arp")
    face = (few.recommender, few.engine, few.test.samples, few.test.side)
    whole = metric_gradients(*face, [metric], validation_loss=False)["arp"].gradient
    parts = [contribution(few, at, "arp").gradient for at in range(4)]
    torch.testing.assert_close(sum(parts), whole, rtol=1e-4, atol=1e-6)


def test_gradients_of_score_and_rank_are_those_of_differences(run):
    samples, step = run.test.samples.take(slice(0, 2)), 1e-2
    direction = torch.randn(run.engine.d, generator=torch.Generator().manual_seed(0))
    direction /= direction.norm()
    for of in ("score", "rank"):
        values = []
        for sign in (1, -1, 0):
            run.engine.load(run.theta + sign * step * direction)
            found = gradients(run, samples, of)
            values.append([each.value for each in found])
        for at in range(2):
            slope = (values[0][at] - values[1][at]) / (2 * step)
            assert float(found[at].gradient @ direction) == pytest.approx(slope, rel=0.05, abs=1e-3)
    run.engine.load(run.theta)
    scores = run.recommender.evaluate(samples)[0].masked_fill(torch.from_numpy(samples.seen()), -99)
    for at, target in enumerate(samples.target):
        others = [float(v) for i, v in enumerate(scores[at] - scores[at, target]) if i != target]
        rank = 1 + sum(1 / (1 + math.exp(-v)) for v in others)
        assert found[at].value == pytest.approx(rank, rel=1e-4)


def test_rows_are_the_samples_that_they_name(run):
    prompt = run.test.samples.take(slice(0, 1))
    items, users = run.interactions.items["item_id"], run.interactions.users["user_id"]
    item, user = items[int(prompt.target[0])], users[int(prompt.user[0])]
    history = items.gather(prompt.history(0)).to_list()
    rows = [{"item_id": item, "history": history}, {"item_id": item, "user_id": user}]
    samples = to_samples(run, rows)
    expected = run.recommender.losses(prompt)
    torch.testing.assert_close(run.recommender.losses(samples), expected.expand(2))
    assert samples.history(1).tolist() == prompt.history(0).tolist()


def test_commands_write_what_they_found(run_folder, tmp_path):
    run = load_run(run_folder)
    items = run.interactions.items["item_id"].to_list()
    rows = [{"item_id": items[i], "history": items[i + 1 : i + 4]} for i in range(3)]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)))
    words = [
        "query",
        str(run_folder / "store"),
        "--prompts",
        str(tmp_path / "p.jsonl"),
        "--top",
        "4",
    ]
    for name in ("a.json", "a.parquet"):
        done = CliRunner().invoke(app, [*words, "--of", "score", "--out", str(tmp_path / name)])
        assert done.exit_code == 0, done.output
    record, table = (
        json.loads((tmp_path / "a.json").read_text()),
        pl.read_parquet(tmp_path / "a.parquet"),
    )
    assert [each["target"] for each in record["prompts"]] == items[:3]
    told = [row["sample_id"] for row in record["prompts"][1]["raised"]]
    assert len(told) == 4
    assert (
        told
        == table.filter((pl.col("prompt") == 1) & (pl.col("side") == "raised"))[
            "sample_id"
        ].to_list()
    )
    user = run.interactions.users["user_id"][int(run.test.samples.user[0])]
    done = CliRunner().invoke(
        app, ["explain", str(run_folder), "--user", user, "--of", "arp", "--top", "2"]
    )
    assert done.exit_code == 0, done.output
    assert "What raised the arp" in done.output


def test_an_index_of_bergsons_answers_as_rows_in_memory_do(run, tmp_path):
    """As bergson writes it: modules by their names under the adapter's, in another order."""
    run.engine.load(run.theta)
    plan = prepare(run, with_options(run.config.debias, {"rows": "memory"}), StageClock())
    rows = record_rows(*plan.face, plan.batches()).matrix
    sizes = {name: math.prod(shape) for name, shape in run.engine.shapes.items()}
    parts = dict(zip(sizes, rows.split([*sizes.values()], 1), strict=True))
    order = sorted(sizes, key=lambda name: name[::-1])
    assert order != [*sizes]
    info = {
        "num_grads": len(rows),
        "grad_sizes": {
            name.partition(".")[2].replace("weight", "default"): sizes[name] for name in order
        },
        "base_dtype": "float32",
    }
    (tmp_path / "info.json").write_text(json.dumps(info))
    flat = torch.cat([parts[name] for name in order], 1)
    (tmp_path / "gradients.bin").write_bytes(flat.numpy().tobytes())
    prompts, options = run.valid.samples.take(slice(0, 3)), {"damping": 0.1}
    known = fudlr.query(run, prompts, rows="memory", **options)
    found = fudlr.query(run, prompts, store=str(tmp_path), **options)
    assert found.source == "store"
    close = (found.influence - known.influence).norm() / known.influence.norm()
    assert close < 0.02  # of conjugate gradients' tolerance
    (tmp_path / "gradients.bin").write_bytes(flat.roll(1, 0).numpy().tobytes())
    with pytest.raises(StoreError, match="other data's: its row of sample"):
        fudlr.query(run, prompts, store=str(tmp_path), **options)
    few = {**info, "num_grads": 3}
    (tmp_path / "info.json").write_text(json.dumps(few))
    (tmp_path / "gradients.bin").write_bytes(flat[:3].numpy().tobytes())
    with pytest.raises(StoreError, match="it has 3 rows, and the run"):
        fudlr.query(run, prompts, store=str(tmp_path), **options)


def test_bad_questions_are_refused(run, tmp_path):
    user = run.interactions.users["user_id"][int(run.test.samples.user[0])]
    seen = run.interactions.items["item_id"][int(run.test.samples.history(0)[0])]
    with pytest.raises(DataError, match=rf"'{user}y' \(nearest: '{user}'"):
        fudlr.explain(run, f"{user}y")
    with pytest.raises(DataError, match="nearest"):
        fudlr.explain(run, user, "no item")
    with pytest.raises(UsageError, match="chosen before"):
        fudlr.explain(run, user, seen)
    with pytest.raises(UsageError, match="score, rank"):
        fudlr.explain(run, user, of="scores")
    with pytest.raises(UsageError, match="loss, score, rank"):
        fudlr.query(run, run.valid.samples, of="arp")
    with pytest.raises(DataError, match="there are none"):
        fudlr.query(run, [])
    with pytest.raises(DataError, match="row 0 has item_id"):
        fudlr.query(run, [{"item_id": seen}])
    with pytest.raises(DataError, match="has it already"):
        fudlr.query(run, [{"item_id": seen, "history": [seen]}])
    done = CliRunner().invoke(
        app, ["query", "nowhere", "--prompts", str(tmp_path / "p.json"), "--out", "a.json"]
    )
    assert "no such file" in str(done.exception)
    done = CliRunner().invoke(app, ["query", "nowhere", "--prompts", "p.json", "--out", "a.txt"])
    assert ".json, .parquet" in str(done.exception)


def test_the_least_are_those_of_a_stable_sort():
    values = torch.tensor([2.0, 0.0, 1.0, 0.0, 1.0, 1.0, -1.0])
    for count in (1, 2, 4, 5, 7, 9):
        expected = values.sort(stable=True).indices[:count]
        assert torch.equal(least(values, count), expected)


def test_an_exported_stores_sketches_are_no_gradients(run_folder, tmp_path, monkeypatch):
    out, words = tmp_path / "index", ["store", "export", str(run_folder / "store")]
    done = CliRunner().invoke(app, [*words, "--to", "bergson", "--out", str(out)])
    assert done.exit_code == 0, done.output
    run = load_run(run_folder)
    monkeypatch.setattr(sys.modules["fudlr.query.answers"], "gradients", None)  # before long work
    with pytest.raises(StoreError, match="or projected"):
        fudlr.query(run, run.valid.samples.take(slice(0, 1)), store=str(out))
