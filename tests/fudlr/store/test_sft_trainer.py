"""TRL's SFTTrainer, whose loss is made of a fused head's log-probabilities: right, or refused."""

from __future__ import annotations

import pytest
import torch
from fudlr.common.errors import UsageError
from fudlr.gradients.store import Numbered, RecorderCallback, Store, digest
from fudlr.influence.unroll import Unrolled
from peft import LoraConfig, get_peft_model
from recorder_cases import (
    EXACT,
    VOCABULARY,
    N,
    adapted_llama,
    every_direction,
    exact_rows,
    samples,
)
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerFast

from fudlr_ext import Engine

trl = pytest.importorskip("trl", reason="trl is not installed")
datasets = pytest.importorskip("datasets", reason="datasets is not installed")


CHAT = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }} "
    "{% endgeneration %}{% else %}{{ m['content'] }} {% endif %}{% endfor %}"
)


def trainer(folder, callback, model=None, data=None, **options):
    """Batches of five by two a step, the ids carried past TRL's own collator."""
    words = models.WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w0")
    made = Tokenizer(words)
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, pad_token="w0",
                                        eos_token="w1", chat_template=CHAT)  # fmt: skip
    batch = samples()
    columns = data or {name: batch[name].tolist() for name in ("input_ids", "labels")}
    options = {
        "num_train_epochs": 2, "per_device_train_batch_size": 5, "learning_rate": 1e-2,
        "gradient_accumulation_steps": 2, "lr_scheduler_type": "linear", "max_grad_norm": 0.05,
        "weight_decay": 0.1, "remove_unused_columns": False, "report_to": [], "disable_tqdm": True,
        "save_strategy": "no", "use_cpu": True, "bf16": False, "gradient_checkpointing": False,
        "dataset_kwargs": {"skip_prepare_dataset": data is None}, **options,
    }  # fmt: skip
    made = trl.SFTTrainer(
        model or adapted_llama(),
        trl.SFTConfig(str(folder / "out"), **options),
        train_dataset=datasets.Dataset.from_dict(columns),
        processing_class=tokenizer,
        callbacks=[callback] if callback else [],
    )
    if callback:
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
        ({"padding_free": True, "max_length": None}, "all samples into one row"),
        ({"packing": True, "packing_strategy": "wrapped"}, "several samples into one row"),
    ],
)
def test_what_its_rows_would_not_fit_is_refused(tmp_path, options, said):
    made = trainer(tmp_path, callback(tmp_path), **options)
    with pytest.raises(UsageError, match=said):
        made.train()
    assert made.state.global_step == 0


def usual_adapter(dropout):
    """As published recipes have it: rank 16 on all linear layers; B not zero, so that A trains."""
    base = adapted_llama().unload()
    config = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", lora_dropout=dropout)
    torch.manual_seed(2)
    model = get_peft_model(base, config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model


class Watch:
    """The random state, parameters and inputs of every batch."""

    def __init__(self, model):
        self.seen = []
        self.handle = model.register_forward_pre_hook(self.before, with_kwargs=True)

    def before(self, model, args, inputs):
        theta = Engine(model).theta()
        self.seen.append((torch.get_rng_state(), theta, {**inputs}))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_rows_with_dropout_are_a_scoring_passs_under_the_same_masks(tmp_path, checkpointing):
    """Whatever was trained in between: each batch again at its parameters, with its masks."""
    model = usual_adapter(0.05)
    hook = callback(tmp_path)
    hook._projection = every_direction(model)
    made = trainer(tmp_path, hook, model, gradient_checkpointing=checkpointing)
    watch = Watch(model)
    made.train()
    watch.handle.remove()
    store, engine = Store.open(tmp_path / "s"), Engine(model)
    recorded = {}
    for number in range(store.steps):
        step = store.step(number)
        for name, row in zip(step.ids.tolist(), step.rows, strict=True):
            recorded[int(step.epoch), name] = row
    model.train()
    for at, (state, theta, inputs) in enumerate(watch.seen):
        engine.load(theta)
        torch.set_rng_state(state)
        ids, batch = inputs["sample_id"], {k: inputs[k] for k in ("input_ids", "attention_mask")}
        logits, labels = model(**batch).logits[:, :-1], inputs["labels"][:, 1:]
        token = cross_entropy(logits.transpose(1, 2), labels, reduction="none")
        losses = token.sum(1) / (labels != -100).sum(1)
        for name, loss in zip(ids.tolist(), losses, strict=True):
            row = torch.autograd.grad(loss, engine.parameters(), retain_graph=True)
            exact = hook._projection.project(torch.cat([part.flatten() for part in row])[None])[0]
            limit = {"rtol": 0.0, "atol": 2e-5 * float(exact.abs().max())}
            epoch = 1 + at // (len(watch.seen) // 2)
            torch.testing.assert_close(recorded[epoch, name], exact, **limit)


def test_the_trained_adapter_is_the_same_bit_for_bit(tmp_path):
    thetas = []
    for hook in (callback(tmp_path), None):
        made = trainer(tmp_path, hook, usual_adapter(0.05))
        made.train()
        thetas.append(Engine(made.model).theta())
    assert torch.equal(*thetas)
    store = Store.open(tmp_path / "s")
    assert store.manifest.dropout == {"lora_dropout": 0.05}
    assert store.binding.adapter == digest(thetas[0])


def completions(words):
    return {
        "prompt": [" ".join(each) for each in words],
        "completion": [" " + " ".join(reversed(each)) for each in words],
    }


def chats(words):
    """Two turns each, the assistant's of one or two words."""
    said = [
        (("user", " ".join(each)), ("assistant", " ".join(each[:2])), ("user", "w3"),
         ("assistant", each[-1])) for each in words
    ]  # fmt: skip
    turns = [[{"role": role, "content": text} for role, text in each] for each in said]
    return {"messages": turns}


@pytest.mark.parametrize(
    ("make", "options"), [(completions, {}), (chats, {"assistant_only_loss": True})]
)
def test_what_trl_labels_itself_is_recorded(tmp_path, make, options):
    """Its own preparation of texts: rows are of the completion's or the assistant's tokens."""
    words = [[f"w{20 + (7 * i + j) % 11}" for j in range(2 + i % 4)] for i in range(N)]
    options = {"learning_rate": 0.0, "num_train_epochs": 1, **options}
    made = trainer(tmp_path, callback(tmp_path), data=make(words), **options)
    batch = made.data_collator([made.train_dataset[i] for i in range(N)])
    made.train()
    labelled = (batch["labels"] != -100).sum(1)
    expected = [3 if make is chats else 1 + len(each) for each in words]
    assert labelled.tolist() == expected
    del batch["sample_id"]
    store, exact = Store.open(tmp_path / "s"), exact_rows(made.model, batch)
    limit = {"rtol": 0.0, "atol": 2e-5 * float(exact.abs().max())}
    found = store.read(torch.arange(N))
    torch.testing.assert_close(found, store.projection().project(exact), **limit)
