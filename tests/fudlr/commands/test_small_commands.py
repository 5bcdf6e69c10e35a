"""`fudlr options`, `doctor` and `check`; a base that is used again; an adapter from elsewhere."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fudlr import RunConfig, load_run, train_run
from fudlr.cli import app, is_expected
from fudlr.cli.check import REGRESSED, UNSURE, Limit, parse_limit
from fudlr.common.errors import UsageError
from fudlr.config import describe_fields, field_names, merge
from typer.testing import CliRunner

ROOT = Path(__file__).resolve().parents[3]
TINY = {"data.source": "synthetic", "data.k": 5, "model.hidden": 16, "model.heads": 2,
        "model.kv_heads": 1, "model.pretrain_epochs": 0, "train.epochs": 1, "lora.rank": 2,
        "record.epochs": "none"}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small") / "run"
    train_run(merge(RunConfig(), TINY), folder)
    return folder


def fudlr(*arguments):
    return CliRunner().invoke(app, [str(each) for each in arguments])


def test_every_option_is_listed_with_what_its_docstring_says():
    lines = fudlr("options").output.splitlines()
    assert [line.split(" = ")[0] for line in lines if " = " in line] == list(field_names())
    about = describe_fields()["data.tail"]
    assert (about["default"], about["allowed"]) == (0.2, "number > 0 < 1")
    assert about["help"] == "Share of most popular items that are not tail."
    assert fudlr("options", "lora").output.startswith("lora.rank = 8   (integer ≥ 1 ≤ 256)\n")
    assert is_expected(fudlr("options", "nonsense").exception)


def test_doctor_says_versions_instruction_set_and_way(run):
    found = json.loads(fudlr("doctor", run).stdout)
    assert found["versions"]["torch"] == torch.__version__
    assert found["engine"]["instruction set"] in found["engine"]["others built"].split(",")
    assert found["run"]["parameters"] == load_run(run).engine.d


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


@pytest.mark.parametrize(
    ("text", "limit"),
    [("arp=+2%", 0.51), ("arp=-2%", 0.49), ("arp=+0.25", 0.75), ("arp=0.3", 0.3)],
)
def test_limits_are_read(text, limit):
    assert parse_limit(text, {"arp": 0.5}, least=False).limit == pytest.approx(limit)


@pytest.mark.parametrize("text", ["arp", "arp=", "arp=2%", "arp=+x", "gini=+2%"])
def test_what_is_no_limit_is_refused(text):
    with pytest.raises(UsageError):
        parse_limit(text, {"arp": 0.5}, least=False)


def test_check_from_the_command_line(run, tmp_path):
    assert fudlr("evaluate", run, "--out", tmp_path / "before.json").exit_code == 0
    same = fudlr("check", run, "--baseline", tmp_path / "before.json", "--max", "arp=+0%",
                 "--min", "ndcg@5=-0%", "--max", "test_loss=+1%")  # fmt: skip
    assert same.exit_code == 0, same.output
    figures = json.loads((tmp_path / "before.json").read_text())
    figures["arp"] /= 4
    (tmp_path / "better.json").write_text(json.dumps(figures))
    worse = fudlr("check", run, "--baseline", tmp_path / "better.json", "--max", "arp=+2%")
    assert worse.exit_code == REGRESSED
    (row,) = json.loads(worse.stdout)
    assert row["limit"] == pytest.approx(figures["arp"] * 1.02)
    assert row["value"] == pytest.approx(figures["arp"] * 4)
    assert row["interval"][1] <= row["value"] <= row["interval"][2]


def test_a_base_is_used_again_without_pretraining(run, tmp_path):
    again = train_run(merge(RunConfig(), {**TINY, "model.base": str(run / "base")}), tmp_path / "r")
    first = load_run(run)
    # The same base, start, data and order: the same training, to rounding.
    assert again.losses == pytest.approx(first.losses, rel=1e-5)
    assert again.identity()["model"] == first.identity()["model"]


def test_item_tokens_are_not_added_for_an_adapter_from_elsewhere(run, tmp_path):
    base = tmp_path / "chat"
    base.mkdir()
    for path in (run / "base").iterdir():
        (base / path.name).write_bytes(path.read_bytes())
    settings = [f"--set={name}={json.dumps(value)}" for name, value in TINY.items()]
    found = fudlr("train", "--base", base, "--out", tmp_path / "new", *settings,
                  "--set", f"lora.adapter={run / 'adapter'}").exception  # fmt: skip
    assert is_expected(found), repr(found)
    assert "recommender.kind=titles" in str(found)
    assert not (tmp_path / "new").exists()


def test_without_a_compiler_the_first_line_says_so(tmp_path):
    done = subprocess.run(
        [sys.executable, "setup.py", "bdist_wheel", "--dist-dir", str(tmp_path)],
        cwd=ROOT, env={"PATH": str(tmp_path), "CXX": ""}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("fudlr-ext compiles its kernels, and this machine has no C++")
