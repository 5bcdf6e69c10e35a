"""The engine's calls under pytest-benchmark: `make bench`.

Comparisons with other libraries and with the limit: scoring.py and curvature_products.py.
"""

import pytest
import torch
from workload import FACE, Work, peft_step


@pytest.fixture(scope="module")
def work():
    torch.set_num_threads(1)
    return Work(128)


def test_peft_step(benchmark, work):
    benchmark.pedantic(peft_step, (work.model, work.batch), rounds=5, warmup_rounds=1)


@pytest.mark.parametrize("call", ["sample_dots", "fisher_vp", "ggn_vp", "hvp"])
def test_engine(benchmark, work, call):
    given = (*FACE, work.batch, work.vectors)
    found = benchmark.pedantic(getattr(work.engine, call), given, rounds=5, warmup_rounds=1)
    assert found.isfinite().all()
