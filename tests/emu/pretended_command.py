"""`fudlr` on a GPU that is none: `python pretended_command.py debias RUN --device cuda …`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import pretended

from fudlr_ext import _C, unchanged


@contextmanager
def machine() -> Iterator[pretended.Device]:
    """A machine with a GPU that is none, and a library with kernels for it: the CPU's own."""
    unchanged.PLAIN.add(pretended.Pretended)
    with (
        patch.object(_C, "devices", lambda: ["cpu", "cuda"]),
        patch.object(_C, "cuda_architectures", lambda: ["sm_90", "compute_80"], create=True),
        pretended.device(emulated=False) as device,
    ):
        yield device


if __name__ == "__main__":
    from fudlr import cli

    with machine():
        cli.main()
