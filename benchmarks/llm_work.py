"""Where the real run is made, with which options, and what of it is there (see `llm.py`)."""

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import polars as pl
import smollm
import torch
from fudlr import load_run
from fudlr.run import Run
from kept import keep_evaluations

OPTIONS = {
    "data.source": "ml-100k", "data.window": 10, "data.train_samples": 1024,
    "data.prompt_users": 200, "recommender.kind": "grounded", "recommender.template": "bigrec",
    "recommender.max_tokens": 400, "lora.rank": 8, "lora.targets": ["q_proj", "v_proj"],
    "train.epochs": 3, "train.batch": 16, "train.learning_rate": 1e-3, "train.checkpoint": 4,
    "train.through": "engine",
    "record.ride": False, "record.batch": 8, "record.fit_samples": 64, "record.audit": 16,
    "debias.batch": 8, "debias.curve": [], "debias.heldout": False, "debias.force": True,
}  # fmt: skip
"""λ, its damping and the mask's rule are the defaults. A signature of failure is written down and
not obeyed (debias.force): what the run gives is to be seen, whatever it is."""
SMALL = {
    "data.train_samples": 16, "data.prompt_users": 4, "train.epochs": 1, "train.batch": 8,
    "train.checkpoint": 1, "debias.lambda_acc": 0.0, "record.fit_samples": 8, "record.audit": 4,
}  # fmt: skip
TITLES = {"recommender.kind": "titles", "data.candidates": 100, "data.prompt_users": 50}
SMALL_TITLES = {**TITLES, "data.candidates": 10, "data.prompt_users": 2}
OBJECTIVES = {"arp": "arp", "gender": "hellinger"}
WAYS: dict[str, tuple[dict, dict]] = {
    "store": ({}, {}),
    "adam": ({}, {"metric": "adam"}),
    "replay": ({"record.trajectory": "float32"}, {"update": "replay"}),
}
"""What each way adds to the options of the training, and to those of a request."""
USUAL = "replay"
SEEDS = (1,)
"""Of the stage `seeds-arp`; the run's own is 0."""


@dataclass
class Work:
    """Where a run is made, whether it is the small one, and how samples are taken out."""

    out: Path
    small: bool
    way: str = USUAL

    @property
    def objectives(self) -> dict[str, str]:
        """Name and objective of each request; the small run makes one."""
        return {"arp": OBJECTIVES["arp"]} if self.small else OBJECTIVES

    @property
    def run(self) -> Path:
        return self.out / "run"

    def base(self) -> Path:
        return smollm.convert(2 if self.small else None)

    @cached_property
    def loaded(self) -> Run:
        """The run, loaded once: its items' embeddings, which no adapter changes, are kept too.

        What is measured of an adapter is on disk, for later stages and after a kill.
        """
        return keep_evaluations(load_run(self.run), self.out / "evaluations")


def given_work(description: str, arguments: list[str] | None) -> tuple[Work, str]:
    """The run that a script beside `llm.py` was started for, and what its files' names end with.

    Raises:
        SystemExit: The request for ARP is not verified there.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--small", action="store_true")
    given = parser.parse_args(arguments)
    work = Work(given.out or Path("out/llm-small" if given.small else "out/llm"), given.small)
    if not verified("arp")(work):
        parser.error(
            f"{work.out} has no verified request for ARP. Run the stages before: "
            "python benchmarks/llm.py"
        )
    return work, "_small" if given.small else ""


def load_mask(folder: Path) -> torch.Tensor:
    return torch.from_numpy(pl.read_parquet(folder / "mask.parquet")["mask"].to_numpy().copy())


def verified_requests(work: Work) -> list[str]:
    return [name for name in work.objectives if verified(name)(work)]


def adapters(work: Work) -> dict[str, Path]:
    found = {"trained": work.run / "adapter"}
    for name in verified_requests(work):
        found |= {f"{name} debiased": work.out / name / "adapter",
                  f"{name} retrained": work.out / name / "retrained"}  # fmt: skip
    return found


def titles_file(work: Work, adapter: str) -> Path:
    return work.out / "titles" / f"{adapter.replace(' ', '-')}.json"


def changes_file(work: Work) -> Path:
    """Intervals of each adapter's changes of the titles' figures."""
    return work.out / "titles-changes.json"


def all_titles(work: Work) -> bool:
    """Whether every adapter's titles were scored, and their changes have intervals."""
    return changes_file(work).is_file() and all(
        titles_file(work, name).is_file() for name in adapters(work)
    )


def exists(*parts: str) -> Callable[[Work], bool]:
    return lambda work: (work.out / Path(*parts)).exists()


def summary(work: Work, name: str) -> dict:
    """What is known of a request; nothing where it was not made."""
    path = work.out / name / "summary.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def verified(name: str) -> Callable[[Work], bool]:
    return lambda work: "retrained" in summary(work, name)


def seeded(name: str) -> Callable[[Work], bool]:
    """Whether the samples of a request were left out at other seeds too."""
    return lambda work: "seeds" in summary(work, name).get("verification", {})


def made_again(name: str) -> Callable[[Work], bool]:
    """Whether the samples of a request were taken out again."""
    return exists(name, "again", "figures.json")
