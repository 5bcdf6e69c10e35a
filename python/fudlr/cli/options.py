"""What the commands' options have in common: their types, and how they become a configuration."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fudlr.common.errors import UsageError

if TYPE_CHECKING:
    from fudlr.config import DebiasConfig, RunConfig
    from fudlr.run import Run


def _set_threads(threads: int | None) -> int | None:
    """Let torch and the engine use so many CPU threads."""
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    return threads


def at_home(path: Path | None) -> Path | None:
    """A path with its `~`: shells leave that of `--out=~/x` as it is, and a folder of that name
    would be removed with `rm -r ~`."""
    return None if path is None else path.expanduser()


ConfigFile = Annotated[
    Path | None, typer.Option("--config", help="YAML file with options; `--set` overrides it.")
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", help="An option by its dotted name, such as debias.budget=0.05."),
]
Threads = Annotated[
    int | None,
    typer.Option(min=1, callback=_set_threads, help="CPU threads (torch's default)."),
]
Device = Annotated[
    str | None,
    typer.Option(help="Where the model runs: auto, cpu, cuda or cuda:N; short for model.device."),
]
Dtype = Annotated[
    str | None,
    typer.Option(help="Of its weights: auto, float32, bfloat16, float16; short for model.dtype."),
]
Processes = Annotated[
    int | None, typer.Option(min=1, help="Retrainings at a time; one a core by default.")
]
Objective = Annotated[
    str | None, typer.Option(help="A metric or a weighted sum: 'arp + 0.5*hellinger'.")
]
Budget = Annotated[float | None, typer.Option(help="Largest share to remove.")]
Out = Annotated[Path, typer.Option(help="Folder for the results.", callback=at_home)]
Seed = Annotated[int | None, typer.Option(min=0, help="Seed of everything random.")]
RunFolder = Annotated[Path, typer.Argument(help="A folder that `fudlr train` wrote.")]
Rows = Annotated[
    str | None,
    typer.Option(help="Sample gradients: auto, store, memory or stream (docs/requests.md)."),
]
Damping = Annotated[float | None, typer.Option(help="Absolute; chosen where absent.")]
Force = Annotated[bool | None, typer.Option("--force", help="Go on where a diagnostic refuses.")]
StoreOption = Annotated[
    Path | None, typer.Option(help="A store or bergson's index, instead of the run's own store.")
]
AdapterFolder = Annotated[
    Path | None, typer.Option(help="Another adapter for the same base, instead of the run's own.")
]


def configure(
    path: Path | None, settings: list[str] | None, seed: int | None, options: dict[str, Any]
) -> RunConfig:
    """The configuration file's options, then `--set`, then a command's own; later ones win."""
    from fudlr.config import RunConfig, load_config, merge

    config = load_config(path) if path else RunConfig()
    return merge(config, {**parse(settings), **given({"seed": seed, **options})})


def given(options: dict[str, Any]) -> dict[str, Any]:
    """The options that were given at all."""
    return {name: value for name, value in options.items() if value is not None}


def parse(settings: list[str] | None) -> dict[str, Any]:
    """`--set name=value` as a dictionary; values are YAML."""
    from fudlr.config import read_yaml

    parsed = {}
    for setting in settings or []:
        name, sign, value = setting.partition("=")
        if not sign:
            raise UsageError(
                f"--set {setting} was given", "it has no =", "Write it as --set name=value"
            )
        parsed[name.strip()] = read_yaml(value, f"--set {setting} was given")
    return parsed


def open_run(
    run: Path,
    adapter: Path | None,
    settings: list[str] | None,
    section: str | None = "debias",
    *,
    device: str | None = None,
    config: Path | None = None,
) -> Run:
    """The run with `--set` over its options, on `device` or where the file `config` says.

    What its training depends on is refused, and what the command does not use: of `debias` and
    `record` it follows `section` alone.
    """
    from fudlr.config import load_config
    from fudlr.run import load_run

    parsed = parse(settings)
    for name in parsed:
        if name.partition(".")[0] in {"debias", "record"} - {section}:
            raise UsageError(
                f"--set {name} was given", "this command does not use it", "Leave it out"
            )
    asked = {"model.device": load_config(config).model.device} if config else {}
    return load_run(run, adapter, {**asked, **parsed, **given({"model.device": device})})


def of_section(section: str, settings: list[str] | None) -> dict[str, Any]:
    """`--set section.x=…` by its name without the section; `open_run` judges the others."""
    parsed, start = parse(settings), f"{section}."
    return {name.removeprefix(start): v for name, v in parsed.items() if name.startswith(start)}


def debias_options(
    trained: RunConfig, path: Path | None, settings: list[str] | None, options: dict[str, Any]
) -> DebiasConfig:
    """The run's `debias` section or the file's, then `--set`, then a command's own options."""
    from fudlr.config import load_config, merge

    base = trained.model_copy(update={"debias": load_config(path).debias}) if path else trained
    chosen = {**of_section("debias", settings), **given(options)}
    return merge(base, {f"debias.{name}": value for name, value in chosen.items()}).debias
