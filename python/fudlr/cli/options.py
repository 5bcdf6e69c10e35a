"""What the commands' options have in common: their types, and how they become a configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.console import Console

from fudlr.common.errors import UsageError
from fudlr.config import DebiasConfig, RunConfig, load_config, merge

ConfigFile = Annotated[
    Path | None, typer.Option("--config", help="YAML file with options; `--set` overrides it.")
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", help="An option by its dotted name, such as debias.budget=0.05."),
]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads (torch's default).")]
Out = Annotated[Path, typer.Option(help="Folder for the results.")]
Seed = Annotated[int | None, typer.Option(min=0, help="Seed of everything random.")]
RunFolder = Annotated[Path, typer.Argument(help="A folder that `fudlr train` wrote.")]
Rows = Annotated[
    str | None,
    typer.Option(help="Sample gradients: auto, store, memory or stream (docs/requests.md)."),
]
AdapterFolder = Annotated[
    Path | None, typer.Option(help="Another adapter for the same base, instead of the run's own.")
]


def configure(
    path: Path | None, settings: list[str] | None, seed: int | None, options: dict[str, Any]
) -> RunConfig:
    """The configuration file's options, then `--set`, then a command's own; later ones win."""
    config = load_config(path) if path else RunConfig()
    return merge(config, {**parse(settings), **given({"seed": seed, **options})})


def given(options: dict[str, Any]) -> dict[str, Any]:
    """The options that were given at all."""
    return {name: value for name, value in options.items() if value is not None}


def parse(settings: list[str] | None) -> dict[str, Any]:
    """`--set name=value` as a dictionary; values are YAML."""
    parsed = {}
    for setting in settings or []:
        name, sign, value = setting.partition("=")
        if not sign:
            raise UsageError(
                f"--set {setting} was given", "it has no =", "Write it as --set name=value"
            )
        try:
            parsed[name.strip()] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise UsageError(
                f"--set {setting} was given",
                "its value is not YAML",
                "Close brackets and quotes, or quote the value",
            ) from error
    return parsed


def of_section(section: str, settings: list[str] | None) -> dict[str, Any]:
    """`--set section.x=…` of a command that needs one section, by its name without the section."""
    parsed = parse(settings)
    foreign = [name for name in parsed if not name.startswith(f"{section}.")]
    if foreign:
        raise UsageError(
            f"--set {foreign[0]} was given to `fudlr {section}`",
            f"the run is trained already, so that only {section}.* can be set",
            "Train another run with it, or leave it out",
        )
    return {name.removeprefix(f"{section}."): value for name, value in parsed.items()}


def debias_options(
    trained: RunConfig, path: Path | None, settings: list[str] | None, options: dict[str, Any]
) -> DebiasConfig:
    """The run's `debias` section or the file's, then `--set`, then a command's own options."""
    base = trained.model_copy(update={"debias": load_config(path).debias}) if path else trained
    chosen = {**of_section("debias", settings), **given(options)}
    return merge(base, {f"debias.{name}": value for name, value in chosen.items()}).debias


def set_threads(threads: int | None) -> None:
    """Let torch and the engine use so many CPU threads."""
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


def say(text: str) -> None:
    """A line for a person, on stderr: stdout is for what programs read."""
    Console(stderr=True, highlight=False, soft_wrap=True).print(escape(text))


def escape(text: str) -> str:
    """Text that rich prints as it is."""
    return text.replace("[", "\\[")
