"""Every command on a GPU that is none: a tensor left on the host among others is an error."""

import json
import sys
from pathlib import Path

import pytest
import torch
from pretended import Mixed
from pretended_command import machine

sys.path.insert(0, str(Path(__file__).parents[1] / "fudlr" / "commands"))
from written import SMALL

pytestmark = pytest.mark.skipif(
    torch.backends.cuda.is_built(), reason="this torch has GPUs of its own: make gpu-check"
)
FAST = {**SMALL, "model.pretrain_epochs": 1, "data.train_samples": 40, "data.prompt_users": 12,
        "train.batch": 20}  # fmt: skip


def settings(**more):
    chosen = {**FAST, **{name.replace("__", "."): value for name, value in more.items()}}
    return [part for name, value in chosen.items() for part in ("--set", f"{name}={value}")]


@pytest.fixture
def on_gpu(monkeypatch, tmp_path):
    """on_gpu(*arguments): run a command with --device cuda; what its ops were."""
    from fudlr import cli
    from fudlr.cli.boundary import DEBUG

    monkeypatch.setenv(DEBUG, "1")  # an op over two devices is no error in words
    monkeypatch.setenv("FUDLR_QUIET", "1")
    monkeypatch.chdir(tmp_path)

    def call(*arguments, ends=0):
        monkeypatch.setattr(sys, "argv", ["fudlr", *map(str, arguments), "--device", "cuda"])
        with machine() as device, pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == ends
        assert "embedding" not in device.on_host, "a model ran on the host"
        return device

    return call


@pytest.fixture
def trained(on_gpu):
    on_gpu("train", "--out", "run", *settings(record__epochs="all"))


def test_train_debias_verify(on_gpu, trained):
    assert json.loads(Path("run/train.json").read_text())["device"]["device"] == "cuda:0"
    for number, options in enumerate((
        [], ["--rows", "store"], ["--rows", "memory"],
        ["--rows", "stream", "--set", "debias.newton_steps=1"],
        *(["--set", f"debias.curvature={name}"] for name in ("hessian", "ekfac")),
    )):  # fmt: skip
        quick = ["--quick"] if number else []
        device = on_gpu("debias", "run", "--out", number, "--force", *quick, *options)
        assert "attention" in device.ran
        said = json.loads(Path(f"{number}/summary.json").read_text())["device"]
        assert said["device"] == "cuda:0"
        assert said["architecture"] == "sm_90"
    on_gpu("verify", "0", "--processes", 1, "--seeds", 1, "--lds", 3, "--heldout", "--forgetting")


def test_record_sweep_grouped_evaluate_check_compare_doctor(on_gpu, trained):
    on_gpu("record", "run", "--out", "recorded", "--set", "record.dtype=float32")
    on_gpu("sweep", "run", "--out", "sweep", "--measure", "--retrain", 1, "--processes", 1)
    on_gpu("grouped", "run", "--out", "grouped", "--by", "gender")
    on_gpu("evaluate", "run", "--out", "figures.json")
    on_gpu("check", "run", "--baseline", "figures.json", "--max", "arp=+1%")
    rivals = ("gradient ascent", "LLMEraser's solve")
    on_gpu("compare", "run", "--out", "compare", "--processes", 1,
           *(part for name in rivals for part in ("--rival", name)))  # fmt: skip
    on_gpu("doctor", "run")
    on_gpu("doctor", "--base", "run/base", "--adapter", "run/adapter")


def test_demo(on_gpu):
    on_gpu("demo", "--small", "--out", "demo", *settings(record__epochs="all"))


def test_a_run_goes_from_device_to_device(on_gpu, trained, monkeypatch):
    """What is bound to it are weights as stored, data and options, and no device."""
    from fudlr import load_run

    run, before = load_run("run"), Path("run/config.yaml").read_text()
    assert str(run.recommender.device) == "cpu"
    assert "device: auto" in before
    on_gpu("debias", "run", "--out", "gpu", "--force", "--quick")
    assert json.loads(Path("gpu/summary.json").read_text())["binding"].items() >= (
        run.identity().items()
    )
    from fudlr.verify import verify_result

    verify_result("gpu", device="cpu")  # refuses what is bound to something else


def test_a_tensor_that_is_left_behind_is_found(on_gpu, trained, monkeypatch):
    from fudlr.recommenders import ItemTokens

    made = ItemTokens.batch

    def forgetful(self, samples, scoring=False):
        return {**made(self, samples, scoring), "target": torch.from_numpy(samples.target)}

    monkeypatch.setattr(ItemTokens, "batch", forgetful)
    with pytest.raises(Mixed):
        on_gpu("train", "--out", "again", *settings())
    monkeypatch.setattr(ItemTokens, "device", torch.device("cpu"))
    with pytest.raises(Mixed):
        on_gpu("evaluate", "run")


@pytest.mark.parametrize(
    ("kind", "through"), [("titles", "engine"), ("yes_no", "peft"), ("grounded", "engine")]
)
def test_recommenders_in_words(on_gpu, kind, through):
    words = {"recommender.kind": kind, "train.through": through, "data.candidates": 6,
             "data.window": 4, "data.prompt_users": 8, "data.train_samples": 24}  # fmt: skip
    on_gpu("train", "--out", "run", *settings(record__epochs="all", **words))
    on_gpu("debias", "run", "--out", "result", "--force")
    if kind == "titles":
        on_gpu("evaluate", "run", "--beams", 3)
