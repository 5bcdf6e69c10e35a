"""`fudlr options`, `doctor` and `check`; a base that is used again; what runs are judged by."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from fudlr import RunConfig, load_run, train_run
from fudlr.cli.check import REGRESSED, UNSURE, Limit, parse_limit
from fudlr.common.errors import UsageError
from fudlr.config import describe_fields, field_names, merge
from fudlr.data import synthetic
from fudlr.metrics import METRICS
from written import SMALL

ROOT = Path(__file__).resolve().parents[3]


def test_every_option_is_listed_with_what_its_docstring_says(done, fudlr):
    lines = done("options").out.splitlines()
    assert [line.split(" = ")[0] for line in lines if " = " in line] == list(field_names())
    about = describe_fields()["data.tail"]
    assert (about["default"], about["allowed"]) == (0.2, "number > 0 < 1")
    assert about["help"] == "Share of most popular items that are not tail."
    assert done("options", "lora").out.startswith("lora.rank = 8   (integer ≥ 1 ≤ 256)\n")
    assert fudlr("options", "nonsense").code == 2


def test_doctor_says_versions_instruction_set_and_way(done, small_run):
    found = json.loads(done("doctor", small_run).out)
    assert found["versions"]["torch"] == torch.__version__
    assert found["engine"]["instruction set"] in found["engine"]["others built"].split(",")
    assert found["model"]["parameters"] == load_run(small_run).engine.d


def test_doctor_tries_a_base_with_what_a_trainer_left_or_alone(done, small_run, tmp_path):
    def tried(*given):
        return json.loads(done("doctor", "--base", small_run / "base", *given).out)["model"]

    folder = shutil.copytree(small_run / "adapter", tmp_path / "out" / "checkpoint-30")
    assert tried("--adapter", tmp_path / "out")["verdict"].startswith("fused layers")
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"use_dora": True}))
    assert "use_dora" in tried("--adapter", folder)["why"]
    assert tried()["verdict"].startswith("fused layers")


def test_figures_replace_figures_and_nothing_else(done, fudlr, small_run, tmp_path, monkeypatch):
    out = tmp_path / "figures.json"
    out.write_text('{"arp": 0.5}')
    assert json.loads(done("evaluate", small_run, "--out", out).out) == json.loads(out.read_text())
    monkeypatch.setattr("fudlr.evaluation.measure", None)  # refused before anything is measured
    (tmp_path / "theirs").write_text("theirs")
    before = {path: path.read_bytes() for path in small_run.rglob("*") if path.is_file()}
    for name in (tmp_path / "theirs", small_run / "config.yaml", small_run / "new.json", tmp_path):
        found = fudlr("evaluate", small_run, "--out", name)
        assert found.code == 2
        assert "was to be written" in found.err or "were to be written" in found.err
    assert (tmp_path / "theirs").read_text() == "theirs"
    assert {path: path.read_bytes() for path in small_run.rglob("*") if path.is_file()} == before


def test_a_home_that_the_shell_left_is_that_home(done, small_run, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    done("evaluate", small_run, "--out", "~/figures.json")
    assert (tmp_path / "home" / "figures.json").is_file()
    assert [each.name for each in tmp_path.iterdir()] == ["home"]


@pytest.mark.parametrize(
    ("limit", "value", "interval", "code"),
    [
        (Limit("arp", 0.5, least=False), 0.5, (0.4, 0.6), 0),
        (Limit("arp", 0.5, least=False), 0.6, (0.55, 0.65), REGRESSED),
        (Limit("arp", 0.5, least=False), 0.6, (0.45, 0.75), UNSURE),
        (Limit("arp", 0.5, least=False), 0.6, None, REGRESSED),
        (Limit("ndcg", 0.5, least=True), 0.6, (0.1, 0.7), 0),
        (Limit("ndcg", 0.5, least=True), 0.4, (0.3, 0.49), REGRESSED),
        (Limit("ndcg", 0.5, least=True), 0.4, (0.3, 0.51), UNSURE),
    ],
)
def test_a_limit_heeds_the_interval(limit, value, interval, code):
    assert limit.judge(value, interval) == code


def test_limits_are_read_and_what_is_none_is_refused():
    for text, limit in (
        ("arp=+2%", 0.51),
        ("arp=-2%", 0.49),
        ("arp=+0.25", 0.75),
        ("arp=0.3", 0.3),
    ):
        assert parse_limit(text, {"arp": 0.5}, least=False).limit == pytest.approx(limit)
    for text in ("arp", "arp=", "arp=2%", "arp=+x", "gini=+2%"):
        with pytest.raises(UsageError):
            parse_limit(text, {"arp": 0.5}, least=False)


def test_check_from_the_command_line(fudlr, done, small_run, tmp_path):
    done("evaluate", small_run, "--out", tmp_path / "before.json")
    done("check", small_run, "--baseline", tmp_path / "before.json", "--max", "arp=+0%",
         "--min", "ndcg@5=-0%", "--max", "test_loss=+1%")  # fmt: skip
    figures = json.loads((tmp_path / "before.json").read_text())
    figures["arp"] /= 4
    (tmp_path / "better.json").write_text(json.dumps(figures))
    worse = fudlr("check", small_run, "--baseline", tmp_path / "better.json", "--max", "arp=+2%")
    assert worse.code == REGRESSED
    (row,) = json.loads(worse.out)
    assert row["limit"] == pytest.approx(figures["arp"] * 1.02)
    assert row["value"] == pytest.approx(figures["arp"] * 4)
    assert row["interval"][1] <= row["value"] <= row["interval"][2]


def test_a_base_is_used_again_without_pretraining(small_run, tmp_path):
    options = {**SMALL, "model.base": str(small_run / "base")}
    again, first = train_run(merge(RunConfig(), options), tmp_path / "r"), load_run(small_run)
    # The same base, start, data and order: the same training, to rounding.
    assert again.losses == pytest.approx(first.losses, rel=1e-5)
    assert again.identity()["model"] == first.identity()["model"]


def test_item_tokens_are_not_added_for_an_adapter_from_elsewhere(fudlr, small_run, tmp_path):
    base = tmp_path / "chat"
    base.mkdir()
    for path in (small_run / "base").iterdir():
        (base / path.name).write_bytes(path.read_bytes())
    settings = [f"--set={name}={json.dumps(value)}" for name, value in SMALL.items()]
    found = fudlr("adopt", "--base", base, "--out", tmp_path / "new", *settings,
                  "--adapter", small_run / "adapter", "--data", "synthetic")  # fmt: skip
    assert found.code == 2
    assert "recommender.kind=titles" in found.err
    assert not (tmp_path / "new").exists()


def test_without_a_compiler_the_first_line_says_so(tmp_path):
    found = subprocess.run(
        [sys.executable, "setup.py", "bdist_wheel", "--dist-dir", str(tmp_path)],
        cwd=ROOT, env={"PATH": str(tmp_path), "CXX": ""}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert found.returncode == 1
    assert found.stdout == ""
    assert found.stderr.startswith("fudlr-ext compiles its kernels, and this machine has no C++")


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


def test_metrics_without_groups_are_left_out_and_more_may_be_named_later(fudlr, done, folder):
    settings = [f"--set={name}={value}" for name, value in SMALL.items() if name != "data.source"]
    run, out, file = folder / "run", folder / "figures.json", folder / "mine.py"
    said = " ".join(done("data", "check", folder / "data", *settings).out.split())
    assert "(data.user_group) are left out: the data have no column 'gender'" in said
    assert "(data.item_group) are left out: by 'genres', it has 1 groups" in said
    assert "1 of 31 users have fewer than 5 of the 40 items left unseen" in said
    done("train", "--data", folder / "data", "--out", run, *settings)
    done("evaluate", run, "--out", out)
    figures = json.loads(out.read_text())
    assert {"arp", "ndcg@5", "gini"} <= figures.keys()
    assert not {"hellinger", "hit_gap", "mgu"} & figures.keys()
    done("evaluate", run, "--out", out, "--set", "data.user_group=job", "--set", "data.k=4")
    later = json.loads(out.read_text())
    assert {"hit_gap", "ndcg@4"} <= later.keys()
    assert np.isclose(later["arp_soft"], figures["arp_soft"])
    refused = fudlr("debias", run, "--out", folder / "result", "--objective", "hellinger")
    assert refused.code != 0
    assert "it compares item groups, and the items have none" in refused.err
    file.write_text(
        "from fudlr.metrics import from_function, register\n"
        "register(from_function('share_of_first', lambda s, side: s.softmax(1)[:, 0].mean(), True),"
        " replace=True)\n"
    )
    try:
        done("--metrics-from", file, "evaluate", run, "--out", out)
    finally:
        METRICS.pop("share_of_first", None)
    assert 0 < json.loads(out.read_text())["share_of_first"] < 1
