import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    """Tests run side by side: threads of their own would only fight over the cores."""
    torch.set_num_threads(1)
