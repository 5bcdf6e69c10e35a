"""The mask in the next training: samplers, data sets, a Trainer, and the bad cases."""

import pytest
import torch
from fudlr.common.errors import DataError, UsageError
from fudlr.output.training import KeptSampler, keep, load_weights
from torch.utils.data import DataLoader, TensorDataset

WEIGHTS = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0, 1.0, 1.0])
KEPT = [0, 2, 3, 5, 6]


def test_a_loader_shows_what_is_kept_once_an_epoch_in_new_orders():
    rows = TensorDataset(torch.arange(7))
    loader = DataLoader(rows, batch_size=2, sampler=KeptSampler(WEIGHTS, seed=3))
    epochs = [[int(v) for (part,) in loader for v in part] for _ in range(4)]
    assert all(sorted(epoch) == KEPT for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1
    again = KeptSampler(WEIGHTS, seed=3)
    assert [list(again) for _ in range(4)] == epochs
    assert len(again) == 5


def test_a_data_set_keeps_its_kind():
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    rows = datasets.Dataset.from_dict({"x": list(range(7))})
    kept = keep(rows, WEIGHTS)
    assert isinstance(kept, datasets.Dataset)
    assert kept["x"][:] == KEPT
    assert [row["x"] for row in keep([{"x": i} for i in range(7)], WEIGHTS)] == KEPT


def test_a_trainer_sees_kept_rows_alone(tmp_path):
    from transformers import Trainer, TrainingArguments

    seen = []

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(()))

        def forward(self, x):
            seen.extend(x.tolist())
            return {"loss": (self.weight * x).mean()}

    options = {"num_train_epochs": 2, "per_device_train_batch_size": 2, "report_to": "none"}
    arguments = TrainingArguments(str(tmp_path), use_cpu=True, save_strategy="no", **options)
    rows = keep([{"x": float(i)} for i in range(7)], WEIGHTS)
    Trainer(Model(), arguments, train_dataset=rows).train()
    assert sorted(seen) == sorted(map(float, KEPT * 2))


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        (torch.ones(6), r"of 7 rows .* shape \(6,\)"),
        (torch.zeros(7), "all of them are 0"),
        (WEIGHTS / 2, "neither 0 nor 1"),
    ],
)
def test_weights_that_fit_no_training_are_refused(weights, words):
    with pytest.raises(UsageError, match=words):
        keep(list(range(7)), weights)


def test_a_results_weights_go_by_id(folders):
    import polars as pl

    mask = pl.read_parquet(folders / "result" / "mask.parquet")
    whole = load_weights(folders / "result")
    assert torch.equal(whole, 1 - torch.tensor(mask["mask"].to_list()).float())
    ids = mask["sample_id"].to_list()
    picked = [ids[at] for at in (4, 0, 2)]
    assert torch.equal(load_weights(folders / "result", picked), whole[[4, 0, 2]])
    with pytest.raises(DataError, match=r"'99999999' \(nearest: "):
        load_weights(folders / "result", [99999999])
