"""A step of Adam on a mask over samples."""

from __future__ import annotations

import torch
from torch import Tensor

from fudlr_ext.ops._devices import same_device
from fudlr_ext.ops._masks import MaskSums, fake_sums


def mask_step(
    influence: Tensor,
    weights: Tensor,
    logits: Tensor,
    first: Tensor,
    second: Tensor,
    *,
    step: int,
    price: float = 0.0,
    shift: float = 0.0,
    rate: float = 0.3,
    decay_first: float = 0.9,
    decay_second: float = 0.99,
    eps: float = 1e-8,
    limit: float = 20.0,
) -> MaskSums:
    """Take a step of Adam on the logits z of m = σ(z), in place; return the sums at the new z.

    The objective is f(c) + price · Σ m of the metrics' changes c = Σ_i m_i s_i. Its gradient hangs
    on m through ∂f/∂c alone, k numbers, and c at the new z is among what is returned: so one pass
    over the influences a step is enough for any f,

        sums = mask_sums(influence, logits)
        for step in range(1, steps + 1):
            weights = ∂f/∂c at sums.changes
            sums = mask_step(influence, weights, logits, first, second, step=step)

    `shift` moves all logits before the step, as a limit on Σ m may ask for. Sums are formed as in
    `mask_sums`. Not differentiable.

    Args:
        influence: s [n, k]; float32, float64 or bfloat16, or float16 on a GPU; any strides.
        weights: ∂f/∂c [k]; float64 where influence is, else float32.
        logits: z [n], changed in place; of the dtype of weights, without gaps.
        first: Adam's mean of gradients [n], changed in place; zeros before the first step.
        second: Its mean of squares [n], likewise.
        step: The number of this step, from 1 on.
        price: Of a removed sample.
        shift: Taken from every logit at first.
        rate: Learning rate.
        decay_first: Adam's β₁.
        decay_second: Adam's β₂.
        eps: Adam's ε, above 0 in the dtype of logits.
        limit: No logit becomes larger in size: a sample beyond could never change its mind.

    Raises:
        ValueError: Shapes, dtypes, strides, devices or numbers that do not fit.
    """
    same_device(
        "mask_step",
        influence=influence,
        weights=weights,
        logits=logits,
        first=first,
        second=second,
    )
    adam = (rate, decay_first, decay_second, eps, limit)
    return MaskSums.of(
        torch.ops.fudlr.mask_step(
            influence, weights, logits, first, second, step, price, shift, *adam
        )
    )


torch.library.register_fake("fudlr::mask_step", fake_sums)
