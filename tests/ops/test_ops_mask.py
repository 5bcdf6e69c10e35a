"""What the shared tests of ops do not ask of a mask's steps."""

import pytest
import torch

from fudlr_ext import ops


def given(n=300, k=3, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    influence = torch.randn(n, k, generator=generator, dtype=torch.float64).to(dtype)
    return influence, *(torch.zeros(n, dtype=dtype) for _ in range(3))


def test_steps_on_an_objective_of_metrics_are_those_of_torch():
    influence, logits, first, second = given()
    logits.fill_(-1)
    price, rate, betas, eps = 0.2, 0.1, (0.9, 0.99), 1e-8

    def objective(changes):  # not linear: its gradient hangs on all samples together
        return ((changes + 5) / 10).square().sum() + 0.3 * changes[0] * changes[1]

    z = logits.clone().requires_grad_()
    optimiser = torch.optim.Adam([z], lr=rate, betas=betas, eps=eps)
    sums = ops.mask_sums(influence, logits)
    for step in range(1, 21):
        optimiser.zero_grad()
        value = objective(z.sigmoid() @ influence) + price * z.sigmoid().sum()
        value.backward()
        optimiser.step()
        changes = sums.changes.clone().requires_grad_()
        torch.testing.assert_close(objective(changes) + price * sums.mask, value)
        (weights,) = torch.autograd.grad(objective(changes), changes)
        sums = ops.mask_step(
            influence,
            weights,
            logits,
            first,
            second,
            step=step,
            price=price,
            rate=rate,
            decay_first=betas[0],
            decay_second=betas[1],
            eps=eps,
        )
        torch.testing.assert_close(logits, z.detach(), rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(sums.changes, z.detach().sigmoid() @ influence)


def test_a_decided_sample_keeps_its_slope():
    influence, logits, *_ = given(8, 1, torch.float32)
    logits.fill_(30)
    sums = ops.mask_sums(influence, logits)
    assert float(sums.mask) == 8
    torch.testing.assert_close(float(sums.slope), 8 * 9.357622968839e-14)


def test_nan_comes_through_and_stays_with_its_sample():
    influence, logits, first, second = given()
    influence[7, 1] = torch.nan
    sums = ops.mask_step(influence, torch.ones(3).double(), logits, first, second, step=1)
    assert logits.isnan().nonzero().flatten().tolist() == [7]
    assert sums.changes.isnan().all()


def test_wrong_arguments_are_refused():
    influence, logits, first, second = given()
    weights = torch.ones(3, dtype=torch.float64)
    right = (influence, weights, logits, first, second)

    def refused(message, *arguments, **options):
        with pytest.raises(ValueError, match=message):
            ops.mask_step(*arguments, **({"step": 1} | options))

    refused(r"influence must be \[n, k\]", influence[0], *right[1:])
    refused("float32, float64 or bfloat16", influence.half(), *right[1:])
    refused("weights must have the shape", influence, weights[:2], *right[2:])
    refused("logits must have the shape", *right[:2], logits[:-1], first, second)
    refused("second must be Double where influence are", *right[:4], second.float())
    refused("first must have no gaps", *right[:3], torch.zeros(600).double()[::2], second)
    refused("on one device", *right[:4], second.to("meta"))
    refused("step must count from 1", *right, step=0)
    refused(r"decays must lie in \[0, 1\)", *right, decay_second=1.0)
    refused("eps must be above 0 in Double", *right, eps=0.0)
    refused("limit must be above 0", *right, limit=0.0)
    single = [x.float() for x in right]
    refused("eps must be above 0 in Float", *single, eps=1e-150)
    with pytest.raises(ValueError, match="mask_sums: logits must have the shape"):
        ops.mask_sums(influence, logits[1:])
