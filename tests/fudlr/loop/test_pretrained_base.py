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

    options = ["--set", "data.k=5", "--set", "train.epochs=1", "--set", "lora.rank=2"]
    trained, result, out = (tmp_path / name for name in ("run", "result", "figures.json"))
    run("train", "--data", "synthetic", "--base", base, "--out", trained, *options)
    # An epoch on random weights is no training, and a diagnostic says so.
    run("debias", trained, "--out", result, "--objective", "gini", "--quick", "--force")
    run("evaluate", trained, "--adapter", result / "adapter", "--out", out)
    summary = json.loads((result / "summary.json").read_text())
    for name, value in json.loads(out.read_text()).items():
        assert value == pytest.approx(summary["after"][name], rel=1e-5, abs=1e-7)
