"""`fudlr check`: whether an adapter's figures keep within limits, for continuous integration."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer

from fudlr.cli.options import AdapterFolder, Device, RunFolder, Settings, Threads, open_run
from fudlr.common.errors import UsageError
from fudlr.common.terminal import say

REGRESSED, UNSURE = 3, 4
_LIMIT = re.compile(r"(?P<name>[^=]+)=(?P<sign>[+-]?)(?P<number>\d+(\.\d+)?)(?P<percent>%?)")


@dataclass(frozen=True)
class Limit:
    """`name` is to stay at `limit` or below it, above it where `least`."""

    name: str
    limit: float
    least: bool

    def judge(self, value: float, interval: tuple[float, float] | None) -> int:
        """0 within the limit; REGRESSED beyond it with the whole interval; else UNSURE."""
        low, high = interval or (value, value)
        turn = -1 if self.least else 1
        if turn * value <= turn * self.limit:
            return 0
        return REGRESSED if min(turn * low, turn * high) > turn * self.limit else UNSURE


def parse_limit(text: str, baseline: dict[str, float], least: bool) -> Limit:
    """A limit such as `arp=+2%` (of the baseline), `arp=+0.01` (from it) or `arp=0.3`.

    Raises:
        UsageError: Another form, or a metric that the baseline has not.
    """
    option = f"--{'min' if least else 'max'} {text} was given"
    found = _LIMIT.fullmatch(text.replace(" ", ""))
    if found is None or (found["percent"] and not found["sign"]):
        raise UsageError(
            option, "it is no limit", "Write --max arp=+2%, --max arp=+0.01 or --min ndcg@10=0.1"
        )
    name, number = found["name"], float(found["number"])
    if not found["sign"]:
        return Limit(name, number, least)
    if name not in baseline:
        raise UsageError(
            option, f"the baseline has no {name}", f"Choose one of {', '.join(sorted(baseline))}"
        )
    change = number * (-1 if found["sign"] == "-" else 1)
    start = baseline[name]
    return Limit(name, start + (abs(start) * change / 100 if found["percent"] else change), least)


def check(
    run: RunFolder,
    *,
    baseline: Annotated[Path, typer.Option(help="Figures to keep, of `fudlr evaluate --out`.")],
    most: Annotated[
        list[str] | None,
        typer.Option("--max", help="How far a metric may rise: arp=+2%; repeatable."),
    ] = None,
    least: Annotated[
        list[str] | None,
        typer.Option("--min", help="How far a metric may fall: ndcg@10=-2%; repeatable."),
    ] = None,
    adapter: AdapterFolder = None,
    settings: Settings = None,
    device: Device = None,
    threads: Threads = None,
) -> None:
    """Hold an adapter's figures to limits; prints JSON.

    Exit code 0: all within. 3: a metric is beyond its limit with its whole 95% interval over
    users. 4: one is beyond, and its interval reaches back to the limit.
    """
    from fudlr.common.reading import read_json

    figures = read_json(baseline, dict[str, float], "Write it with `fudlr evaluate RUN --out`")
    limits = [parse_limit(text, figures, least=False) for text in most or ()]
    limits += [parse_limit(text, figures, least=True) for text in least or ()]
    if not limits:
        raise UsageError("figures were to be checked", "no limit is given", "Give --max or --min")

    from fudlr.evaluation import measure
    from fudlr.metrics import bootstrap

    loaded = open_run(run, adapter, settings, None, device=device)
    found = measure(loaded.recommender, loaded.valid, loaded.test)
    unknown = [limit.name for limit in limits if limit.name not in found.metrics]
    if unknown:
        raise UsageError(
            f"{', '.join(unknown)} was to be checked",
            "this run does not measure it",
            f"Choose one of {', '.join(sorted(found.metrics))}",
        )
    drawn = bootstrap({"now": found.statistics}, loaded.test.side, seed=loaded.config.seed)["now"]
    codes, rows = [0], []
    for limit in limits:
        value, interval = found.metrics[limit.name], drawn.get(limit.name)
        codes.append(limit.judge(value, interval and (interval.low, interval.high)))
        outcome = {0: "within", REGRESSED: "beyond", UNSURE: "beyond, perhaps by chance"}[codes[-1]]
        rows.append({**asdict(limit), "value": value, "interval": interval, "outcome": outcome})
        say(f"{limit.name} {value:.4g}, limit {limit.limit:.4g}: {outcome}")
    typer.echo(json.dumps(rows, indent=2))
    raise typer.Exit(REGRESSED if REGRESSED in codes else max(codes))
