"""`fudlr data check` counts what is there: figures worked out by hand."""

import json

import forms
import pytest
from fudlr import cli
from fudlr.common.errors import FudlrError
from fudlr.config import DataConfig
from fudlr.data import check_data, read_data
from fudlr.run import load_run
from typer.testing import CliRunner

runner = CliRunner()
ROWS = [
    *[f"ann,{item},{time}" for time, item in enumerate("abcdef")],
    "bob,a,7",
    "bob,b,7",
    "bob,c,7",
    "bob,a,9",
    "null,g,3",
]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "interactions.csv").write_text("\n".join(["user,item,time", *ROWS]) + "\n")
    (tmp_path / "users.csv").write_text(
        "user,gender,mood\nann,F,[/red]\nbob,M,\\[b]\nnull,,x\nidle,M,y\n"
    )
    lines = [f"{i},T{i},{'War|Drama' if i in 'ab' else 'War'}" for i in "abcdef"]
    lines += ["g,Same,", "h,Same,War"]
    (tmp_path / "items.csv").write_text("\n".join(["item,title,genres", *lines]) + "\n")
    return tmp_path


def test_counts(folder):
    check = check_data(lambda: read_data(folder), DataConfig(k=3))
    assert (check.users, check.items, check.interactions) == (3, 8, 10)
    assert check.time == (0, 7)
    assert check.ties == 2
    assert check.repeats == 1
    assert check.missing_user_ids == 1
    assert check.idle_items == 1
    assert check.title_twins == 2
    assert check.left_out == 2
    assert check.samples == {"train": 1, "valid": 1, "test": 1}
    # Of ann's six, the last two are judged; everything else counts, so that e, f and h have none.
    assert check.no_popularity == 3
    groups = {g.column: g for g in check.groups}
    assert groups["users.gender"].sizes == {"F": 1, "M": 1}
    assert (groups["users.gender"].unknown, groups["users.gender"].small) == (1, 2)
    assert groups["items.genres"].sizes == {"War": 7, "Drama": 2}
    assert groups["items.genres"].unknown == 1
    assert check.trained == 0.1
    assert check.scores_bytes == 1 * 8 * 4
    assert len(check.warnings) == 5
    assert "data.user_group) are left out: by 'gender', 0 of 2 groups" in check.warnings[-2]
    assert check.problems == []


def test_the_table_shows_the_figures_and_takes_no_text_for_markup(folder):
    result = runner.invoke(cli.app, ["data", "check", str(folder), "--set", "data.k=3"])
    assert result.exit_code == 0
    words = " ".join(result.stdout.split())
    for part in ("ties in time 2", "repeats dropped 1", "title twins 2", "[/red] 1", "\\[b] 1",
                 "scores as matrices 0.00 GiB"):  # fmt: skip
        assert part in words
    assert "warning: interactions: 1 repeated interactions" in words


def test_json_is_the_record(folder):
    result = runner.invoke(cli.app, ["data", "check", str(folder), "--json"])
    record = check_data(lambda: read_data(folder)).to_plain()
    assert json.loads(result.stdout) == json.loads(json.dumps(record))


def test_data_too_short_to_split_are_shown_with_the_problem(tmp_path):
    (tmp_path / "a.csv").write_text("user,item,time\n1,a,5\n2,a,5\n")
    result = runner.invoke(cli.app, ["data", "check", str(tmp_path / "a.csv")])
    assert result.exit_code == 1
    words = " ".join(result.stdout.split())
    assert "items without popularity no split" in words
    assert "problem: a split into training, validation and test was asked for" in words


def test_instructions_have_no_user_ids(tmp_path):
    check = check_data(lambda: read_data(forms.write_bigrec(tmp_path)))
    assert check.missing_user_ids == check.interactions
    assert any("metrics between groups of users are impossible" in w for w in check.warnings)


def test_a_table_with_its_own_names_trains_from_the_command_line(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    events, users, items = forms.frames()
    events.rename({"user_id": "who", "timestamp": "when"}).write_parquet(folder / "log.parquet")
    users.rename({"user_id": "who"}).write_parquet(folder / "users.parquet")
    items.write_parquet(folder / "items.parquet")
    settings = ["train.epochs=1", "model.pretrain_epochs=1", "model.hidden=16", "model.layers=1"]
    settings += ["data.columns.user=who", "data.columns.time=when", "data.k=3"]
    options = [part for setting in settings for part in ("--set", setting)]
    out = tmp_path / "run"
    result = runner.invoke(cli.app, ["train", "--data", str(folder), "--out", str(out), *options])
    assert result.exit_code == 0, result.exception
    run = load_run(out)
    assert run.config.data.columns == {"user": "who", "time": "when"}
    assert len(run.interactions) == len(forms.EVENTS)
    assert "gender" in run.interactions.users.columns


def test_what_evaluate_would_refuse_is_a_problem(folder):
    """Of 8 items, ann's test prompt has 3 left; and what is asked for must be there."""
    args = ["data", "check", str(folder)]
    for setting, code, said in (
        ("data.k=4", 1, "1 of 1 users have fewer than 4 of the 8 items left unseen"),
        ("data.candidates=5", 1, "fewer than 10"),
        ("data.user_group=mood", 0, "metrics that need groups (data.user_group) are left out"),
        ("data.user_group=sex", 2, "no such column"),
        ("data.item_group=genres", 0, "train samples 1"),
    ):
        more = [] if "=4" in setting or "candidates" in setting else ["--set", "data.k=3"]
        result = runner.invoke(cli.app, [*args, "--set", setting, *more])
        words = " ".join(f"{result.stdout} {result.exception}".split())
        error = result.exception
        found = cli.exit_code(error) if isinstance(error, FudlrError) else result.exit_code
        assert (found, said in words) == (code, True), (setting, words)


def test_train_samples_and_prompt_users_are_those_that_will_be_there(tmp_path):
    out = tmp_path / "config.yaml"
    out.write_text("data: {train_samples: 50, prompt_users: 7}\n")
    result = runner.invoke(cli.app, ["data", "check", "synthetic", "--json", "--config", str(out)])
    assert json.loads(result.stdout)["samples"] == {"train": 50, "valid": 7, "test": 7}
