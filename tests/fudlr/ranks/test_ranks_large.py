"""A store's request that no process holds: the mask of one that does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from fudlr.common import parallel
from fudlr.gradients import MemoryRows, Projection
from fudlr.gradients.store import Binding, Store, StoreWriter, digest
from fudlr.influence.curvature import EmpiricalFisher, Parts
from fudlr.influence.large import remove
from fudlr.influence.mask import threshold_mask
from fudlr.influence.scores import influence, scores
from fudlr.influence.solvers import make_solver
from fudlr.influence.update import removal_update
from rank_cases import together
from safetensors.torch import load_file, save_file

N, P, BUDGET, DAMPING = 411, 6, 0.2, 0.1
LAMBDAS = (1.0, 0.5, 0.05)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Rows of which many are alike, in an order of their own."""
    out = tmp_path_factory.mktemp("large") / "store"
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(40, P, generator=generator)[torch.randint(40, (N,), generator=generator)]
    ids = torch.randperm(N, generator=generator)
    with StoreWriter(out, "course", P, "float32", shard_bytes=1000) as writer:
        writer.use(Projection({"x.lora_A.w": (1, P)}, {"x.lora_A.w": torch.eye(P)}))
        for part in ids.split(17):
            writer.append(part, rows[part], torch.zeros(P))
        writer.finish(Binding(*(digest(name) for name in "abcd")))
    return out


def given() -> tuple[torch.Tensor, ...]:
    return tuple(torch.randn(3, P, generator=torch.Generator().manual_seed(1)))


def large(folder: Path, out: Path) -> None:
    parallel.start()
    names = dict(zip(("lambda_fair", "lambda_acc", "lambda_spa"), LAMBDAS, strict=True))
    options = {"damping": DAMPING, "budget": BUDGET, "tolerance": 1e-6, "window_bytes": 500}
    found = remove(Store.open(folder), *given(), **options, **names)
    own = torch.cat(list(found.removed()))
    here = parallel.ranks()
    (out / f"size-{here.size}-{here.rank}").write_text(json.dumps(len(own)))
    every = {"removed": here.cat(own).sort().values, "theta": found.update.theta}
    if here.first:
        assert found.threshold.removed == len(every["removed"])
        save_file(every, out / f"found-{here.size}.safetensors")
    parallel.end()


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_removal(tmp_path, folder, size):
    if size == 1:
        large(folder, tmp_path)
    else:
        together(size, large, folder, tmp_path, folder=tmp_path)
    rows = MemoryRows(Store.open(folder).read(torch.arange(N)))
    solve = make_solver(EmpiricalFisher(Parts(rows)), DAMPING, tolerance=1e-6)
    theta, fairness, accuracy = given()
    values = influence(rows, {"fairness": fairness, "accuracy": accuracy}, solve).values
    mask = threshold_mask(scores(*values.T, *LAMBDAS), BUDGET)
    assert mask.removed == int(BUDGET * N)
    # The last place is shared: some of the samples that are alike go, those of the lowest ids.
    found = load_file(tmp_path / f"found-{size}.safetensors")
    assert torch.equal(found["removed"], mask.remove.nonzero()[:, 0])
    expected = removal_update(theta, rows, mask.remove, solve).theta
    torch.testing.assert_close(found["theta"], expected, rtol=1e-4, atol=1e-5)
    held = [json.loads(path.read_text()) for path in tmp_path.glob(f"size-{size}-*")]
    assert sum(held) == mask.removed
    assert max(held) < mask.removed or size == 1
