"""`fudlr adopt`: an adapter from elsewhere, the rows it was trained on, and its recipe."""

from __future__ import annotations

import json
import shutil

import numpy as np
import polars as pl
import pytest
import torch
import yaml
from fudlr import load_run
from fudlr.common.errors import DataError
from fudlr.data import DataWarning
from fudlr.data.rows import UNKNOWN, RowSamples
from fudlr.data.trained_rows import ALPACA, read_trained_rows
from fudlr.run.recipe import differences, known_recipe
from safetensors.torch import load_file, save_file
from test_export import options


def adopt(folders, adapter, out, *more, template=True):
    chosen = options(folders)
    if not template:
        del chosen["recommender.template"]
    source = chosen.pop("data.source")
    # What its folder tells of the training is tried below.
    settings = [f"--set={k}={v}" for k, v in chosen.items() if not k.startswith("train.")]
    given = ["--base", folders / "run" / "base", "--adapter", adapter, "--data", source]
    return ["adopt", *given, "--out", out, *settings, *more]


@pytest.fixture(scope="session")
def exported(folders, once):
    """The run's own training rows, as another's data set would have them."""
    from fudlr.output.export import weighted_samples, write_samples

    def make(folder):
        folder.mkdir()
        table = weighted_samples(folders / "result").select("prompt", "answer", "user_id")
        write_samples(table, folder / "rows.jsonl")
        own = load_run(folders / "run")
        names = own.interactions.items["item_id"].gather(own.split.train.target)
        table.select("user_id").with_columns(item_id=names).write_csv(folder / "choices.csv")

    return once("exported", make)


def lines(done):
    """What was said, without the bars that transformers draws as it reads and writes."""
    return [line for line in done.err.splitlines() if line.strip() and "it/s]" not in line]


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_texts_are_trained_on_as_they_are(done, folders, exported, tmp_path):
    """Its own rows as texts have the losses and gradients of its own samples."""
    told = done(*adopt(folders, folders / "run" / "adapter", tmp_path / "run",
                       "--rows", exported / "rows.jsonl"))  # fmt: skip
    assert "validation prompts: loss" in lines(told)[0]
    for said in ("rows it was trained on: loss", "One row that it was trained on:", "device cpu",
                 "Groups of users: ", "To expect: "):  # fmt: skip
        assert said in told.err
    own, taken = load_run(folders / "run"), load_run(tmp_path / "run")
    assert isinstance(taken.split.train, RowSamples)
    assert torch.equal(own.theta, taken.theta)
    n = len(own.split.train)
    pairs = [(run.recommender, run.split.train) for run in (own, taken)]
    losses = [recommender.losses(samples) for recommender, samples in pairs]
    torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-5)
    assert torch.equal(*(recommender.terms(samples) for recommender, samples in pairs))
    few = torch.arange(6).numpy()
    rows = [
        run.engine.sample_grads(recommender.forward, recommender.loss,
                                recommender.collate(samples.take(few)))
        for run, (recommender, samples) in zip((own, taken), pairs, strict=True)
    ]  # fmt: skip
    torch.testing.assert_close(*rows, rtol=1e-3, atol=1e-4 * float(rows[0].abs().max()))
    # A request answers for those rows, and what is exported joins to them.
    done("record", tmp_path / "run")
    done("debias", tmp_path / "run", "--out", tmp_path / "result", "--force", "--quick")
    mask = pl.read_parquet(tmp_path / "result" / "mask.parquet")
    assert mask["sample_id"].to_list() == list(range(n))
    given = read(exported / "rows.jsonl")
    assert mask["user_id"].to_list() == [row["user_id"] for row in given]
    done("export", tmp_path / "result", "--out", tmp_path / "weights.jsonl")
    weights = read(tmp_path / "weights.jsonl")
    for name in ("prompt", "answer"):
        assert [row[name] for row in weights] == [row[name] for row in given]


def test_changed_rows_are_another_run(done, fudlr, folders, exported, tmp_path):
    done(*adopt(folders, folders / "run" / "adapter", tmp_path / "run",
                "--rows", exported / "rows.jsonl"))  # fmt: skip
    path = tmp_path / "run" / "rows.parquet"
    pl.read_parquet(path).reverse().write_parquet(path)
    found = fudlr("evaluate", tmp_path / "run")
    assert found.code == 1
    assert "rows.parquet" in found.err


def test_choices_name_samples_of_the_data(done, folders, exported, tmp_path):
    done(*adopt(folders, folders / "run" / "adapter", tmp_path / "run",
                "--rows", exported / "choices.csv"))  # fmt: skip
    own, taken = (load_run(folder) for folder in (folders / "run", tmp_path / "run"))
    assert sorted(own.split.train.ids) == taken.split.train.ids.tolist()


def turned(folders, tmp_path):
    """An adapter that is worse than none."""
    folder = shutil.copytree(folders / "run" / "adapter", tmp_path / "turned")
    path = folder / "adapter_model.safetensors"
    save_file({k: -3 * v if "lora_B" in k else v for k, v in load_file(path).items()}, path)
    return folder


def test_a_prompt_of_ours_that_does_not_fit_is_refused(fudlr, folders, tmp_path):
    given = adopt(folders, turned(folders, tmp_path), tmp_path / "run", template=False)
    found = fudlr(*given)
    assert found.code == 2
    assert "does not lower the loss" in found.err
    assert "watched the following movies before" in found.err  # the whole prompt
    assert not (tmp_path / "run").exists()


def test_a_prompt_of_theirs_that_does_not_fit_is_the_first_line(done, folders, tmp_path):
    found = done(*adopt(folders, turned(folders, tmp_path), tmp_path / "run"))
    assert lines(found)[0].startswith("THE ADAPTER DOES NOT LOWER THE LOSS")


def trainers(folders, tmp_path):
    """What a Trainer leaves: checkpoints with its state, and a pickle that nobody should open."""
    for step in (9, 12):
        folder = tmp_path / "out" / f"checkpoint-{step}"
        shutil.copytree(folders / "run" / "adapter", folder)
        (folder / "training_args.bin").write_bytes(b"\x80\x04 not a pickle to be loaded")
        state = {"num_train_epochs": 3, "max_steps": 12, "train_batch_size": 16, "epoch": 3.0,
                 "log_history": [{"learning_rate": 2e-4, "step": 1}, {"learning_rate": 1e-5},
                                 {"train_loss": 1.0}]}  # fmt: skip
        (folder / "trainer_state.json").write_text(json.dumps(state))
    return tmp_path / "out"


def test_a_trainers_folder_is_an_adapter_with_its_recipe(done, folders, exported, tmp_path):
    more = ["--rows", exported / "rows.jsonl", "--set", "train.learning_rate=0.001"]
    done(*adopt(folders, trainers(folders, tmp_path), tmp_path / "run", *more))
    taken = load_run(tmp_path / "run")
    n = len(taken.split.train)
    train = taken.config.train
    assert taken.config.lora.adapter.endswith("checkpoint-12")
    assert taken.recipe == {"epochs": 3, "learning_rate": 2e-4, "batch": train.batch}
    assert train.epochs == 3
    assert train.learning_rate == 0.001  # as it was named
    # Four steps an epoch, of so many samples.
    assert 4 * train.batch >= n > 2 * train.batch
    done("debias", tmp_path / "run", "--out", tmp_path / "result", "--force", "--quick",
         "--rows", "memory")  # fmt: skip
    said = done("verify", tmp_path / "result", "--processes", 1).err
    assert "another than the adapter's: learning rate 0.001 where it had 0.0002" in said
    assert "optimiser, schedule, order" in said


@pytest.mark.parametrize(
    "wrong", [{"num_train_epochs": "many"}, {"log_history": 3}, {"max_steps": -1}, []]
)
def test_a_damaged_state_is_refused_in_words(folders, tmp_path, wrong):
    folder = trainers(folders, tmp_path) / "checkpoint-9"
    state = json.loads((folder / "trainer_state.json").read_text())
    (folder / "trainer_state.json").write_text(json.dumps({**state, **wrong} if wrong else wrong))
    with pytest.raises(DataError, match=r"trainer_state\.json"):
        known_recipe(folder, 10)


def test_without_a_state_nothing_is_known(folders):
    assert known_recipe(folders / "run" / "adapter", 10) == {}
    (said,) = differences({}, load_run(folders / "run").config.train)
    assert said.startswith("what is not known of it: epochs, batch, learning rate, optimiser")


def test_train_says_where_an_adapter_from_elsewhere_belongs(fudlr, tmp_path):
    found = fudlr("train", "--out", tmp_path / "run", "--set", "lora.adapter=x")
    assert found.code == 2
    assert "fudlr adopt --base" in found.err


class Chat:
    """A tokenizer as far as chat rows need one."""

    chat_template = "made up"

    def apply_chat_template(self, turns, tokenize, add_generation_prompt=False):
        if turns[0]["role"] != "user":
            raise ValueError("roles must alternate")
        text = "".join(f"<{turn['role']}>{turn['content']}</s>" for turn in turns)
        return text + "<assistant>" * add_generation_prompt


TALK = [{"role": "user", "content": "What next?"}, {"role": "assistant", "content": "Heat"}]
TALKED = {"prompt": "<user>What next?</s><assistant>", "answer": "Heat</s>", "chat": True}
FORMS = {
    "messages": ({"messages": TALK}, TALKED),
    "conversational prompt and completion": (
        {"prompt": TALK[:1], "completion": TALK[1:]}, TALKED),
    "prompt and completion": (
        {"prompt": "Next:", "completion": " Heat"},
        {"prompt": "Next:", "answer": " Heat", "chat": False}),
    "instructions": (
        {"instruction": "Say", "input": "what", "output": "Yes."},
        {"prompt": ALPACA.format("Say", "what"), "answer": "Yes.", "chat": False}),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_forms_of_rows(folders, tmp_path, form, ending):
    row, text = FORMS[form]
    path, data = tmp_path / f"rows.{ending}", load_run(folders / "run").interactions
    if ending == "jsonl":
        path.write_text(json.dumps(row) + "\n")
    else:
        pl.DataFrame([row]).write_parquet(path)
    samples = read_trained_rows(path, data, Chat())
    assert samples.rows == [text]
    assert samples.user.tolist() == samples.target.tolist() == [UNKNOWN]


def test_titles_of_instructions_are_found_in_the_data(folders, tmp_path):
    data = load_run(folders / "run").interactions
    titles = data.items["title"].to_list()[:3]
    shown = ", ".join(f'"{title}"' for title in titles[:2])
    row = {"instruction": "Next", "input": f"The user has watched the following before: {shown}",
           "output": f'"{titles[2]}"'}  # fmt: skip
    (tmp_path / "rows.json").write_text(json.dumps([row]))
    samples = read_trained_rows(tmp_path / "rows.json", data, Chat())
    assert samples.target.tolist() == [2]
    assert np.array_equal(samples.history(0), [0, 1])


WRONG = {
    "no form": ({"a": 1, "b": 2}, "it has a, b, in another form"),
    "the last turn is the user's": ({"messages": TALK[:1] * 2}, "in another form"),
    "turns without words": ({"messages": [{"role": "user"}, 3]}, "in another form"),
    "a template that refuses": (
        {"messages": [TALK[1], TALK[1]]},
        "it refuses .roles must alternate",
    ),
    "another's choice": ({"user_id": "nobody", "item_id": "nothing"}, "are not in the data"),
    "ids beyond the data": ({"sample_id": 10**9}, "ids outside of 0 to"),
}


@pytest.mark.parametrize("case", WRONG)
def test_rows_of_no_known_form_are_refused(folders, tmp_path, case):
    row, said = WRONG[case]
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(DataError, match=said):
        read_trained_rows(tmp_path / "rows.jsonl", load_run(folders / "run").interactions, Chat())


def test_rows_named_twice_count_once_and_are_said(folders, tmp_path):
    data = load_run(folders / "run").interactions
    (tmp_path / "rows.txt").write_text("5 3 5 5")
    with pytest.warns(DataWarning, match="2 rows name samples that others name too"):
        samples = read_trained_rows(tmp_path / "rows.txt", data, Chat())
    assert samples.ids.tolist() == [3, 5]


def test_item_tokens_read_no_texts(fudlr, small_run, exported, tmp_path):
    settings = yaml.safe_load((small_run / "config.yaml").read_text())
    found = fudlr("adopt", "--base", small_run / "base", "--adapter", small_run / "adapter",
                  "--data", settings["data"]["source"], "--rows", exported / "rows.jsonl",
                  "--out", tmp_path / "run", "--set", "data.k=5")  # fmt: skip
    assert found.code == 2
    assert "item_tokens reads no texts" in found.err
