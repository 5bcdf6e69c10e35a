"""A base that FSDP shards over processes: gradients are those of the whole model."""

from __future__ import annotations

from pathlib import Path

import torch
from rank_cases import together
from ranks_model import N, adapted_llama, losses, samples, take
from torch import distributed
from torch.distributed.fsdp import fully_shard

from fudlr_ext import Engine
from fudlr_ext.errors import UnsupportedLayerError
from fudlr_ext.reducers import Sums


def forward(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return losses(model, batch)


def loss(outputs: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return outputs


def shard(model: torch.nn.Module, own: set[torch.nn.Parameter]) -> torch.nn.Module:
    for layer in model.base_model.model.model.layers:
        fully_shard(layer, ignored_params=own)
    return fully_shard(model, ignored_params=own)


def message(call) -> str:
    try:
        call()
    except UnsupportedLayerError as error:
        return str(error)
    return ""


def work(folder: Path) -> None:
    """Products with this process's samples beside those of a model that is whole."""
    distributed.init_process_group("gloo")
    rank, size = distributed.get_rank(), distributed.get_world_size()
    batch = take(samples(), torch.arange(N)[rank::size])
    whole, model = adapted_llama(), adapted_llama()
    shard(model, {p for p in model.parameters() if p.requires_grad})
    held = [getattr(p, "to_local", lambda p=p: p)().numel() for p in model.parameters()]
    assert sum(held) < 0.7 * sum(p.numel() for p in whole.parameters())
    engines = [Engine(whole), Engine(model)]
    vectors = torch.randn(3, engines[0].d, generator=torch.Generator().manual_seed(rank))
    cotangents = torch.randn(2, len(batch["labels"]), generator=torch.Generator().manual_seed(rank))
    products = {
        "rows": lambda e: e.sample_grads(forward, loss, batch),
        "dots": lambda e: e.sample_dots(forward, loss, batch, vectors),
        "fisher": lambda e: e.fisher_vp(forward, loss, batch, vectors),
        "pulled back": lambda e: e.deferred_vjp(forward, batch).vjp(cotangents),
    }
    for name, product in products.items():
        one, other = map(product, engines)
        assert (one - other).norm() < 1e-5 * one.norm(), name
    # As a data-parallel sum has it: each process's own samples, added up.
    sums = []
    for engine in engines:
        total = Sums(torch.ones(1, len(batch["labels"])))
        engine.reduce(forward, loss, batch, [total])
        sums.append(total.result())
        distributed.all_reduce(sums[-1])
    assert (sums[0] - sums[1]).norm() < 1e-5 * sums[0].norm()
    assert "goes back through it twice" in message(
        lambda: engines[1].hvp(forward, loss, batch, vectors)
    )
    said = message(lambda: Engine(shard(adapted_llama(), set())))
    assert "lora_A is not there, or no plain tensor" in said, said
    (folder / f"done-{rank}").touch()
    distributed.destroy_process_group()


def test_gradients_through_a_base_that_is_sharded(tmp_path):
    together(2, work, tmp_path, folder=tmp_path)
    assert len(list(tmp_path.glob("done-*"))) == 2
