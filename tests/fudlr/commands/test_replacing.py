"""`--out` over what is there already, who may read what is written, and no question to the hub."""

import os
import socket
import stat

import peft
import pytest
from fudlr import lora
from transformers import LlamaConfig, LlamaForCausalLM
from written import SMALL

TRAIN = ["train", *(f"--set={name}={value}" for name, value in SMALL.items())]


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_train_over_a_run_replaces_it_only_when_told_to(done, fudlr, tmp_path, monkeypatch):
    out = tmp_path / "run"
    done(*TRAIN, "--out", out, "--seed", 1)
    first = contents(out)
    with monkeypatch.context() as patches:
        patches.setattr("fudlr.run.folder.read_data", None)  # refused before any work
        found = fudlr(*TRAIN, "--out", out, "--seed", 2)
    assert found.code == 2
    assert "there is a trained run already" in found.err
    assert "--overwrite" in found.err
    assert contents(out) == first
    done(*TRAIN, "--out", out, "--seed", 2, "--overwrite")
    weights = next(name for name in first if str(name) == "adapter/adapter_model.safetensors")
    assert contents(out)[weights] != first[weights]
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize(
    ("umask", "folders", "files"), [(0o077, 0o700, 0o600), (0o002, 0o775, 0o664)]
)
def test_the_umask_decides_who_reads_a_run(done, tmp_path, umask, folders, files):
    earlier = os.umask(umask)
    try:
        done(*TRAIN, "--out", tmp_path / "run")
        done(
            "debias",
            tmp_path / "run",
            "--objective",
            "arp",
            "--force",
            "--out",
            tmp_path / "result",
        )
    finally:
        os.umask(earlier)
    for path in (
        p for name in ("run", "result") for p in [tmp_path / name, *(tmp_path / name).rglob("*")]
    ):
        wanted = folders if path.is_dir() else files
        assert stat.S_IMODE(path.stat().st_mode) == wanted, path


def test_saving_an_adapter_of_a_hub_model_asks_no_network(tmp_path, monkeypatch):
    """peft asks the hub for the base's configuration, to see whether the vocabulary has grown."""
    asked = []

    def resolve(host, *given, **options):
        asked.append(host)
        raise socket.gaierror("no network")

    base = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=9, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
            num_attention_heads=2,
        )
    )  # fmt: skip
    base.config._name_or_path = base.name_or_path = "maker/model"
    model = peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["q_proj"]))
    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    lora.save(model, tmp_path / "adapter")
    assert asked == []
    assert (
        peft.LoraConfig.from_pretrained(tmp_path / "adapter").base_model_name_or_path
        == "maker/model"
    )
