"""The model is left as it was found; the flat vector goes to and fro."""

import pytest
import torch
from engine_models import adapted, batch_of, llama, randomise
from peft import PeftModel, get_peft_model_state_dict

from fudlr_ext import Engine, EngineError, label_logits, label_loss

FACE = (label_logits, label_loss)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return adapted(llama())


def snapshot(model):
    return (
        {
            name: (p.requires_grad, p.grad, p.detach().clone())
            for name, p in model.named_parameters()
        },
        {name: (m.training, "forward" in vars(m)) for name, m in model.named_modules()},
        {
            name: len(m._forward_hooks) + len(m._forward_pre_hooks)
            for name, m in model.named_modules()
        },
    )


def same(before, after):
    for (flag, grad, value), (flag2, grad2, value2) in zip(
        before[0].values(), after[0].values(), strict=True
    ):
        assert flag == flag2
        assert grad is grad2
        assert torch.equal(value, value2)
    assert before[1:] == after[1:]


def calls(engine, batch):
    vectors = torch.randn(2, engine.d)
    logits = label_logits(engine.model, batch).detach()
    return {
        "sample_grads": lambda: engine.sample_grads(*FACE, batch),
        "sample_dots": lambda: engine.sample_dots(*FACE, batch, vectors),
        "grad_sum": lambda: engine.grad_sum(*FACE, batch, torch.ones(5)),
        "outputs": lambda: engine.outputs(label_logits, batch),
        "vjp": lambda: engine.vjp(label_logits, batch, logits[None]),
        "fisher_vp": lambda: engine.fisher_vp(*FACE, batch, vectors),
        "ggn_vp": lambda: engine.ggn_vp(*FACE, batch, vectors),
        "hvp": lambda: engine.hvp(*FACE, batch, vectors),
    }


def test_nothing_is_changed(model):
    engine = Engine(model)
    model.train()
    model.base_model.model.model.layers[0].self_attn.eval()
    model.requires_grad_(False)
    next(model.parameters()).requires_grad_(True)
    for call in calls(engine, batch_of()).values():
        before = snapshot(model)
        call()
        same(before, snapshot(model))


def test_mode_and_flags_change_no_number(model):
    engine, batch = Engine(model), batch_of()
    model.eval()
    model.requires_grad_(False)
    torch.manual_seed(1)
    quiet = {name: call() for name, call in calls(engine, batch).items()}
    model.requires_grad_(True)
    torch.manual_seed(1)
    work = calls(engine, batch)  # made while dropout is off
    model.train()
    for name, call in work.items():
        torch.testing.assert_close(call(), quiet[name], rtol=1e-6, atol=1e-6)
    assert all(p.grad is None for p in model.parameters())


def test_outputs_are_the_models_without_a_graph(model):
    engine, batch = Engine(model), batch_of()
    model.eval()
    randomise(model)
    before = engine.report()
    found = engine.outputs(label_logits, batch)
    assert not found.requires_grad
    torch.testing.assert_close(found, label_logits(model, batch).detach(), rtol=1e-5, atol=1e-5)
    assert engine.report() == before
    assert engine.reports() == []


def test_nothing_is_changed_by_a_failure(model):
    engine = Engine(model)
    model.train()
    before = snapshot(model)

    def broken(outputs, batch):
        raise RuntimeError("on purpose")

    for name in ("sample_grads", "hvp"):
        arguments = [torch.zeros(1, engine.d)] if name == "hvp" else []
        with pytest.raises(RuntimeError, match="on purpose"):
            getattr(engine, name)(label_logits, broken, batch_of(), *arguments)
        same(before, snapshot(model))


def test_an_own_forward_is_put_back(model):
    layer = model.base_model.model.model.layers[0].mlp.up_proj
    own = layer.forward
    layer.forward = own
    Engine(model).sample_grads(*FACE, batch_of())
    assert vars(layer)["forward"] is own


def test_flat_vector_goes_to_and_fro(model):
    engine = Engine(model)
    theta = engine.theta()
    assert theta.shape == (engine.d,) == (engine.n_params,)
    assert engine.d == sum(p.numel() for p in engine.parameters())
    assert torch.equal(engine.flatten(model), theta)
    assert torch.equal(engine.flatten(get_peft_model_state_dict(model)), theta)
    assert list(get_peft_model_state_dict(model)) == engine.names == list(engine.unflatten(theta))
    assert torch.equal(engine.flatten(engine.unflatten(theta)), theta)
    both = engine.unflatten(torch.stack([theta, 2 * theta]))
    for name, shape in engine.shapes.items():
        assert both[name].shape == (2, *shape)
    engine.load(theta + 1)
    assert torch.equal(engine.theta(), theta + 1)
    for name, matrix in engine.unflatten(theta + 1).items():
        assert torch.equal(matrix, get_peft_model_state_dict(model)[name])


def test_reads_what_peft_saved(model, tmp_path):
    from safetensors.torch import load_file

    theta = Engine(model).theta()
    model.save_pretrained(tmp_path)
    randomise(model)
    other = Engine(PeftModel.from_pretrained(llama(), tmp_path))
    assert torch.equal(other.theta(), theta)
    assert torch.equal(other.flatten(load_file(tmp_path / "adapter_model.safetensors")), theta)


def test_wrong_vectors_are_refused(model):
    engine = Engine(model)
    theta = engine.theta()
    with pytest.raises(EngineError, match=r"expected: their shape is \[3\]"):
        engine.load(torch.zeros(3))
    with pytest.raises(EngineError, match="2 of the"):
        engine.load(torch.cat([torch.tensor([torch.nan, torch.inf]), theta[2:]]))
    assert torch.equal(engine.theta(), theta)
    with pytest.raises(EngineError, match="unflatten"):
        engine.unflatten(theta[1:])
    state = get_peft_model_state_dict(model)
    first = engine.names[0]
    with pytest.raises(EngineError, match="1 are missing"):
        engine.flatten({k: v for k, v in state.items() if k != first})
    with pytest.raises(EngineError, match="1 belong to no layer"):
        engine.flatten({**state, "elsewhere.lora_A.weight": state[first]})
    with pytest.raises(EngineError, match=f"{first} was to be"):
        engine.flatten({**state, first: state[first][:1]})


@pytest.mark.parametrize("name", ["sample_dots", "hvp", "ggn_vp", "fisher_vp"])
def test_wrong_products_are_refused(model, name):
    engine = Engine(model)
    for vectors in (torch.zeros(engine.d), torch.zeros(2, engine.d + 1)):
        with pytest.raises(EngineError, match=rf"{name}: vectors of shape \[any, {engine.d}\]"):
            getattr(engine, name)(*FACE, batch_of(), vectors)
