"""kronfluence 1.0.1: its tracked modules, with query gradients as they are, or by EK-FAC."""

import tempfile
from typing import Any

import torch
from kronfluence.analyzer import Analyzer, prepare_model
from kronfluence.arguments import FactorArguments, ScoreArguments
from kronfluence.module import TrackedModule
from kronfluence.module.tracked_module import ModuleMode
from kronfluence.module.utils import (
    accumulate_iterations,
    prepare_modules,
    set_factors,
    set_mode,
    update_factor_args,
    update_score_args,
)
from kronfluence.score.dot_product import compute_dot_products_with_loader
from kronfluence.task import Task
from kronfluence.utils.state import State
from workload import at_labels, losses

QUERIES = "accumulated_preconditioned_gradient"


def scorer(work, strategy="identity"):
    """Query gradients once; `call` is its own loop over training gradients.

    The factors of a curvature are fitted once, to the batch, and multiply the query gradients.
    """
    names = [name.removesuffix(".weight") for name in work.split(work.vectors)]

    class Labels(Task):
        def compute_train_loss(self, batch, model, sample=False):
            logits = at_labels(model, batch)
            if sample:
                drawn = torch.distributions.Categorical(logits=logits.detach()).sample()
                batch = {"labels": drawn}
            return losses(logits, batch).sum()

        def compute_measurement(self, batch, model):
            return self.compute_train_loss(batch, model)

        def get_influence_tracked_modules(self):
            return names

    class Rows(torch.utils.data.Dataset):
        def __init__(self, batch: dict[str, Any]):
            self.batch = batch

        def __len__(self):
            return len(self.batch["labels"])

        def __getitem__(self, i):
            return {key: value[i] for key, value in self.batch.items()}

    task, factor, score = Labels(), FactorArguments(strategy=strategy), ScoreArguments()
    model = prepare_model(work.copied(), task)
    factors = {}
    if strategy != "identity":
        n = len(work.batch["labels"])
        with tempfile.TemporaryDirectory() as folder:
            analyzer = Analyzer("llama", model, task, cpu=True, disable_tqdm=True,
                                disable_model_save=True, output_dir=folder)  # fmt: skip
            analyzer.fit_all_factors("f", Rows(work.batch), per_device_batch_size=n,
                                     factor_args=factor)  # fmt: skip
            factors = analyzer.load_all_factors("f")
    state = State(cpu=True)
    update_factor_args(model=model, factor_args=factor)
    update_score_args(model=model, score_args=score)
    mode = ModuleMode.PRECONDITION_GRADIENT
    set_mode(model=model, mode=mode, tracked_module_names=names, release_memory=True)
    for name, values in factors.items():
        set_factors(model=model, factor_name=name, factors=values, clone=True)
    prepare_modules(model=model, tracked_module_names=names, device=torch.device("cpu"))
    task.compute_measurement(work.queries, model).backward()
    accumulate_iterations(model=model, tracked_module_names=names)
    tracked_modules = {m.name: m for m in model.modules() if isinstance(m, TrackedModule)}
    stored = {
        f"{name}.weight": module.storage[QUERIES].clone()
        for name, module in tracked_modules.items()
    }
    scaler = torch.amp.GradScaler("cpu", enabled=False)

    def call():
        found = compute_dot_products_with_loader(
            model=model, task=task, state=state, train_loader=_Once(work.batch),
            factor_args=factor, score_args=score, tracked_module_names=names, scaler=scaler,
            disable_tqdm=True,
        )  # fmt: skip
        for name, module in tracked_modules.items():  # its loop drops the queries at its end
            module.storage[QUERIES] = stored[f"{name}.weight"]
        return found["all_modules"].t()

    return call, work.flat(stored)


class _Once:
    """A loader of the one batch."""

    def __init__(self, batch):
        self.batch, self.dataset = batch, batch["labels"]

    def __len__(self):
        return 1

    def __iter__(self):
        yield self.batch
