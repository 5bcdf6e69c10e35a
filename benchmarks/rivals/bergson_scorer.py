"""bergson 2.5.1: its hooks with a scorer that takes each module's gradients as they come."""

import torch
from bergson.collector.in_memory_collector import InMemoryCollector
from bergson.config.config import IndexConfig
from bergson.gradients import GradientProcessor
from bergson.score.score_writer import InMemorySequenceScoreWriter
from bergson.score.scorer import Scorer
from datasets import Dataset
from workload import at_labels, losses


def scorer(work):
    """Its in-memory collector, on the LoRA modules, no projection."""
    model, vectors = work.copied(), work.split(work.vectors)
    queries = {name.removesuffix(".weight"): v.flatten(1) for name, v in vectors.items()}
    n, k = len(work.batch["labels"]), len(work.vectors)
    data = Dataset.from_dict({"input_ids": work.batch["input_ids"].tolist()})
    writer = InMemorySequenceScoreWriter(n, k)
    device = torch.device("cpu")
    collector = InMemoryCollector(
        model=model,
        target_modules=set(queries),
        processor=GradientProcessor(),
        data=data,
        cfg=IndexConfig(run_path="unused"),
        scorer=Scorer(queries, list(queries), writer, device, torch.float32),
    )
    rows = list(range(n))

    def call():
        model.zero_grad(set_to_none=True)
        with collector.with_batch():
            found = losses(at_labels(model, work.batch), work.batch)
            found.sum().backward()
            collector.process_batch(rows, losses=found)
        return writer.scores.clone()

    return call, work.vectors
