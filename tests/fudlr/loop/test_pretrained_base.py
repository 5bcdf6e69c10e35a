"""A pretrained model from a folder, item tokens added, through train, debias and evaluate."""

import json

import pytest
from fudlr.cli import app
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM
from typer.testing import CliRunner


@pytest.fixture
def base(tmp_path):
    words = {word: i for i, word in enumerate(["[UNK]", "item", *map(str, range(10))])}
    plain = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    plain.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.Digits(individual_digits=True)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=plain, unk_token="[UNK]", pad_token="[UNK]"
    ).save_pretrained(tmp_path / "base")
    Qwen2ForCausalLM(
        Qwen2Config(vocab_size=len(words), hidden_size=16, intermediate_size=24,
                    num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1)
    ).save_pretrained(tmp_path / "base")  # fmt: skip
    return tmp_path / "base"


def test_a_pretrained_model_goes_through_the_loop(base, tmp_path):
    def run(*arguments):
        result = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result

    settings = [
        "data.k=5", "train.epochs=2", "lora.rank=2",
    ]  # fmt: skip
    options = [word for setting in settings for word in ("--set", setting)]
    run("train", "--data", "synthetic", "--base", base, "--out", tmp_path / "run", *options)
    # Two epochs on random weights are no training, and a signature says so.
    run(
        "debias",
        tmp_path / "run",
        "--out",
        tmp_path / "result",
        "--objective",
        "gini",
        "--quick",
        "--force",
    )
    out = tmp_path / "figures.json"
    run(
        "evaluate", tmp_path / "run", "--adapter", tmp_path / "result" / "adapter", "--out", out
    )  # fmt: skip
    summary = json.loads((tmp_path / "result" / "summary.json").read_text())
    for name, value in json.loads(out.read_text()).items():
        assert value == pytest.approx(summary["after"][name], rel=1e-5, abs=1e-7)
