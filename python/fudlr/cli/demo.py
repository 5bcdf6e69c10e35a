"""`fudlr demo`: MovieLens-100k, whole."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fudlr.cli.options import ConfigFile, Out, Seed, Settings, Threads, configure, set_threads
from fudlr.common.terminal import say


def demo(
    *,
    out: Out = Path("out/demo"),
    small: Annotated[bool, typer.Option(help="A minute's version, as a check.")] = False,
    seed: Seed = None,
    config: ConfigFile = None,
    settings: Settings = None,
    threads: Threads = None,
) -> None:
    """MovieLens-100k, whole: train, debias for ARP and for Hellinger, verify, report."""
    from fudlr.demo import run_demo

    set_threads(threads)
    reports = run_demo(configure(config, settings, seed, {}), out, small=small)
    say("The reports: " + ", ".join(map(str, reports)))
