"""What a mask over samples adds up to."""

from __future__ import annotations

import torch
from torch import Tensor

from fudlr_ext.ops._devices import same_device
from fudlr_ext.ops._masks import MaskSums, fake_sums


def mask_sums(influence: Tensor, logits: Tensor, shift: float = 0.0) -> MaskSums:
    """Return sums over the samples of a mask m = σ(z − shift), in one pass that changes nothing.

    Sums are formed in the dtype of logits over 256 samples and in float64 across them, in the
    samples' order whatever the number of threads. Not differentiable.

    Args:
        influence: s [n, k], what the removal of a sample changes every metric by; float32, float64
            or bfloat16, or float16 on a GPU; any strides.
        logits: z [n]; float64 where influence is, else float32; any strides.
        shift: Taken from every logit.

    Raises:
        ValueError: Shapes, dtypes or devices that do not fit.
    """
    same_device("mask_sums", influence=influence, logits=logits)
    return MaskSums.of(torch.ops.fudlr.mask_sums(influence, logits, shift))


torch.library.register_fake("fudlr::mask_sums", fake_sums)
