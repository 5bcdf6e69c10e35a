"""Any architecture, target, dtype and adapter gives the gradients of autograd."""

import json

import numpy as np
import pytest
import torch
from fudlr import lora
from fudlr.common.errors import ModelError
from fudlr.config import LoraSettings, TrainConfig
from fudlr.run.base import load_base
from fudlr.train.adapter import train_adapter
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from prompt_models import ARCHITECTURES, KINDS, SMALL, adapted, base, recommender, split
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from fudlr_ext import Engine

ATTENTION = ("q_proj", "v_proj")
ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@pytest.fixture(scope="module")
def data():
    return split()


def rows_and_alone(made, samples):
    engine = Engine(made.model)
    rows = engine.sample_grads(made.forward, made.loss, made.collate(samples))
    parameters = engine.parameters()
    for p in parameters:
        p.requires_grad_(True)
    alone = []
    for i in range(len(samples)):
        batch = made.collate(samples.take(np.array([i])))
        loss = made.loss(made.forward(made.model, batch), batch).sum()
        grads = torch.autograd.grad(loss, parameters)
        alone.append(torch.cat([g.flatten() for g in grads]))
    return rows, torch.stack(alone)


def error(rows, alone):
    return float(((rows - alone).norm(dim=1) / alone.norm(dim=1)).max())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("architecture", "targets"), [("llama", ATTENTION), *((name, ALL) for name in ARCHITECTURES)]
)
def test_sample_gradients_are_those_of_batches_of_one(kind, architecture, targets, data):
    made = recommender(kind, data, adapted(base(architecture), targets))
    assert error(*rows_and_alone(made, data.train.take(np.arange(4)))) < 1e-5


def test_bf16_base_with_float32_adapter(data):
    """The base's own rounding is in both; the adapter's gradients agree far below it."""
    model = adapted(base().to(torch.bfloat16), ATTENTION)
    assert {p.dtype for p in Engine(model).parameters()} == {torch.float32}
    made = recommender("titles", data, model)
    rows, alone = rows_and_alone(made, data.train.take(np.arange(4)))
    exact = recommender("titles", data, adapted(base(), ATTENTION))
    truth = rows_and_alone(exact, data.train.take(np.arange(4)))[1]
    # At most twice as far from float32 as plain autograd in bfloat16.
    assert error(rows, truth) < 2 * error(alone, truth)


def of_logits(made, logits, tail):
    """The score that logits [t, vocabulary] of a prompt with `tail` after it give."""
    if made.name == "yes_no":
        yes, no = made.answers
        return float(logits[-1, yes] - logits[-1, no])
    p = logits[-len(tail) - 1 : -1].log_softmax(-1)
    return float(p.gather(1, torch.tensor(tail)[:, None]).mean())


@pytest.mark.parametrize("kind", KINDS)
def test_scores_of_16_bit_models_are_float32_from_the_output_matrix_on(kind, data):
    """The right value: the model's own bf16 states times the output matrix, both as float64."""
    made = recommender(kind, data, adapted(base(std=0.02).to(torch.bfloat16)))
    samples = data.valid.take(np.arange(8))
    scores, _ = made.evaluate(samples)
    assert scores.dtype == torch.float32
    assert min(len(row.unique()) for row in scores) == made.n_items, "no two items tie"
    if kind == "grounded":
        return
    states = []
    made.model.get_output_embeddings().register_forward_pre_hook(
        lambda module, given: states.append(given[0].double())
    )
    matrix = made.model.get_output_embeddings().weight.double()
    with torch.no_grad():
        for i in range(len(samples)):
            if kind == "item_tokens":
                batch = made.collate(samples.take(np.array([i])))
                made.model(input_ids=batch["input_ids"])
                expected = states[-1][0, -1] @ matrix[made.item_tokens].T
                rtol = 0.05 * float(expected.std())  # of bf16 states in another batch
                torch.testing.assert_close(scores[i].double(), expected, rtol=0, atol=rtol)
                continue
            prompt = made.prompts(samples.take(np.array([i])))[0].tokens
            for j in (0, 7):
                tail = made.question(j) if kind == "yes_no" else made.pieces.answers[j]
                made.model(input_ids=torch.tensor([prompt + tail]))
                expected = of_logits(made, states[-1][0] @ matrix.T, tail)
                count = len(tail) if kind == "semantic_ids" else 1  # a sum where titles' is a mean
                assert float(scores[i, j]) / count == pytest.approx(expected, abs=0.02)


ZOO = {
    "gpt2": (True, {"n_embd": 32, "n_layer": 2, "n_head": 4}),
    "opt": (True, {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
                   "ffn_dim": 48, "word_embed_proj_dim": 32, "max_position_embeddings": 1024}),
    "granite": (True, {**SMALL, "logits_scaling": 4.0}),
    "mpt": (False, {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 1024}),
    "gpt_neo": (False, {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "window_size": 16,
                        "attention_types": [[["global", "local"], 1]], "intermediate_size": 48,
                        "max_position_embeddings": 1024}),
    "bloom": (False, {"hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "falcon": (False, {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
                       "alibi": True}),
    "mamba": (False, {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}),
    "lfm2": (False, {**SMALL, "layer_types": ["conv", "full_attention"]}),
}  # fmt: skip


def odd(name, options):
    torch.manual_seed(0)
    settings = AutoConfig.for_model(name, vocab_size=500, **options)
    model = AutoModelForCausalLM.from_config(settings).eval()
    for parameter in model.parameters():
        if parameter.dim() == 2:
            nn.init.normal_(parameter, std=0.15)
    return model


@pytest.mark.parametrize(
    ("name", "kind"),
    [(name, "titles") for name in ZOO]
    + [(name, kind) for name in ("granite", "mpt", "mamba") for kind in ("yes_no", "grounded")],
)
def test_scores_are_those_of_each_title_alone_or_the_model_is_refused(name, kind, data):
    fits, options = ZOO[name]
    model = odd(name, options)
    made = recommender(kind, data, model)
    if not fits:
        with pytest.raises(ModelError, match=f"of the type {name}"):
            made.notes(data.train)
        with pytest.raises(ModelError, match=f"of the type {name}"):
            made.evaluate(data.valid)
        return
    scores, _ = made.evaluate(data.valid.take(np.arange(2)))
    if kind == "grounded":
        return
    for i, prompt in enumerate(made.prompts(data.valid.take(np.arange(2)))):
        for j in range(made.n_items):
            tail = made.question(j) if kind == "yes_no" else made.pieces.answers[j]
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([prompt.tokens + tail])).logits[0]
            expected = of_logits(made, logits, tail)
            assert float(scores[i, j]) == pytest.approx(expected, rel=1e-3, abs=1e-4)


def test_item_tokens_on_a_model_that_reads_padding_are_refused(data):
    options = {"lru_width": 32, "attention_window_size": 8, "num_hidden_layers": 3}
    model = odd("recurrent_gemma", {**SMALL, "num_key_value_heads": 1, **options})
    made = recommender("item_tokens", data, model)
    with pytest.raises(ModelError, match="recurrent_gemma"):
        made.notes(data.train)


def test_item_tokens_on_a_model_that_counts_its_own_positions_are_refused(data):
    """RoBERTa's positions start behind its padding token's id, which the first item here has."""
    model = odd("roberta", {**SMALL, "is_decoder": True, "pad_token_id": 0})
    made = recommender("item_tokens", data, model)
    assert int(made.item_tokens[0]) == 0
    with pytest.raises(ModelError, match="roberta"):
        made.notes(data.train)


def saved(folder, model=None, **options):
    """An adapter with every tensor trained, as peft saves it."""
    options = {"r": 4, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM", **options}
    made = get_peft_model(model or base(), LoraConfig(**options))
    for name, parameter in made.named_parameters():
        if any(part in name for part in ("lora_B", "lora_embedding", "trainable_tokens_delta")):
            nn.init.normal_(parameter, std=0.2)
    made.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, None),
        ({"init_lora_weights": "gaussian", "use_rslora": True}, None),
        ({"init_lora_weights": "orthogonal", "layers_to_transform": [1]}, None),
        (
            {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 7}, "lora_dropout": 0.1},
            None,
        ),
        ({"init_lora_weights": "pissa"}, "pissa"),
        ({"init_lora_weights": "pissa_niter_2"}, "pissa_niter_2"),
        ({"init_lora_weights": "olora"}, "olora"),
        ({"bias": "lora_only"}, "bias='lora_only'"),
        ({"bias": "all"}, "bias='all'"),
        ({"use_dora": True}, "use_dora"),
        ({"trainable_token_indices": [1, 3]}, None),
        ({"target_modules": ["q_proj", "embed_tokens"]}, None),
        ({"target_modules": ["q_proj", "lm_head"]}, None),
        ({"lora_bias": True}, None),
        ({"modules_to_save": ["norm"]}, "modules_to_save"),
    ],
)
def test_adapters_are_what_peft_loads_or_refused_by_name(options, said, tmp_path):
    biased = {"attention_bias": True} if "lora_bias" in options else {}
    saved(tmp_path, base(**biased), **options)
    if said:
        with pytest.raises(ModelError, match=said):
            lora.load(base(), tmp_path)
        return
    ids, own = torch.arange(12)[None], base(**biased)
    before = own(ids).logits
    theirs = PeftModel.from_pretrained(base(**biased), tmp_path).eval()(ids).logits
    model = lora.load(own, tmp_path).eval()
    torch.testing.assert_close(model(ids).logits, theirs)
    assert (theirs - before).abs().max() > 0.1
    engine = Engine(model)
    trained = engine.theta()
    lora.save(model, tmp_path / "again")
    again = lora.load(base(**biased), tmp_path / "again")
    assert torch.equal(Engine(again).theta(), trained)
    engine.load(lora.without_b(engine, trained))
    torch.testing.assert_close(model(ids).logits, before)


def test_all_linear_layers_are_named_as_peft_names_them():
    config = GPT2Config(vocab_size=20, n_embd=8, n_layer=1, n_head=2)
    with pytest.raises(ModelError, match=r"all-linear, or choose .*c_attn, c_fc, c_proj"):
        lora.attach(GPT2LMHeadModel(config), LoraSettings(), 0)
    chosen = LoraSettings(targets=(lora.ALL_LINEAR,))
    assert len(Engine(lora.attach(GPT2LMHeadModel(config), chosen, 0)).names) == 8


def test_options_that_other_trainers_leave_empty_are_as_unset(tmp_path):
    path = saved(tmp_path) / "adapter_config.json"
    empty = {"modules_to_save": [], "loftq_config": None}
    path.write_text(json.dumps(json.loads(path.read_text()) | empty))
    assert Engine(lora.load(base(), tmp_path)).d


def test_other_kinds_of_adapter_are_refused_by_name(tmp_path):
    config = IA3Config(target_modules=["v_proj"], feedforward_modules=[], task_type="CAUSAL_LM")
    get_peft_model(base(), config).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="IA3"):
        lora.load(base(), tmp_path)


@pytest.mark.parametrize("rename", ["none fits", "half fit", "one is missing"])
def test_an_adapter_that_fits_in_part_is_refused_with_its_keys(rename, tmp_path):
    file = saved(tmp_path) / "adapter_model.safetensors"
    tensors = load_file(file)
    first = sorted(tensors)[0]
    if rename == "one is missing":
        del tensors[first]
    else:
        changed = set(sorted(tensors)[:: 1 if rename == "none fits" else 2])
        tensors = {k.replace("layers", "h") if k in changed else k: v for k, v in tensors.items()}
    save_file(tensors, file)
    with pytest.raises(ModelError) as caught:
        lora.load(base(), tmp_path)
    assert first in str(caught.value)
    assert ("no place" in str(caught.value)) == (rename != "one is missing")


def test_an_adapter_of_another_size_names_both_sizes(tmp_path):
    saved(tmp_path, base(hidden_size=64))
    with pytest.raises(ModelError, match=r"\[4, 64\].*\[4, 32\]"):
        lora.load(base(), tmp_path)


@pytest.mark.parametrize("kept", [0, -1])
def test_a_base_model_without_some_of_its_tensors_is_refused(kept, tmp_path):
    base("qwen2").save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    lost = sorted(tensors)[kept]
    save_file({k: v for k, v in tensors.items() if k != lost}, file, {"format": "pt"})
    with pytest.raises(ModelError, match=f"lack 1 of the model's tensors.*{lost}"):
        load_base(tmp_path)
    save_file(tensors, file, {"format": "pt"})
    load_base(tmp_path)


def test_checkpointing_trains_the_same(data):
    found = []
    for checkpointing in (False, True):
        made = recommender("titles", data, adapted(base()))
        engine = Engine(made.model)
        config = TrainConfig(epochs=1, batch=16, checkpointing=checkpointing)
        found.append(
            train_adapter(made, engine, data.train.take(np.arange(32)), config, engine.theta())
        )
    torch.testing.assert_close(found[0].theta, found[1].theta, rtol=1e-4, atol=1e-5)


def test_a_matrix_without_gradient_is_no_silent_zero(data):
    made = recommender("titles", data, adapted(base()))
    engine = Engine(made.model)
    forward = made.forward
    layer = next(m for m in made.model.modules() if hasattr(m, "lora_A"))

    def without(model, batch):
        layer._disable_adapters = True
        try:
            return forward(model, batch)
        finally:
            layer._disable_adapters = False

    made.forward = without
    with pytest.raises(ModelError, match=r"2 of \d+ LoRA matrices got no gradient"):
        train_adapter(made, engine, data.train.take(np.arange(8)), TrainConfig(), engine.theta())
