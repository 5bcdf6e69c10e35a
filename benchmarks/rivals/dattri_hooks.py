"""dattri-llm 0.1.0: its hooks and factored gradients, its own choice of how to multiply them."""

from dattri_llm import CaptureCallback, HookManager, HookManagerConfig
from workload import at_labels, losses


def scorer(work):
    """One captured step for the batch; the queries are captured once, and materialised."""
    model = work.copied()
    callback = CaptureCallback()
    config = HookManagerConfig(linear_io=[r"lora_[AB]"])
    manager = HookManager(model, config=config, callbacks=[callback])

    def captured(batch):
        model.zero_grad(set_to_none=True)
        with manager.collect():
            losses(at_labels(model, batch), batch).sum().backward()
        return manager.get_gradient()

    queries = captured(work.queries).materialize()

    def call():
        return captured(work.batch).similarity(queries, reduce="all")

    return call, work.vectors
