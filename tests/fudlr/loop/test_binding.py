"""Parts of a run or a result that changed, or are another's, are refused wherever they are read."""

import json
import shutil

import fudlr
import polars as pl
import pytest
import torch
from fudlr import FudlrError, cli, load_run, train_run, write_result
from fudlr.config import merge
from fudlr.verify import verify_result
from fudlr.verify.retraining import Job, retrain
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

QUICK = {"objective": "arp", "heldout": False, "curve": (), "force": True}


@pytest.fixture
def own_run(run_folder, tmp_path):
    return shutil.copytree(run_folder, tmp_path / "run")


@pytest.fixture(scope="module")
def results(run_folder, tmp_path_factory):
    """Two results of the same run, by another budget, and a run of another seed."""
    folder = tmp_path_factory.mktemp("results")
    run = load_run(run_folder)
    for name, budget in (("one", 0.1), ("two", 0.05)):
        write_result(folder / name, fudlr.debias(run, budget=budget, **QUICK))
    train_run(merge(run.config, {"seed": 5, "train.epochs": 1}), folder / "run")
    return folder


def shift(path):
    """A small change to the first tensor of a file."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    state = load_file(path)
    next(iter(state.values())).view(-1)[0] += 0.01
    save_file(state, path, metadata)


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


CHANGES = {
    "base/model.safetensors": shift,
    "adapter/adapter_model.safetensors": shift,
    "adapter/adapter_config.json": lambda path: edit(path, '"lora_alpha": 16', '"lora_alpha": 17'),
    "train.json": lambda path: edit(path, '"training": ', '"training": 9'),
    "config.yaml": lambda path: edit(path, "epochs: 12", "epochs: 13"),
    "base/tokenizer_config.json": lambda path: path.write_text("{}"),
    "start/adapter_config.json": lambda path: path.unlink(),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_changed_behind_a_run_is_named(own_run, name):
    (own_run / "base" / "README.md").write_text("what is not read may come in")
    moved = own_run.rename(own_run.with_name("moved"))
    load_run(moved)
    CHANGES[name](moved / name)
    with pytest.raises(FudlrError, match=name):
        load_run(moved)


def test_every_command_looks(own_run, results, tmp_path):
    shift(own_run / "adapter" / "adapter_model.safetensors")
    for words in (
        ["evaluate", own_run],
        ["debias", own_run, "--out", tmp_path / "out", "--rows", "memory"],
        ["verify", results / "one", "--run", own_run],
    ):
        found = CliRunner().invoke(cli.app, [*map(str, words)]).exception
        assert cli.is_expected(found), found
        assert "adapter/adapter_model.safetensors changed" in str(found)


def own_data(folder):
    """The synthetic data as CSV files of one's own."""
    data = fudlr.data.synthetic(60, 50, seed=0)
    folder.mkdir()
    columns = [data.users["user_id"].gather(data.user), data.items["item_id"].gather(data.item)]
    events = pl.DataFrame([*columns, pl.Series("timestamp", data.time)])
    items = data.items.with_columns(pl.col("genres").list.join("|"))
    for name, table in {"interactions": events, "users": data.users, "items": items}.items():
        table.write_csv(folder / f"{name}.csv")
    return folder


def test_data_that_changed_behind_a_run(tmp_path):
    data = own_data(tmp_path / "data")
    settings = {"data.source": str(data), "train.epochs": 1, "model.pretrain_epochs": 0,
                "model.hidden": 16, "model.heads": 2, "model.kv_heads": 1}  # fmt: skip
    train_run(merge(fudlr.RunConfig(), settings), tmp_path / "run")
    users = pl.read_csv(data / "users.csv")
    users.with_columns(town=pl.lit("Rome")).write_csv(data / "users.csv")
    load_run(tmp_path / "run")  # a column that came in does no harm, and can be used
    assert load_run(tmp_path / "run", settings={"data.user_group": "town"}).config.data.user_group
    swapped = {"A": "B", "B": "A"}
    users.with_columns(pl.col("gender").replace(swapped)).write_csv(data / "users.csv")
    with pytest.raises(FudlrError, match="user column gender changed"):
        load_run(tmp_path / "run")
    users.write_csv(data / "users.csv")
    data.rename(tmp_path / "moved")
    load_run(tmp_path / "run", settings={"data.source": str(tmp_path / "moved")})
    events = pl.read_csv(tmp_path / "moved" / "interactions.csv")
    events[:-1].write_csv(tmp_path / "moved" / "interactions.csv")
    with pytest.raises(FudlrError, match="interactions changed"):
        load_run(tmp_path / "run", settings={"data.source": str(tmp_path / "moved")})


def test_what_training_depends_on_cannot_be_set_afterwards(run_folder):
    for name, value in {"data.window": 3, "lora.rank": 4, "seed": 1}.items():
        with pytest.raises(FudlrError, match=f"{name} was to be set for a run that is trained"):
            load_run(run_folder, settings={name: value})
    assert load_run(run_folder, settings={"data.k": 3}).config.data.k == 3


PARTS = {
    "adapter": "updated adapter",
    "mask.parquet": "mask",
    "summary.json": "updated adapter, mask, options",
    "config.yaml": "options of the request",
}


@pytest.mark.parametrize("part", PARTS)
def test_another_results_part_is_no_proof(results, tmp_path, part):
    folder = shutil.copytree(results / "one", tmp_path / "result")
    if (folder / part).is_dir():
        shutil.copytree(results / "two" / part, folder / part, dirs_exist_ok=True)
    else:
        shutil.copyfile(results / "two" / part, folder / part)
    with pytest.raises(FudlrError, match=PARTS[part]):
        verify_result(folder)
    assert "retrained" not in json.loads((folder / "summary.json").read_text())


def test_another_run_is_no_proof(results, run_folder):
    with pytest.raises(FudlrError, match="base model"):
        verify_result(results / "one", results / "run")
    foreign = load_run(run_folder, run_folder / "start")
    with pytest.raises(FudlrError, match="the trained adapter is not what"):
        verify_result(results / "one", foreign)


def test_a_kept_retraining_has_a_checksum(run_folder, tmp_path):
    run = load_run(run_folder)
    job = Job("one epoch", config=run.config.train.model_copy(update={"epochs": 1}))
    (done,) = retrain(run, [job], tmp_path)
    (again,) = retrain(run, [job], tmp_path)
    assert torch.equal(done.theta, again.theta)
    (path,) = tmp_path.glob("*.safetensors")
    shift(path)
    with pytest.raises(FudlrError, match="not those that were written"):
        retrain(run, [job], tmp_path)
