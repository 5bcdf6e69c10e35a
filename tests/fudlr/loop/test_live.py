"""A trained peft model of somebody's own, debiased from Python: right, in few lines, or refused."""

from __future__ import annotations

import copy
import inspect
import runpy
from pathlib import Path

import fudlr
import polars as pl
import pytest
import torch
from fudlr.common.errors import DataError, UsageError
from fudlr.config import RecordConfig
from fudlr.gradients.store import Recorder
from peft import PeftModel
from transformers import AutoModelForCausalLM

from fudlr_ext import Engine, label_logits, label_loss

EXAMPLE = Path(__file__).parents[3] / "examples" / "own_adapter.py"
OWN = runpy.run_path(str(EXAMPLE))
ROWS = OWN["make_rows"]()
N = len(ROWS[0])


@pytest.fixture(scope="module")
def trained():
    return OWN["train"](ROWS[0])


@pytest.fixture
def model(trained):
    return copy.deepcopy(trained)


def given(**changes):
    train, valid, test = ROWS
    items = [{"item_id": i, "genres": ["odd" if i % 2 else "even"]} for i in range(OWN["ITEMS"])]
    face = {"collate": OWN["collate"], "scores": OWN["scores"]}
    return {"train": train, "valid": valid, "test": test, "items": items, **face, **changes}


def quick(run, **options):
    asked = {"force": True, **options}  # whether so small a data set's figures are noise is chance
    return fudlr.debias(run, objective="arp", curve=(), heldout=False, **asked)


def test_in_at_most_25_lines(model, tmp_path):
    lines = sum(len(inspect.getsource(OWN[name]).splitlines()) for name in ("debias", "scores"))
    assert lines <= 25
    base = copy.deepcopy(model).unload()
    result = OWN["debias"](model, ROWS, tmp_path / "out")
    assert result.summary["after"]["arp"] < 0.98 * result.summary["before"]["arp"]
    assert {"hellinger", "dp", "ndcg@10"} <= result.summary["after"].keys()
    assert torch.equal(result.weights, 1 - result.mask.float())
    assert result.adapter.keys() == set(result.run.engine.names)
    # What is written loads with peft, and is the model that the caller holds.
    base.save_pretrained(tmp_path / "base")
    again = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tmp_path / "base"), tmp_path / "out" / "adapter"
    )
    batch = OWN["collate"](ROWS[2])
    torch.testing.assert_close(OWN["scores"](again.eval(), batch), OWN["scores"](model, batch))
    mask = pl.read_parquet(tmp_path / "out" / "mask.parquet")
    assert mask["sample_id"].to_list() == list(range(N))
    assert mask["user_id"].to_list() == [str(row["user_id"]) for row in ROWS[0]]
    assert mask["target"].to_list() == [str(row["item_id"]) for row in ROWS[0]]
    assert (tmp_path / "out" / "report.html").stat().st_size > 10_000
    # What is removed is popular beyond the rest: the sign of the influence is right.
    removed = mask.filter(pl.col("mask") == 1)["target_popularity"].mean()
    assert removed > mask["target_popularity"].mean()


def test_the_update_is_the_closed_form_of_the_samples_own_gradients(model):
    """By the formula, from gradients that autograd takes one by one."""
    run = fudlr.adopt(model, **given())
    result = quick(run, damping=0.05, lambda_acc=0)
    run.engine.load(run.theta)
    batch, parameters = OWN["collate"](ROWS[0]), run.engine.parameters()
    losses = label_loss(label_logits(model, batch), batch)
    rows = torch.stack([
        torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters, retain_graph=True)])
        for loss in losses
    ]).double()  # fmt: skip
    hessian = rows.T @ rows / N + 0.05 * torch.eye(run.engine.d, dtype=torch.float64)
    shift = torch.linalg.solve(hessian, result.mask.double() @ rows / N)
    found = (result.theta - run.theta).double()
    assert float((found - shift).norm()) < 0.02 * float(shift.norm())


def test_names_of_fields_and_ids_are_the_users_own(model):
    """Rows of a text-only field beside them, ids that are no positions: the same samples go."""
    renamed = [
        [{"id": 7 * i + 3, "who": r["user_id"], "bought": r["item_id"], "seen": r["history"], **r}
         for i, r in enumerate(part)] for part in ROWS
    ]  # fmt: skip
    plain = quick(fudlr.adopt(copy.deepcopy(model), **given()))
    columns = {"user": "who", "item": "bought", "history": "seen"}
    own = fudlr.adopt(model, **given(train=renamed[0], valid=renamed[1], test=renamed[2],
                                     columns=columns))  # fmt: skip
    assert own.split.train.ids.tolist() == [7 * i + 3 for i in range(N)]
    assert torch.equal(quick(own).mask, plain.mask)


def test_rows_that_name_neither_user_nor_item_can_be_trained_on(model, tmp_path):
    """What a row of a data set often holds; the mask's columns are empty there."""
    bare = [{"text": row} for row in ROWS[0]]
    items = [{"item_id": i, "popularity": OWN["ITEMS"] - i} for i in range(OWN["ITEMS"])]

    def collate(rows):
        return OWN["collate"]([row.get("text", row) for row in rows])

    result = quick(fudlr.adopt(model, **given(train=bare, items=items, collate=collate)))
    fudlr.write_result(tmp_path / "out", result)
    mask = pl.read_parquet(tmp_path / "out" / "mask.parquet")
    assert mask["mask"].sum() > 0
    assert mask["target"].null_count() == mask["user_id"].null_count() == N


def recorded(folder):
    """An epoch and a half of one's own loop from a fresh adapter, recorded."""
    model = OWN["train"](ROWS[0][:64])
    optimiser = torch.optim.AdamW(Engine(model).parameters(), lr=1e-2)
    options = {"optimiser": optimiser, "config": RecordConfig(dtype="float32", energy=1.0)}
    with Recorder(model.train(), folder, data="rows", **options) as recorder:
        for _ in range(4):
            for index in torch.arange(N).split(50):
                batch = OWN["collate"]([ROWS[0][i] for i in index])
                with recorder.batch(index):
                    label_loss(label_logits(model, batch), batch).mean().backward()
                optimiser.step()
                optimiser.zero_grad()
    return model.eval()


def test_a_recorded_training_is_unrolled(tmp_path):
    model = recorded(tmp_path / "store")
    run = fudlr.adopt(model, **given(store=tmp_path / "store"))
    result = quick(run)
    assert result.summary["update"]["rule"] == "unrolled"
    assert result.summary["solver"]["dropout"] == {"lora_dropout": 0.05}
    assert result.summary["after"]["arp"] < result.summary["before"]["arp"]


def test_a_store_of_another_adapter_or_other_rows_is_refused(tmp_path, model):
    own = recorded(tmp_path / "store")
    with pytest.raises(UsageError, match="another adapter"):
        fudlr.adopt(model, **given(store=tmp_path / "store"))
    with pytest.raises(UsageError, match="1 samples that are in one of store"):
        fudlr.adopt(own, **given(train=ROWS[0][:-1],
                                 store=tmp_path / "store"))  # fmt: skip


WRONG = {
    "an unknown item": ({"items": list(range(30))}, "its item '3.' is not in the table of items"),
    "ids twice": ({"train": [{**row, "id": 1} for row in ROWS[0]]}, "two of them have the same"),
    "ids of text": ({"train": [{**row, "id": "a"} for row in ROWS[0]]}, "its id is 'a'"),
    "no target": ({"valid": [{"user_id": 1, "history": [2], "item_id": None}]}, "no target"),
    "other users": ({"test": ROWS[2][::-1]}, "not of the users of `valid`"),
    "no rows": ({"train": []}, "`train` has no rows"),
    "scores of another shape": ({"scores": lambda m, b: m(**b).logits[:, -2]}, r"are \[2, 41\]"),
    "a mean for a loss": ({"loss": lambda o, b: label_loss(o, b).mean()}, r"they are \[\]"),
    "no popularity": (
        {"train": [{"text": 1}], "valid": [{"user_id": 1, "item_id": 2}], "test": None},
        "neither training rows nor histories",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_fit_is_refused_before_long_work(case, model):
    changes, said = WRONG[case]
    with pytest.raises(DataError, match=said):
        fudlr.adopt(model, **given(**changes))


def test_without_test_prompts_the_result_says_so(model):
    result = quick(fudlr.adopt(model, **given(test=None)))
    assert any("No test prompts" in each for each in result.summary["warnings"])


def test_retraining_by_hand_is_what_verify_does(model):
    """Its batches, weights and loss are the functions that were given."""
    settings = {"train.epochs": 2, "train.batch": 64, "train.learning_rate": 5e-3}
    run = fudlr.adopt(model, **given(settings=settings))
    mask = torch.zeros(N)
    mask[:30] = 1
    found = fudlr.verify(run, mask, run.theta)
    assert found.figures["test_loss"] > 0
    assert not torch.equal(found.theta, run.theta)


def test_rows_of_ones_own_are_asked_about(model):
    run = fudlr.adopt(model, **given())
    found = fudlr.query(run, ROWS[2][:3], damping=0.05)
    losses = label_loss(label_logits(model, batch := OWN["collate"](ROWS[2][:3])), batch)
    torch.testing.assert_close(found.values.float(), losses.detach())
    assert found.influence.shape == (N, 3)
    told = fudlr.explain(run, ROWS[2][0]["user_id"], damping=0.05)
    scores = OWN["scores"](model, OWN["collate"](ROWS[2][:1]))[0]
    seen = torch.tensor([int(each) for each in ROWS[2][0]["history"]])
    best = scores.detach().index_fill(0, seen, -torch.inf).log_softmax(0).max()
    assert float(told.values[0]) == pytest.approx(float(best), abs=1e-4)
