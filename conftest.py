import sys

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    """Tests run side by side: threads of their own would only fight over the cores."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _own_metrics_stay_in_their_test():
    """A metric that a test registers would be evaluated in every later test of the process."""
    yield
    if table := sys.modules.get("fudlr.metrics.table"):
        for name in set(table.METRICS) - table.BUILT_IN:
            del table.METRICS[name]
