"""`fudlr push`: the debiased adapter with its model card, to a model hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fudlr.common.terminal import say


def push(
    result: Annotated[Path, typer.Argument(help="A folder that `fudlr debias` wrote.")],
    repository: Annotated[str, typer.Argument(help="NAME or OWNER/NAME on the hub.")],
    *,
    base: Annotated[
        str | None, typer.Option(help="OWNER/NAME of the base model, as others load it.")
    ] = None,
    private: Annotated[bool, typer.Option(help="Make a new repository private.")] = False,
) -> None:
    """Upload the debiased adapter and the card that says what was removed and what changed."""
    from fudlr.output.push import push_adapter

    say(
        f"{result / 'adapter'} is at {push_adapter(result, repository, base=base, private=private)}"
    )
