"""From a result to other people's training: weights, data sets, an example, a model card."""

import ast
import importlib.util
import json
import runpy
import shutil
from pathlib import Path

import fudlr as package
import polars as pl
import pytest
import written
import yaml
from fudlr.config import merge
from fudlr.data.minionerec import minionerec_tables
from fudlr.output.export import weighted_samples, write_samples
from fudlr.recommenders import RECOMMENDERS
from fudlr.report.rows import metric_rows
from peft import PeftModel
from safetensors.torch import load_file
from test_recommenders_cli import OWN, TINY
from transformers import AutoModelForCausalLM

EXAMPLES = Path(__file__).parents[3] / "examples"


def make_folders(folder):
    """A run of titles, and a result of it."""
    (folder / "data").mkdir(parents=True)
    written.parquet(folder / "data")
    (folder / "own.yaml").write_text(yaml.safe_dump(OWN))
    run = package.train_run(merge(package.RunConfig(), options(folder)), folder / "run")
    result = package.debias(run, objective="arp", force=True, curve=(), heldout=False)
    package.write_result(folder / "result", result)


def options(folder):
    chosen = dict(each.split("=") for each in TINY)
    named = {
        "recommender.kind": "titles",
        "recommender.template": str(folder / "own.yaml"),
        "data.source": str(folder / "data"),
    }
    return {name: yaml.safe_load(value) for name, value in chosen.items()} | named


def test_weights_are_those_of_the_mask(done, folders, tmp_path):
    done("export", folders / "result", "--out", tmp_path / "s.jsonl")
    done("export", folders / "result", "--out", tmp_path / "s.parquet")
    rows = [json.loads(line) for line in (tmp_path / "s.jsonl").read_text().splitlines()]
    assert rows == pl.read_parquet(tmp_path / "s.parquet").to_dicts()
    mask = pl.read_parquet(folders / "result" / "mask.parquet")
    assert [row["weight"] for row in rows] == [1.0 - m for m in mask["mask"].to_list()]
    assert 0 < sum(row["weight"] for row in rows) < len(rows)
    for row, target, title in zip(rows, mask["target"], mask["target_title"], strict=True):
        assert row["target_id"] == target
        assert row["answer"] == f'"{title}"'
        assert row["prompt"].startswith("Seen: ")
        assert target not in row["history_ids"]


def test_kept_samples_are_instructions(done, folders, tmp_path):
    done("export", folders / "result", "--out", tmp_path / "s.json")
    done("export", folders / "result", "--out", tmp_path / "s.parquet")
    kept = pl.read_parquet(tmp_path / "s.parquet").filter(pl.col("weight") > 0)
    rows = json.loads((tmp_path / "s.json").read_text())
    assert [row["output"] for row in rows] == kept["answer"].to_list()
    assert [row["instruction"] for row in rows] == kept["prompt"].to_list()
    words = ("Say.", "### Input: a\nb", "Yes")
    prompt = "Below.\n\n### Instruction:\n{}\n\n### Input:\n{}\n\n### Response:\n".format(*words)
    table = pl.DataFrame({"prompt": prompt, "answer": words[2], "weight": 1.0})
    write_samples(table, tmp_path / "a.json")
    names = ("instruction", "input", "output")
    assert json.loads((tmp_path / "a.json").read_text()) == [dict(zip(names, words, strict=True))]


def test_kept_samples_are_rows_of_minionerec(folders, tmp_path, monkeypatch):
    """With semantic IDs, which its reader takes again with items, titles and sequences."""
    run = package.load_run(folders / "run")
    items = run.interactions.items
    codes = [(f"<a_{at % 7}>", f"<b_{at}>") for at in range(len(items))]
    monkeypatch.setattr(run.recommender, "record", lambda: {"codes": codes})
    table = weighted_samples(folders / "result", run)
    write_samples(table, tmp_path / "train.csv")
    kept, rows = table.filter(pl.col("weight") > 0), pl.read_csv(tmp_path / "train.csv")
    assert 0 < len(rows) == len(kept) < len(table)
    for name, history in (("id", "ids"), ("title", "titles"), ("sid", "codes")):
        found = [ast.literal_eval(cell) for cell in rows[f"history_item_{name}"].cast(pl.String)]
        assert found == kept[f"history_{history}"].to_list()
    assert rows["item_title"].to_list() == kept["target_title"].to_list()
    assert rows["item_id"].cast(pl.String).to_list() == kept["target_id"].to_list()
    at = items["item_id"].to_list().index(kept["target_id"][0])
    assert rows["item_sid"][0] == "".join(codes[at])
    again = minionerec_tables(tmp_path / "train.csv").items.frame
    named = dict(zip(items["item_id"], codes, strict=True))
    for item, own in again.select("item_id", "codes").rows():
        assert "".join(named[item]) == "".join(own)


def test_export_refuses_before_it_reads_a_run(fudlr, folders, tmp_path, monkeypatch):
    monkeypatch.setattr("fudlr.output.export.load_run", None)
    mask = (folders / "result" / "mask.parquet").read_bytes()
    (tmp_path / "there.jsonl").write_text("theirs")
    for out, said in (
        (folders / "result" / "mask.parquet", "where fudlr keeps a result"),
        (folders / "run" / "weights", "where fudlr keeps a run"),
        (tmp_path / "there.jsonl", "it is there already"),
        (tmp_path / "w.tsv", "files that end in .tsv are not written"),
    ):
        more = ["--overwrite"] if out.name == "mask.parquet" else []
        found = fudlr("export", folders / "result", "--out", out, *more)
        assert found.code == 2
        assert said in found.err
    assert (folders / "result" / "mask.parquet").read_bytes() == mask
    assert (tmp_path / "there.jsonl").read_text() == "theirs"


def test_datasets_out(done, folders, tmp_path):
    if importlib.util.find_spec("datasets") is None:
        pytest.skip("Hugging Face's `datasets` is not installed (pip install fudlr-ext[datasets])")
    import datasets

    done("export", folders / "result", "--out", tmp_path / "set")
    done("export", folders / "result", "--out", tmp_path / "s.parquet")
    loaded = datasets.load_from_disk(str(tmp_path / "set"))
    assert loaded.to_list() == pl.read_parquet(tmp_path / "s.parquet").to_dicts()


def test_the_example_trains_with_the_weights(done, folders, tmp_path):
    done("export", folders / "result", "--out", tmp_path / "s.jsonl")
    lines = (tmp_path / "s.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines[:48]]
    (tmp_path / "s.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    main = runpy.run_path(str(EXAMPLES / "train_with_weights.py"))["main"]
    losses = main(str(tmp_path / "s.jsonl"), str(folders / "run" / "base"), str(tmp_path / "a"))
    assert losses[1] < losses[0]
    base = AutoModelForCausalLM.from_pretrained(folders / "run" / "base")
    PeftModel.from_pretrained(base, str(tmp_path / "a"))
    for row in rows:
        row["weight"] = 0.0
    (tmp_path / "s.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    none = main(str(tmp_path / "s.jsonl"), str(folders / "run" / "base"), str(tmp_path / "b"))
    assert none == [0.0, 0.0]


def test_an_adapter_trained_elsewhere_is_debiased_as_it_is(done, folders, tmp_path):
    """Its start is not known; verification retrains from the base model's own function."""
    theirs = load_file(folders / "run" / "adapter" / "adapter_model.safetensors")
    given = options(folders)
    settings = [f"--set={name}={value}" for name, value in given.items()]
    base, adapter = folders / "run" / "base", folders / "run" / "adapter"
    found = done("adopt", "--base", base, "--adapter", adapter, "--out", tmp_path / "run",
                 "--data", given["data.source"], *settings)  # fmt: skip
    assert "One prompt, as the model reads it, and its answer:" in found.err
    kept = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    start = load_file(tmp_path / "run" / "start" / "adapter_model.safetensors")
    for name, matrix in theirs.items():
        assert kept[name].equal(matrix), name
        assert start[name].equal(matrix if ".lora_A." in name else matrix * 0), name
    done("debias", tmp_path / "run", "--out", tmp_path / "result", "--force", "--quick")
    updated = load_file(tmp_path / "result" / "adapter" / "adapter_model.safetensors")
    assert not all(updated[name].equal(theirs[name]) for name in theirs)


@pytest.mark.parametrize("value", [-1.0, 2.0, None, float("nan"), "1"])
def test_a_mask_that_is_no_share_is_not_exported(fudlr, folders, tmp_path, value):
    result = shutil.copytree(folders / "result", tmp_path / "result")
    mask = pl.read_parquet(result / "mask.parquet")
    values = mask["mask"].to_list()
    values = [str(v) for v in values] if value == "1" else [value, *map(float, values[1:])]
    mask.with_columns(mask=pl.Series(values)).write_parquet(result / "mask.parquet")
    out = tmp_path / "s.jsonl"
    found = fudlr("export", result, "--out", out)
    assert found.code == 1
    assert "not between 0 and 1" in found.err
    assert not out.exists()


def test_another_ending_is_refused(fudlr, folders, tmp_path):
    found = fudlr("export", folders / "result", "--out", tmp_path / "s.xlsx")
    assert found.code == 2
    assert ".xlsx" in found.err


def test_model_card_says_what_was_removed_and_what_changed(folders):
    adapter = folders / "result" / "adapter"
    card = (adapter / "README.md").read_text(encoding="utf-8")
    front = yaml.safe_load(card.split("---")[1])
    assert front["library_name"] == "peft"
    assert "base_model" not in front, "nobody else can load it"
    assert "PATH OF THE BASE MODEL" in card
    summary = json.loads((folders / "result" / "summary.json").read_text())
    assert f"{summary['samples']['removed']} of {summary['samples']['training']:,}" in card
    assert "`arp`" in card
    labels = {row.name: row.label for row in metric_rows(summary)}
    rows = [line for line in card.splitlines() if line.startswith(f"| {labels['arp']} |")]
    assert len(rows) == 1
    assert "not measured" in rows[0], "nothing was retrained"
    for metric in summary["before"]:
        assert f"| {labels[metric]} |" in card


def test_push_takes_adapter_and_card_and_no_folder_of_this_machine(
    done, fudlr, folders, tmp_path, monkeypatch
):
    taken = {}

    class Made(str):
        repo_id = "somebody/fair"

    class Hub:
        def create_repo(self, repository, *, private, exist_ok):
            assert exist_ok
            taken["asked"] = (repository, private)
            return Made("https://hub/somebody/fair")

        def upload_folder(self, *, repo_id, folder_path, commit_message):
            taken["to"] = repo_id
            taken["files"] = {path.name: path.read_bytes() for path in folder_path.iterdir()}

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    adapter = folders / "result" / "adapter"
    before = {path.name: path.read_bytes() for path in adapter.iterdir()}
    said = done("push", folders / "result", "fair", "--base", "maker/model", "--private")
    assert "https://hub/somebody/fair" in said.err
    assert (taken["asked"], taken["to"]) == (("fair", True), "somebody/fair")
    files = taken["files"]
    assert files.keys() == {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    assert files["adapter_model.safetensors"] == before["adapter_model.safetensors"]
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == "maker/model"
    assert (
        yaml.safe_load(files["README.md"].decode().split("---")[1])["base_model"] == "maker/model"
    )
    assert not any(str(folders).encode() in content for content in files.values())
    assert {path.name: path.read_bytes() for path in adapter.iterdir()} == before

    private = json.loads((folders / "result" / "summary.json").read_text())
    private["config"]["recommender"]["template"] = "/home/me/secret/own.yaml"
    moved = shutil.copytree(folders / "result", tmp_path / "result")
    (moved / "summary.json").write_text(json.dumps(private))
    card = moved / "adapter" / "README.md"
    card.write_text(f"{card.read_text()} With /home/me/secret/own.yaml of {folders / 'run'}.")
    done("push", moved, "fair", "--base", "maker/model")
    sent = taken["files"]["README.md"].decode()
    assert "With (not public) of (not public)." in sent

    def refused(*arguments):
        found = fudlr("push", folders / "result", "fair", *arguments)
        assert found.code in (1, 2)
        return found.err

    assert "--base OWNER/NAME" in refused()

    class ConnectError(Exception):
        """The client's transport has errors of its own, which are no OSError."""

    def offline(self, *given, **options):
        raise ConnectError("no route")

    monkeypatch.setattr(Hub, "create_repo", offline)
    assert "did not take it (no route)" in refused("--base", "maker/model")


@pytest.mark.parametrize("kind", sorted(RECOMMENDERS))
def test_example_of_each_recommender(kind, capsys):
    main = runpy.run_path(str(EXAMPLES / "recommender.py"))["main"]
    main(kind)
    said = dict(line.split(": ") for line in capsys.readouterr().out.splitlines()[1:])
    before, after = map(float, said["arp_soft"].split(" -> "))
    assert after < before, "steered at popularity alone"
