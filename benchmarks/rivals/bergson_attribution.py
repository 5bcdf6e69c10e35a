"""bergson 2.5.1's training-data attribution of a run: MAGIC, EK-FAC and TRAK.

Each gives `[n, k]`, how removing a sample changes each of k metrics, from their gradients `[k, d]`
at θ*, and the folder with what it keeps.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchopt
from bergson.build import build
from bergson.cli.trak import trak as run_trak
from bergson.collector.collector import HookCollectorBase, project_global
from bergson.config.config import (
    DataConfig,
    HessianConfig,
    HessianPipelineConfig,
    IndexConfig,
    PreprocessConfig,
    QuerySetConfig,
    ScoreConfig,
    TrakConfig,
)
from bergson.data import load_scores
from bergson.gradients import GradientProcessor
from bergson.hessians.hessian_approximations import approximate_hessians
from bergson.hessians.inversion import invert_psd_matrix
from bergson.hessians.pipeline import hessian_pipeline
from bergson.magic import BackwardState, Trainer
from datasets import Dataset
from fudlr.data.interactions import Samples
from fudlr.run import Run
from fudlr.train.adapter import batch_order
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

EPS_ROOT = 1e-17
"""bergson's own default: √v has no derivative at 0, where B's start puts A's gradients."""

PROJECTED = 2048
"""TRAK's own default number of directions is of that order; of 17,408 parameters."""


class _Loss(nn.Module):
    """One step's loss: (1/b) Σ w_i ℓ_i + (λ/2)‖θ − θ₀‖²."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        self.model, self.recommender = run.recommender.model, run.recommender
        self.samples, self.l2 = run.split.train, run.config.train.l2
        own = [(n, p) for n, p in self.named_parameters() if p.requires_grad]
        self.centre = {name: p.detach().clone() for name, p in own}

    def forward(self, index: Tensor, example_weight: Tensor, **_shape: Any) -> Tensor:
        batch = self.recommender.collate(self.samples.take(index.numpy()))
        losses = self.recommender.loss(self.recommender.forward(self.model, batch), batch)
        mean = (losses * example_weight).sum() / len(index)
        names = dict(self.named_parameters())
        apart = sum((names[name] - own).square().sum() for name, own in self.centre.items())
        return mean + self.l2 / 2 * apart


class _Steps:
    """The run's batches, with a weight for every sample, as bergson's `DataStream` is used."""

    def __init__(self, run: Run) -> None:
        n = len(run.split.train)
        self.order = [index for _, index in batch_order(n, run.config.train)]
        self.weights = nn.Parameter(torch.ones(n))
        self.device = torch.device("cpu")

    requires_grad = property(
        lambda self: self.weights.requires_grad,
        lambda self, value: self.weights.requires_grad_(value),
    )

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, step: int) -> dict[str, Tensor]:
        index = self.order[step]
        # bergson divides a batch's loss by its tokens; with two columns that divisor is 1.
        return {
            "index": index,
            "example_weight": self.weights[index],
            "input_ids": torch.zeros(len(index), 2),
        }


def magic(run: Run, gradients: Tensor, folder: Path) -> tuple[Tensor, Path]:
    """Reverse mode through the whole training; checkpoints of √T of its steps."""
    engine = run.engine
    engine.load(run.start)
    run.recommender.model.set_attn_implementation("eager")  # SDPA has no second derivative here
    loss, steps = _Loss(run), _Steps(run)
    rate, count = run.config.train.learning_rate, len(steps)
    optimiser = torchopt.adam(
        lambda step: rate * 0.5 * (1 + math.cos(math.pi * min(float(step) / count, 1))),
        eps_root=EPS_ROOT,
    )
    known = {id(parameter): name for name, parameter in loss.named_parameters()}
    names = [known[id(parameter)] for parameter in engine.parameters()]
    split = [dict(zip(names, engine.unflatten(g).values(), strict=True)) for g in gradients]
    trainer, state = Trainer.initialize(loss, optimiser)
    shutil.rmtree(folder, ignore_errors=True)
    state = trainer.train(state, steps, inplace=True, save_dir=str(folder))
    ended = torch.cat([state.params[name].detach().flatten() for name in names])
    print(
        "distance from θ*, of the training's way:",
        float((ended - run.theta).norm() / (run.theta - run.start).norm()),
    )
    last, columns = state.to("cpu"), []
    for each in split:
        state.detach_()
        state.copy_(last)
        zeros = [torch.zeros_like(t) for t in state.differentiable_tensors()[len(names) :]]
        backward = BackwardState(
            {name: each[name].clone() for name in state.params},
            zeros,
            torch.zeros_like(steps.weights),
        )
        found = trainer.backward(str(folder), steps, backward, state, cleanup=False, inplace=True)
        columns.append(-found.weight_grads.detach())
    return torch.stack(columns, 1), folder


class _Files:
    """A run as bergson's commands read one: a model with its tokenizer, an adapter, a data set."""

    def __init__(self, run: Run, folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        self.run, self.folder, self.adapter = run, folder, folder / "adapter"
        assert run.folder is not None
        shutil.copytree(run.folder / "base", folder / "base")
        settings = json.loads((folder / "base" / "config.json").read_text())
        # bergson fills no batch beyond the model's longest text. Rotary positions need no end.
        settings["max_position_embeddings"] = 4096
        (folder / "base" / "config.json").write_text(json.dumps(settings))
        words = {str(token): token for token in range(settings["vocab_size"])}
        bare = Tokenizer(WordLevel(words, unk_token="0"))
        PreTrainedTokenizerFast(tokenizer_object=bare, pad_token="0").save_pretrained(self.adapter)
        shutil.copytree(run.folder / "adapter", self.adapter, dirs_exist_ok=True)
        settings = json.loads((self.adapter / "adapter_config.json").read_text())
        settings["base_model_name_or_path"] = str(folder / "base")
        (self.adapter / "adapter_config.json").write_text(json.dumps(settings))
        self.rows(run.split.train).save_to_disk(folder / "train")
        self.rows(run.split.train.take(np.arange(2))).save_to_disk(folder / "two")

    def rows(self, samples: Samples) -> Dataset:
        """History and target as text; the loss is the target's alone."""
        recommender = self.run.recommender
        batch = recommender.collate(samples)
        found: dict[str, list] = {"input_ids": [], "labels": []}
        for ids, real, target in zip(
            batch["input_ids"], batch["attention_mask"], batch["target"], strict=True
        ):
            history = ids[real.bool()].tolist()
            token = int(recommender.item_tokens[int(target)])
            found["input_ids"].append([*history, token])
            found["labels"].append([-100] * len(history) + [token])
        return Dataset.from_dict(found)

    def config(self, data: str, path: str, **options: Any) -> IndexConfig:
        return IndexConfig(
            run_path=str(self.folder / path),
            model=str(self.adapter),
            data=DataConfig(dataset=str(self.folder / data)),
            **options,
        )

    def query(self, **options: Any) -> tuple[Path, dict[str, int]]:
        """An index of two rows, whose gradients others take the place of; and their sizes."""
        build(self.config("two", "query", **options), PreprocessConfig())
        path = self.folder / "query"
        return path, json.loads((path / "info.json").read_text())["grad_sizes"]

    def modules(self, gradients: Tensor, names: Iterable[str]) -> dict[str, Tensor]:
        """Gradients `[k, d]` by bergson's names of the matrices, `[k, size]` each."""
        parts = self.run.engine.unflatten(gradients)
        own = {name.removesuffix(".weight"): each.flatten(1) for name, each in parts.items()}
        found = {}
        for name in names:
            (match,) = [o for o in own if o.endswith(name.replace(".default", ""))]
            found[name] = own[match]
        assert len(found) == len(own)
        return found

    def scores(self) -> Tensor:
        """Of every sample and query, `[n, k]`."""
        found = load_scores(self.folder / "scores")
        return torch.from_numpy(np.array(found[:]).astype(np.float32))


def _write(path: Path, rows: Tensor) -> None:
    np.memmap(path / "gradients.bin", np.float32, "r+", shape=tuple(rows.shape))[:] = rows.numpy()


def ekfac(run: Run, gradients: Tensor, folder: Path) -> tuple[Tensor, Path]:
    """Its Hessian pipeline: Kronecker factors with corrected eigenvalues, its own damping."""
    files = _Files(run, folder)
    path, sizes = files.query()
    _write(path, torch.cat(list(files.modules(gradients, sizes).values()), 1))
    hessian_pipeline(
        files.config("train", "."),
        HessianConfig(method="kfac", ev_correction=True),
        ScoreConfig(),
        PreprocessConfig(),
        HessianPipelineConfig(query=QuerySetConfig(path=str(path))),
    )
    return files.scores(), folder


def trak(run: Run, gradients: Tensor, folder: Path) -> tuple[Tensor, Path]:
    """Its TRAK: projected gradients of the log odds, whitened by their Gram matrix, times 1 − p."""
    files = _Files(run, folder)
    options = {"loss_fn": "log_odds", "projection_target": "global", "projection_dim": PROJECTED}
    # Metric gradients are projected by its own matrix, and whitened as it whitens queries.
    full, sizes = files.query()
    parts = files.modules(gradients, sizes)
    shutil.rmtree(full)
    path, _ = files.query(**options)
    projected = sum(
        project_global(
            HookCollectorBase.projection_identifier(name, "single", None), part, PROJECTED,
            "rademacher", "jl",
        )
        for name, part in parts.items()
    )  # fmt: skip
    gram = files.config("train", "gram", **options)
    approximate_hessians(gram, HessianConfig(method="autocorrelation", use_dataset_labels=True))
    joint = GradientProcessor.load(folder / "gram").hessians["joint"].float()
    _write(path, projected @ invert_psd_matrix(joint, damping_factor=0.0))
    config = TrakConfig(query=QuerySetConfig(path=str(path)))
    shutil.move(folder / "gram", folder / "train_hessian")
    run_trak(files.config("train", ".", **options), replace(config, resume=True))
    return files.scores(), folder
