"""A pretrained model from a folder, item tokens added, through train, debias and evaluate.

Plain, and quantised by libraries where these are installed.
"""

import importlib
import importlib.util
import json

import pytest
from fudlr.cli import app
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    TorchAoConfig,
)
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
        Qwen2Config(vocab_size=len(words), hidden_size=64, intermediate_size=64,
                    num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1)
    ).save_pretrained(tmp_path / "base")  # fmt: skip
    return tmp_path / "base"


def quantise(folder, kind):
    """Save the model again in fewer bits, as its library and transformers do."""
    library = {"4 bit": "bitsandbytes", "8 bit": "bitsandbytes", "int8": "torchao"}[kind]
    pytest.importorskip(library)
    if kind == "int8":
        ao = importlib.import_module("torchao.quantization")
        config = TorchAoConfig(ao.Int8WeightOnlyConfig())
    else:
        config = BitsAndBytesConfig(load_in_4bit=kind == "4 bit", load_in_8bit=kind == "8 bit")
    model = AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=config, dtype="float32"
    )
    model.save_pretrained(folder)
    assert "quantization_config" in json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize("held", ["plain", "4 bit", "8 bit", "int8"])
def test_a_pretrained_model_goes_through_the_loop(base, tmp_path, held):
    if held != "plain":
        quantise(base, held)

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


@pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is not None, reason="bitsandbytes is installed"
)
def test_a_quantised_model_without_its_library_is_refused_before_training(base, tmp_path):
    path = base / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    path.write_text(json.dumps(config))
    arguments = [
        "train",
        "--data",
        "synthetic",
        "--base",
        str(base),
        "--out",
        str(tmp_path / "run"),
    ]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code
    said = str(result.exception) + result.output
    assert "it is quantised, and its library is not there" in said
    assert "bitsandbytes" in said
