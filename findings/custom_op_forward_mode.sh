#!/usr/bin/env bash
# torch.func.jvp through a custom op returns a tangent of 0, and raises nothing.
#
# Expected: an op that has `register_autograd` but no forward-mode rule raises in forward mode, as
# autograd.Function without `jvp` does. Seen: x², registered with torch.library.custom_op, gives the
# right value and gradient (9 and 6 at x = 3), passes opcheck, and its jvp and jacfwd are 0 instead
# of 6; a dual tensor comes out without a tangent. The same holds for ops defined in C++ with
# TORCH_LIBRARY and torch.library.register_autograd. torch.func.grad of the same op does raise.
#
# Exits non-zero where this changes.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 expecttest==0.3.0
cat >"$work/run.py" <<'PY'
import torch


@torch.library.custom_op("demo::square", mutates_args=())
def square(x: torch.Tensor) -> torch.Tensor:
    return x * x


@square.register_fake
def _(x):
    return torch.empty_like(x)


square.register_autograd(
    lambda ctx, g: 2 * ctx.saved_tensors[0] * g,
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(inputs[0]),
)


class Function(torch.autograd.Function):
    @staticmethod
    def forward(x):
        return x * x

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx, g):
        return 2 * ctx.saved_tensors[0] * g


x, one = torch.tensor(3.0), torch.tensor(1.0)
value, tangent = torch.func.jvp(square, (x,), (one,))
forward = torch.func.jacfwd(square)(x)
leaf = x.clone().requires_grad_()
(gradient,) = torch.autograd.grad(square(leaf), leaf)
checks = torch.library.opcheck(square, (x.clone().requires_grad_(),))


def raised(call):
    try:
        call()
    except RuntimeError as error:
        return str(error).splitlines()[0][:70]
    return "nothing"


of_grad = raised(lambda: torch.func.grad(square)(x))
of_function = raised(lambda: torch.func.jvp(Function.apply, (x,), (one,)))
print("torch", torch.__version__.split("+")[0])
print("value", float(value), " gradient", float(gradient), " opcheck", set(checks.values()))
print("jvp", float(tangent), " jacfwd", float(forward), " (right: 6 and 6)")
print("torch.func.grad of it raises:", of_grad)
print("torch.func.jvp of an autograd.Function without jvp raises:", of_function)
assert (float(value), float(gradient), float(tangent), float(forward)) == (9, 6, 0, 0)
assert set(checks.values()) == {"SUCCESS"}
assert "nothing" not in (of_grad, of_function)
PY
"$work/venv/bin/python" "$work/run.py"
