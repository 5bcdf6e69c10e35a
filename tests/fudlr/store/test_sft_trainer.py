"""TRL's SFTTrainer, whose loss is made of a fused head's log-probabilities: right, or refused."""

from __future__ import annotations

import pytest
import torch
from fudlr.common.errors import UsageError
from fudlr.gradients.store import Numbered, RecorderCallback, Store
from fudlr.influence.unroll import Unrolled
from recorder_cases import EXACT, VOCABULARY, N, adapted_llama, exact_rows, samples
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from fudlr_ext import Engine

trl = pytest.importorskip("trl", reason="trl is not installed")
datasets = pytest.importorskip("datasets", reason="datasets is not installed")


def trainer(folder, callback, **options):
    """Batches of five by two a step, the ids carried past TRL's own collator."""
    words = models.WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w0")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words), pad_token="w0",
                                        eos_token="w1")  # fmt: skip
    batch = samples()
    columns = {name: batch[name].tolist() for name in ("input_ids", "labels")}
    options = {
        "num_train_epochs": 2, "per_device_train_batch_size": 5, "learning_rate": 1e-2,
        "gradient_accumulation_steps": 2, "lr_scheduler_type": "linear", "max_grad_norm": 0.05,
        "weight_decay": 0.1, "remove_unused_columns": False, "report_to": [], "disable_tqdm": True,
        "save_strategy": "no", "use_cpu": True, "bf16": False, "gradient_checkpointing": False,
        "dataset_kwargs": {"skip_prepare_dataset": True}, **options,
    }  # fmt: skip
    made = trl.SFTTrainer(
        adapted_llama(),
        trl.SFTConfig(str(folder / "out"), **options),
        train_dataset=datasets.Dataset.from_dict(columns),
        processing_class=tokenizer,
        callbacks=[callback],
    )
    made.train_dataset = Numbered(made.train_dataset)
    made.data_collator = callback.collator(made.data_collator)
    return made


def callback(folder, **changes):
    config = EXACT.model_copy(update={"epochs": "all", **changes})
    return RecorderCallback(folder / "s", data="samples", config=config)


def test_rows_are_the_samples_own_gradients(tmp_path):
    """Whatever the step's number of label tokens, by which TRL divides."""
    made = trainer(tmp_path, callback(tmp_path), learning_rate=0.0, num_train_epochs=1)
    made.train()
    store, exact = Store.open(tmp_path / "s"), exact_rows(made.model, samples())
    limit = {"rtol": 0.0, "atol": 2e-5 * float(exact.abs().max())}
    found = store.read(torch.arange(N))
    torch.testing.assert_close(found, store.projection().project(exact), **limit)
    step = store.step(0)
    torch.testing.assert_close(step.mean, step.shares @ exact[step.ids], **limit)


def test_its_training_can_be_unrolled(tmp_path):
    """Shares, rates, decay and clipping are TRL's: repeated, the steps end at its adapter."""
    made = trainer(tmp_path, callback(tmp_path))
    made.train()
    store, engine = Store.open(tmp_path / "s"), Engine(made.model)
    assert store.steps == made.state.global_step
    unrolled = Unrolled.of(store, engine.shapes, order=torch.arange(N), theta=engine.theta())
    assert torch.allclose(unrolled.update(torch.zeros(N)), engine.theta(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"loss_type": "dft"}, "different weights"),
        ({"remove_unused_columns": True}, "takes the ids away"),
        ({"padding_free": True, "max_length": None}, "a row for each id"),
    ],
)
def test_what_its_rows_would_not_fit_is_refused(tmp_path, options, said):
    made = trainer(tmp_path, callback(tmp_path), **options)
    with pytest.raises(UsageError, match=said):
        made.train()
    assert made.state.global_step == 0
