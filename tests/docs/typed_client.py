"""Somebody's code on the public API: `make lint` checks it with mypy --strict and without any Any.

It is read, not run. What a name returns is written out, so that a type that is lost shows here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import assert_type

import fudlr
import torch
from fudlr.config import field_names, merge
from fudlr.data import Interactions, Split, leave_last_out, read_data, synthetic
from fudlr.gradients.store import Recorder, Store, StoredRows
from fudlr.groups import Grouped, debias_groups, sets_of_column
from fudlr.influence.mask import Mask, threshold_mask
from fudlr.influence.unroll import Unrolled
from fudlr.metrics import (
    METRICS,
    Metric,
    Objective,
    Side,
    catalogue_softmax,
    evaluate,
    find_metric,
    from_function,
    from_lists,
    register,
)
from fudlr.record import append_run, later_run, record_run
from torch import Tensor, nn

import fudlr_ext
from fudlr_ext import Engine, label_logits, label_loss
from fudlr_ext.ops import grad_sum, row_dots, sample_dots, sample_grads
from fudlr_ext.reducers import Dots, Rows

Batch = dict[str, Tensor]


def requests(folder: Path) -> None:
    options: dict[str, object] = {"data.k": 5}
    config = merge(fudlr.RunConfig(), options)
    assert_type(config, fudlr.RunConfig)
    assert_type(config.debias, fudlr.DebiasConfig)
    assert_type(config.debias.budget, float)
    assert_type(fudlr.load_config(folder / "own.yaml"), fudlr.RunConfig)
    assert_type(field_names(), tuple[str, ...])
    assert_type(fudlr.train_run(config, folder / "run"), fudlr.Run)
    run = fudlr.load_run(folder / "run")
    assert_type(run, fudlr.Run)
    result = fudlr.debias(run, objective="arp + 0.5*hellinger", budget=0.05)
    assert_type(result, fudlr.Result)
    assert_type(result.mask, Tensor)
    assert_type(result.weights, Tensor)
    assert_type(result.theta, Tensor)
    assert_type(result.adapter, dict[str, Tensor])
    assert_type(fudlr.write_result(folder / "result", result), Path)
    found = fudlr.verify(run, result.mask, result.theta)
    assert_type(found, fudlr.Verification)
    assert_type(found.figures, dict[str, float])
    fudlr.verify_result(folder / "result")
    users = ["13"]
    assert_type(fudlr.forget(run, users=users), fudlr.Result)
    assert_type(fudlr.explain(run, "13", item="42"), fudlr.Answers)
    assert_type(fudlr.query(run, run.split.test, of="score").influence, Tensor)
    try:
        fudlr.load_run("nowhere")
    except fudlr.FudlrError as error:
        assert_type(error.remedy, str)
    grouped = debias_groups(run, sets_of_column(run.interactions, "gender"))
    assert_type(grouped, Grouped)
    for one in grouped.found:
        assert_type(one.mask, Tensor)
        assert_type(one.before, dict[str, float])
    later = later_run(run, run.split.valid)
    record_run(later, folder / "monday")
    assert_type(append_run(run, later, (folder, folder), folder), fudlr.Run)


def adopted(model: nn.Module, rows: list[dict[str, object]]) -> fudlr.Run:
    def scores(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        return label_logits(model, batch)

    def collate(rows: Iterable[Mapping[str, object]]) -> Batch:
        return {"input_ids": torch.arange(len(list(rows)))}

    items = [1, 2]
    return fudlr.adopt(
        model, train=rows, valid=rows, test=rows, items=items, collate=collate, scores=scores
    )


def own_metric(scores: Tensor, side: Side) -> Tensor:
    ten = side.popularity.topk(10).indices
    return catalogue_softmax(scores, side.seen)[:, ten].sum(1).mean()


def metrics(scores: Tensor, side: Side) -> None:
    made = from_function("own", own_metric, lower_is_better=True)
    assert_type(register(made), Metric)
    register(from_lists("listed", METRICS["coverage"], lower_is_better=False))
    assert_type(find_metric("arp").surrogate(scores, side), Tensor)
    objective = Objective.parse("own + 0.5*arp")
    start, gradients = objective.gradients(scores, side)
    assert_type(objective.value(scores, side, start), Tensor)
    assert_type(gradients, Tensor)
    assert_type(evaluate(scores, side), dict[str, float])


def data(folder: Path) -> None:
    assert_type(read_data(folder), Interactions)
    split = leave_last_out(synthetic(seed=0))
    assert_type(split, Split)
    assert_type(len(split.valid), int)


def engine(model: nn.Module, batch: Batch) -> None:
    engine = Engine(model, check=True)
    assert_type(engine.d, int)
    assert_type(engine.names, list[str])
    rows = engine.sample_grads(label_logits, label_loss, batch)
    assert_type(rows, Tensor)
    assert_type(engine.sample_dots(label_logits, label_loss, batch, rows[:2]), Tensor)
    assert_type(engine.hvp(label_logits, label_loss, batch, rows[:2]), Tensor)
    assert_type(engine.ggn_vp(label_logits, label_loss, batch, rows[:2]), Tensor)
    assert_type(engine.fisher_vp(label_logits, label_loss, batch, rows[:2]), Tensor)
    assert_type(engine.grad_sum(label_logits, label_loss, batch, torch.ones(8)), Tensor)
    assert_type(engine.unflatten(engine.theta()), dict[str, Tensor])
    both = (Rows(), Dots(rows[:2]))
    assert_type(engine.reduce(label_logits, label_loss, batch, both), Tensor)
    assert_type(both[1].result(), Tensor)
    assert_type(fudlr_ext.label_targets(batch), Tensor)


def native(left: Tensor, right: Tensor, offsets: Tensor, vectors: Tensor) -> None:
    assert_type(sample_grads(left, right, offsets), Tensor)
    assert_type(sample_dots(left, right, offsets, vectors), Tensor)
    assert_type(grad_sum(left, right, offsets, vectors), Tensor)
    assert_type(row_dots(left, vectors), Tensor)


def recorded(model: nn.Module, batch: Batch, optimiser: torch.optim.Adam, folder: Path) -> None:
    with Recorder(model, folder, data="May", optimiser=optimiser, clip=1.0) as recorder:
        assert_type(recorder, Recorder)
        with recorder.batch(torch.arange(8)):
            pass
    store = Store.open(folder)
    assert_type(store, Store)
    assert_type(StoredRows(store, order=torch.arange(8)).gram_product(torch.ones(1, 8)), Tensor)
    unrolled = Unrolled.of(store, Engine(model).shapes)
    scores = unrolled.influence(torch.ones(1, 8))
    found = threshold_mask(scores[:, 0], 0.1)
    assert_type(found, Mask)
    assert_type(found.removed, int)
    assert_type(unrolled.update(found.remove.float()), Tensor)
