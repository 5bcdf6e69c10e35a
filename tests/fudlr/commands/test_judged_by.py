"""What a run is judged by: groups that are missing, users who have seen all, choices made later."""

import json

import numpy as np
import pytest
from fudlr.cli import app
from fudlr.data import synthetic
from typer.testing import CliRunner

TINY = [
    "data.k=5", "data.window=4", "data.max_train_per_user=2", "model.hidden=16", "model.heads=2",
    "model.kv_heads=1", "model.intermediate=24", "model.pretrain_epochs=1", "lora.rank=2",
    "train.epochs=1", "train.batch=64",
]  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    """No gender but a job, one category, and one user who has seen all but two items."""
    data = synthetic(30, 40, seed=1, per_user=(8, 14))
    lines = [f"{u},{i},{t}" for u, i, t in zip(data.user, data.item, data.time, strict=True)]
    lines += [f"99,{i},{i}" for i in range(38)]
    jobs = [f"{u},{'cook' if u % 2 else 'poet'}" for u in (*range(30), 99)]
    items = [f"{i},Film {i},Book" for i in range(40)]
    (tmp_path / "data").mkdir()
    for name, head, rows in (
        ("interactions", "user_id,item_id,time", lines), ("users", "user_id,job", jobs),
        ("items", "item_id,title,genres", items),
    ):  # fmt: skip
        (tmp_path / "data" / f"{name}.csv").write_text("\n".join([head, *rows]))
    return tmp_path


def fudlr(*arguments):
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    return result.exit_code, " ".join(f"{result.output} {result.exception}".split())


def test_metrics_without_groups_are_left_out_and_groups_may_be_chosen_later(folder):
    settings = [word for setting in TINY for word in ("--set", setting)]
    run, out = folder / "run", folder / "figures.json"
    code, said = fudlr("data", "check", folder / "data", *settings)
    assert code == 0, said
    assert "(data.user_group) are left out: the data have no column 'gender'" in said
    assert "(data.item_group) are left out: by 'genres', it has 1 groups" in said
    assert "1 of 31 users have fewer than 5 of the 40 items left unseen" in said
    assert fudlr("train", "--data", folder / "data", "--out", run, *settings)[0] == 0
    code, said = fudlr("evaluate", run, "--out", out)
    assert code == 0, said
    figures = json.loads(out.read_text())
    assert {"arp", "ndcg@5", "gini"} <= figures.keys()
    assert not {"hellinger", "hit_gap", "mgu"} & figures.keys()
    code, said = fudlr("evaluate", run, "--out", out, "--set", "data.user_group=job", "--set",
                       "data.k=4")  # fmt: skip
    assert code == 0, said
    later = json.loads(out.read_text())
    assert {"hit_gap", "ndcg@4"} <= later.keys()
    assert np.isclose(later["arp_soft"], figures["arp_soft"])
    code, said = fudlr("debias", run, "--out", folder / "result", "--objective", "hellinger")
    assert code != 0
    assert "it compares item groups, and the items have none" in said


def test_own_metrics_are_named_on_the_command_line(folder):
    run, out, file = folder / "run", folder / "figures.json", folder / "mine.py"
    settings = [word for setting in TINY for word in ("--set", setting)]
    assert fudlr("train", "--data", folder / "data", "--out", run, *settings)[0] == 0
    file.write_text(
        "from fudlr.metrics import from_function, register\n"
        "register(from_function('share_of_first', lambda s, side: s.softmax(1)[:, 0].mean(), True),"
        " replace=True)\n"
    )
    from fudlr.metrics import METRICS

    before = dict(METRICS)
    try:
        code, said = fudlr("--metrics-from", file, "evaluate", run, "--out", out)
    finally:
        METRICS.clear()
        METRICS.update(before)
    assert code == 0, said
    assert 0 < json.loads(out.read_text())["share_of_first"] < 1
