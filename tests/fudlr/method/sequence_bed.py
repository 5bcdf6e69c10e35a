"""A LoRA model over padded sequences, and every curvature's matrix as its definition has it.

Dense, in float64, by per-sample autograd and hooks on peft's own modules: nothing here is the
engine's. Sequences differ in length, so that positions without a gradient exist.
"""

from __future__ import annotations

import torch
from fudlr.common.batches import Batches
from fudlr.gradients import MemoryRows
from fudlr.influence.curvature import Parts
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.func import functional_call, grad, hessian, jacrev, vmap

from fudlr_ext import Engine

N, STEPS, WIDTH, HIDDEN, ITEMS, RANK = 40, 4, 5, 6, 7, 2


class Net(nn.Module):
    """Logits [n, ITEMS] from the mean over real positions of two adapted layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, HIDDEN)
        self.register_buffer("readout", 3 * torch.randn(HIDDEN, ITEMS))

    def forward(self, x: Tensor, real: Tensor) -> Tensor:
        hidden = torch.tanh(self.second(torch.tanh(self.first(x))))
        return (hidden * real[..., None]).sum(1) / real.sum(1, keepdim=True) @ self.readout


def forward(model, batch):
    return model(batch["x"], batch["real"])


def loss(outputs, batch):
    return nn.functional.cross_entropy(outputs, batch["target"], reduction="none")


class SequenceBed:
    """Model, engine, samples in batches of unequal size, and the dense matrices."""

    def __init__(self) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            config = LoraConfig(r=RANK, lora_alpha=3, target_modules=["first", "second"])
            self.model = get_peft_model(Net(), config).double().eval()
            self.engine = Engine(self.model)
            self.theta = torch.randn(self.engine.d, dtype=torch.float64) / 2
            self.engine.load(self.theta)
            real = (torch.arange(STEPS) < torch.randint(1, STEPS + 1, (N, 1))).double()
            self.batch = {
                "x": torch.randn(N, STEPS, WIDTH, dtype=torch.float64),
                "real": real,
                "target": torch.randint(ITEMS, (N,)),
            }
            self.weights = torch.rand(N, dtype=torch.float64)

    def take(self, index: Tensor) -> dict[str, Tensor]:
        return {name: tensor[index] for name, tensor in self.batch.items()}

    def parts(self, weights: Tensor | None = None) -> Parts:
        split = torch.arange(N).split([17, 3, 20])
        return Parts(
            engine=self.engine,
            forward=forward,
            loss=loss,
            batches=Batches([self.take(index) for index in split]),
            rows=MemoryRows(self.matrix(self.batch["target"])),
            weights=weights,
        )

    # The definitions.

    def outputs(self, theta: Tensor, x: Tensor, real: Tensor) -> Tensor:
        state = {
            name.replace(".weight", ".default.weight"): matrix
            for name, matrix in self.engine.unflatten(theta).items()
        }
        return functional_call(self.model, state, (x[None], real[None]))[0]

    def one(self, theta: Tensor, x: Tensor, real: Tensor, target: Tensor) -> Tensor:
        return loss(self.outputs(theta, x, real)[None], {"target": target[None]})[0]

    def each(self, function, *extra: Tensor) -> Tensor:
        """`function(θ, x, real, …)` of every sample, [N, …]."""
        given = (self.batch["x"], self.batch["real"], *extra)
        return vmap(function, in_dims=(None,) + (0,) * len(given))(self.theta, *given)

    def matrix(self, target: Tensor) -> Tensor:
        """G [N, d] for these labels."""
        return self.each(grad(self.one), target)

    def slices(self) -> dict[str, slice]:
        found, start = {}, 0
        for name, (a, b) in self.engine.shapes.items():
            found[name] = slice(start, start + a * b)
            start += a * b
        return found

    def factors(self) -> dict[str, tuple[Tensor, Tensor]]:
        """l [N, t, a] and r [N, t, b] of every matrix, from hooks on peft's linears."""
        seen, handles = {}, []
        for name, module in self.model.named_modules():
            if name.endswith(("lora_A.default", "lora_B.default")):
                key = name.removesuffix(".default") + ".weight"

                def hook(module, args, output, key=key):
                    output.retain_grad()
                    seen[key] = (output, args[0].detach())

                handles.append(module.register_forward_hook(hook))
        loss(forward(self.model, self.batch), self.batch).sum().backward()
        for handle in handles:
            handle.remove()
        return {name: (seen[name][0].grad, seen[name][1]) for name in self.engine.names}

    def kronecker(self, weights: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """K-FAC's L and R of every matrix; a sample's l enters with √w."""
        found = {}
        for name, (plain, right) in self.factors().items():
            left = plain * weights.sqrt()[:, None, None]
            live = left.abs().sum(dim=2) > 0
            assert not bool(live.all())  # padding is there
            l_l = torch.einsum("nta,ntb->ab", left, left) / N
            r_r = torch.einsum("ta,tb->ab", right[live], right[live]) / int(live.sum())
            found[name] = (l_l, r_r)
        return found

    def dense(self, name: str, weights: Tensor | None = None) -> Tensor:
        """The matrix [d, d] of the curvature `name`."""
        w = torch.ones(N, dtype=torch.float64) if weights is None else weights
        eye = torch.eye(self.engine.d, dtype=torch.float64)
        if name == "identity":
            return eye
        if name == "ekfac":
            return self._kronecker_matrix(w)
        if name in ("ggn", "hessian"):
            return self._second_order(name, w)
        g = self.matrix(self.batch["target"])
        return g.T @ torch.diag(w) @ g / N

    def _second_order(self, name: str, w: Tensor) -> Tensor:
        if name == "hessian":
            each = self.each(hessian(self.one), self.batch["target"])
            return torch.einsum("n,nab->ab", w, each) / N
        jacobian = self.each(jacrev(self.outputs))
        p = self.each(self.outputs).softmax(dim=1)
        inner = torch.diag_embed(p) - p[:, :, None] * p[:, None]
        return torch.einsum("n,nad,nab,nbe->de", w, jacobian, inner, jacobian) / N

    def _kronecker_matrix(self, w: Tensor) -> Tensor:
        g = self.matrix(self.batch["target"]) * w.sqrt()[:, None]
        blocks = []
        for key, (left, right) in self.kronecker(w).items():
            basis = torch.kron(torch.linalg.eigh(left)[1], torch.linalg.eigh(right)[1])
            turned = g[:, self.slices()[key]] @ basis
            blocks.append(basis @ torch.diag(turned.square().mean(dim=0)) @ basis.T)
        return torch.block_diag(*blocks)
