import pytest
import torch


@pytest.fixture
def one_process(tmp_path):
    """A process group of this process alone, as `torchrun --nproc-per-node 1` makes it."""
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.FileStore(str(tmp_path / "group"), 1), rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()
