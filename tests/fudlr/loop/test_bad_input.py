"""Each way to use the command line wrongly: a clear error, the right exit code, nothing written."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from fudlr import FudlrError, cli
from fudlr.run.base import load_base
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

runner = CliRunner()


def fudlr(*arguments):
    """Exit code and stderr of `fudlr …`, through the entry point and its error handling."""
    result = runner.invoke(cli.app, [str(a) for a in arguments])
    error = result.exception
    if error is not None and not isinstance(error, SystemExit):
        assert cli.is_expected(error), repr(error)
        return cli.exit_code(error), str(error)
    return result.exit_code, result.output


def debias(run, tmp_path, *options):
    code, message = fudlr("debias", run, "--out", tmp_path / "out", *options)
    assert not (tmp_path / "out").exists()
    assert "Traceback" not in message
    return code, message


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--objective", "arpp"], "arpp"),
        (["--objective", "arp -"], "arp -"),
        (["--objective", "arp + 0*hellinger"], "weight"),
        (["--budget", "0"], "budget"),
        (["--budget", "1.5"], "budget"),
        (["--budget", "nan"], "budget"),
        (["--damping", "-1"], "damping"),
        (["--set", "debias.lambda_acc=-1"], "lambda_acc"),
        (["--set", "debias.curvature=fisher"], "fisher"),
        (["--set", "debias.solver=magic"], "magic"),
        (["--set", "debias.nonsense=1"], "nonsense"),
        (["--set", "train.epochs=3"], "train.epochs"),
        (["--set", "debias.budget"], "="),
        (["--set", "debias.also=[arp"], "not valid YAML"),
        (["--objective", "arp@7"], "7"),
        (["--set", "data.user_group=planet", "--objective", "hellinger"], "planet"),
        (["--set", "record.energy=0.5"], "does not use it"),
    ],
)
def test_wrong_options_exit_with_2(run_folder, tmp_path, options, words):
    code, message = debias(run_folder, tmp_path, *options)
    assert code == 2
    assert words in message


def test_a_list_longer_than_the_data_allow_fails(run_folder, tmp_path):
    code, message = debias(run_folder, tmp_path, "--set", "data.k=5000")
    assert code == 1
    assert "5000" in message


def test_unknown_option_and_a_folder_that_is_no_run(run_folder, tmp_path):
    assert debias(run_folder, tmp_path, "--magic")[0] == 2
    code, message = debias(tmp_path, tmp_path)
    assert code == 2
    assert "config.yaml" in message


def changed(path, change):
    """Write the tensors of a file anew, `change` applied to each."""
    state = {name: change(tensor) for name, tensor in load_file(path).items()}
    save_file(state, path, metadata={"format": "pt"})


def of_layers(targets):
    def damage(path):
        record = json.loads(path.read_text())
        path.write_text(json.dumps({**record, "target_modules": targets}))

    return damage


WEIGHTS, SETTINGS = "adapter_model.safetensors", "adapter_config.json"


@pytest.mark.parametrize(
    ("name", "damage", "words"),
    [
        (SETTINGS, lambda path: path.unlink(), "adapter_config.json is missing"),
        (SETTINGS, of_layers(["no_such_layer"]), "adapter"),
        (SETTINGS, of_layers("[q_proj"), "a file of it is damaged"),  # no regular expression
        (WEIGHTS, lambda path: path.write_bytes(path.read_bytes()[:200]), "damaged"),
        (WEIGHTS, lambda path: changed(path, lambda t: t / 0), "NaN or infinity"),
        (WEIGHTS, lambda path: changed(path, lambda t: torch.cat([t, t], 1)),
         "not for this base model"),
    ],
)  # fmt: skip
def test_an_adapter_that_cannot_be_used(run_folder, tmp_path, name, damage, words):
    adapter = shutil.copytree(run_folder / "adapter", tmp_path / "adapter")
    damage(adapter / name)
    code, message = debias(run_folder, tmp_path, "--adapter", adapter)
    assert code == 1
    assert words in message


def test_base_that_is_not_finite(run_folder, tmp_path):
    base = shutil.copytree(run_folder / "base", tmp_path / "base")
    changed(base / "model.safetensors", lambda t: t / 0)
    with pytest.raises(FudlrError, match="NaN or infinity"):
        load_base(base)


def test_out_that_holds_something_else(run_folder, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("precious")
    code, _ = fudlr("debias", run_folder, "--out", tmp_path / "out")
    assert code == 2
    assert (tmp_path / "out" / "thesis.tex").read_text() == "precious"


def test_out_below_a_file(run_folder, tmp_path):
    (tmp_path / "file").write_text("")
    code, message = fudlr("debias", run_folder, "--out", tmp_path / "file" / "out")
    assert code == 1
    assert "cannot be written" in message


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--data", "no/such/folder"], 1, "no/such/folder"),
        (["--config", "no-such.yaml"], 2, "no-such.yaml"),
        (["--base", "no/such/model", "--data", "synthetic"], 1, "config.json"),
        (["--set", "lora.targets=[nothing]", "--data", "synthetic"], 1, "nothing"),
        (["--set", "lora.rank=0"], 2, "lora.rank"),
        (["--set", "train.learning_rate=-1"], 2, "learning_rate"),
    ],
)
def test_wrong_training(tmp_path, options, code, words):
    fast = ["--set", "model.pretrain_epochs=0", "--set", "model.hidden=16"]
    found, message = fudlr("train", "--out", tmp_path / "run", *fast, *options)
    assert found == code
    assert words in message
    assert not (tmp_path / "run").exists()


def test_missing_movielens_says_how_to_fetch_it(tmp_path, monkeypatch):
    monkeypatch.setenv("FUDLR_CACHE", str(tmp_path / "empty"))
    code, message = fudlr("train", "--out", tmp_path / "run", "--data", "ml-100k")
    assert code == 1
    assert "fudlr data fetch ml-100k" in message


def test_interruption_exits_with_130_and_leaves_nothing(run_folder, tmp_path):
    code = "import sys; from fudlr.cli import main; sys.argv[0] = 'fudlr'; main()"
    command = [sys.executable, "-c", code, "debias", str(run_folder), "--out", str(tmp_path / "o")]
    environment = {**os.environ, "FUDLR_QUIET": "", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    for line in process.stderr:
        if line.startswith("sample gradients"):
            break
    time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    rest = process.communicate(timeout=120)[1]
    assert process.returncode == 130, rest
    assert "interrupted" in rest
    assert not (tmp_path / "o").exists()
