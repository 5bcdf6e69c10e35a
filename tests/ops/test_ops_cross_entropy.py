"""What the shared tests of ops do not ask of a head's cross-entropy."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from fudlr_ext import ops


def given(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(7, 12, generator=generator, dtype=torch.float64)
    weight = torch.randn(700, 12, generator=generator, dtype=torch.float64).to(dtype)
    return hidden, weight, torch.tensor([3, 699, 0, -100, 3, 250, 3])


def gradients(loss, *leaves):
    weights = torch.arange(1.0, 8.0).double()
    return torch.autograd.grad((weights * loss).sum(), leaves)


def test_losses_and_gradients_are_those_of_torch():
    hidden, weight, targets = given()
    leaves = [x.clone().requires_grad_() for x in (hidden, weight)]
    loss = ops.linear_cross_entropy(*leaves, targets)
    wanted = F.cross_entropy(leaves[0] @ leaves[1].t(), targets, reduction="none")
    torch.testing.assert_close(loss, wanted)
    assert loss[3] == 0
    for got, expected in zip(gradients(loss, *leaves), gradients(wanted, *leaves), strict=True):
        torch.testing.assert_close(got, expected)
        assert got.abs().max() > 0.1


def test_a_word_that_is_many_rows_target_keeps_its_sum_in_bfloat16():
    """Summed in bfloat16 the last rows would vanish: two words are the targets of 3,000."""
    generator = torch.Generator().manual_seed(0)
    hidden = 1 + torch.rand(3000, 8, generator=generator)
    weight = torch.randn(40, 8, generator=generator).bfloat16().requires_grad_()
    targets = torch.arange(3000) % 2
    (got,) = torch.autograd.grad(ops.linear_cross_entropy(hidden, weight, targets).sum(), weight)
    exact = weight.detach().double().requires_grad_()
    wanted = F.cross_entropy(hidden.double() @ exact.t(), targets, reduction="sum")
    (truth,) = torch.autograd.grad(wanted, exact)
    assert ((got.double() - truth).abs() <= 2**-7 * truth.abs() + 1e-3 * truth.abs().max()).all()


def test_only_the_gradient_that_is_asked_for_is_made():
    hidden, weight, targets = given()
    op = torch.ops.fudlr_grad.linear_cross_entropy_backward
    grad = torch.ones(7).double()
    lse = (hidden @ weight.t()).logsumexp(1)
    to_hidden, to_weight = op(hidden, weight, targets, lse, grad, True, False)
    assert to_hidden.shape == hidden.shape
    assert to_weight.numel() == 0


def test_memory_does_not_grow_with_the_vocabulary():
    """The peak beyond inputs and outputs of one call with 2¹⁶ words is that of one with 2¹⁴."""
    code = """
import torch
from pathlib import Path
from fudlr_ext.ops import linear_cross_entropy

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(x.split()[1] for x in lines if x.startswith("VmHWM")))

torch.set_num_threads(1)
hidden = torch.randn(256, 16, requires_grad=True)
for words in (1000, 2**14, 2**16):
    weight, targets = torch.randn(words, 16), torch.randint(words, (256,))
    Path("/proc/self/clear_refs").write_text("5")
    before = peak()
    linear_cross_entropy(hidden, weight, targets).sum().backward()
    print(peak() - before)
"""
    if not sys.platform.startswith("linux"):
        pytest.skip("the peak of resident memory is read from /proc, which only Linux has")
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    logits = 256 * 2**16 * 4 // 1024
    assert int(found[2]) < logits / 50
    assert int(found[2]) - int(found[1]) < logits / 100


def test_wrong_arguments_are_refused():
    hidden, weight, targets = given()

    def refused(message, *arguments):
        with pytest.raises(ValueError, match=message):
            ops.linear_cross_entropy(*arguments)

    refused("V > 0", hidden, weight[:0], targets)
    refused("hidden must have the shape", hidden[:, :-1], weight, targets)
    refused("hidden must be Float where weight are BFloat16", hidden, weight.bfloat16(), targets)
    refused("float32, float64 or bfloat16", hidden.half(), weight.half(), targets)
    refused("targets must have the shape", hidden, weight, targets[1:])
    refused("targets must be Long", hidden, weight, targets.int())
    refused("rows of weight, 0 to 699, or -100: number 1 is 700", hidden, weight, targets + 1)
    refused("number 3 is -99", hidden, weight, (targets + 1).clamp(max=699))
    refused("on one device", hidden, weight, targets.to("meta"))
