"""`scale`, `not_differentiable` and `full_parameters` on tiny runs, and their own parts."""

import pytest
import torch
from fudlr import RunConfig
from fudlr.config import merge
from fudlr.experiments import EXPERIMENTS, Options, run_experiment
from fudlr.experiments.whole_model import WholeModel
from torch import nn
from torch.func import functional_call, grad, vmap

TINY = {
    "data.k": 5,
    "model.hidden": 16,
    "model.heads": 1,
    "model.kv_heads": 1,
    "model.layers": 1,
    "model.intermediate": 16,
    "model.pretrain_epochs": 1,
    "train.epochs": 2,
}
FEW = {"data.train_samples": 150, "data.prompt_users": 100}


@pytest.fixture(autouse=True)
def _quiet(monkeypatch):
    monkeypatch.setenv("FUDLR_QUIET", "1")


def run_tiny(name, tmp_path, **more):
    defaults = EXPERIMENTS[name].defaults
    config = merge(RunConfig(), {**defaults, **TINY, **more})
    return run_experiment(EXPERIMENTS[name], Options(config, tmp_path, small=True))


def test_scale_on_a_tiny_stream(tmp_path):
    record = run_tiny("scale", tmp_path, **{"record.batch": 256, "train.batch": 256})
    small, large = record["cells"].values()
    assert (small["interactions"], large["interactions"]) == (1000, 3000)
    for cell in (small, large):
        users = cell["interactions"] // 50
        assert cell["record"]["samples"] == cell["request"]["rows"] == 47 * users
        assert 0 < cell["request"]["removed"] <= 0.1 * 47 * users
        assert cell["request"]["predicted"]["arp"] < 0
        assert cell["request"]["measured"]["arp"] < 0
        seconds = cell["training"]["median"] * 47 * users * 2
        assert cell["retraining_seconds_extrapolated"] == pytest.approx(seconds)
        assert cell["share"] > cell["request_share"] > 0
        assert "draw" in cell["record"]["cpu_seconds"]
    assert "extrapolated" in " ".join(record["table"][0])
    assert not list((tmp_path / "stores").iterdir()), "stores are deleted"


def test_not_differentiable_on_a_tiny_run(tmp_path):
    more = {"data.source": "synthetic", "data.k": 2, "lora.rank": 1, **FEW}
    record = run_tiny("not_differentiable", tmp_path, **more)
    cells = record["cells"]
    assert "no gradient" in cells["flat, seed 0"]["refused"]
    for name in ("coverage", "tail share", "quota"):
        cell = cells[f"{name}, seed 0"]
        assert cell["variance"]["4"] > cell["variance"]["8"] > 0
        assert cell["variance"]["without control"] > cell["variance"]["8"]
        assert cell["variance"]["one number"] > 3 * cell["variance"]["8"]
        assert set(cell["hard"]) == {
            "trained",
            *(f"{way}, {state}" for way in ("smooth", "drawn")
              for state in ("closed form", "retrained")),
        }  # fmt: skip
    # Both are of the same quantity here, so a sign that is turned shows.
    assert cells["tail share, seed 0"]["cosine"] > 0.2


def test_full_parameters_on_a_tiny_run(tmp_path):
    record = run_tiny("full_parameters", tmp_path, **{"data.source": "synthetic", **FEW})
    cell = record["cells"]["seed 0"]
    adapter, whole = (cell["sides"][side] for side in ("LoRA", "all parameters"))
    assert whole["parameters"] > adapter["parameters"]
    assert whole["samples"] == adapter["samples"] == 150
    for side in (adapter, whole):
        assert side["losses"][1] < side["losses"][0]
        assert side["cosine"] > 0
        assert side["figures"]["closed form"]["arp_soft"] < side["figures"]["trained"]["arp_soft"]
    assert cell["influence"]["spearman"] > 0


class Shared(nn.Module):
    """Two uses of one weight, so that what is shared must be counted once."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.second(self.first(x).tanh())


def test_gradients_of_a_whole_model():
    torch.manual_seed(0)
    model = Shared()
    whole = WholeModel(model)
    assert whole.d == 24
    batch = {"x": torch.randn(5, 4), "y": torch.randn(5, 4)}

    def loss(outputs, batch):
        return (outputs - batch["y"]).square().sum(1)

    def forward(model, batch):
        return model(batch["x"])

    rows = whole.sample_grads(forward, loss, batch)
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def of_one(parameters, x, y):
        return (functional_call(model, parameters, (x,)) - y).square().sum()

    found = vmap(grad(of_one), in_dims=(None, 0, 0))(parameters, batch["x"], batch["y"])
    exact = torch.cat([found[name].flatten(1) for name in whole.names], dim=1)
    torch.testing.assert_close(rows, exact)
    way = whole.deferred_vjp(forward, batch)
    cotangent = 2 * (way.outputs[0] - batch["y"])
    torch.testing.assert_close(way.vjp((cotangent[None],))[0], rows.sum(0))
    theta = whole.theta()
    whole.load(theta + 1)
    torch.testing.assert_close(whole.theta(), theta + 1)
