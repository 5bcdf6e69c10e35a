from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock  # torch's own dependency


@pytest.fixture(scope="session")
def once(tmp_path_factory, worker_id) -> Callable[[str, Callable[[Path], object]], Path]:
    """Make a folder once for all processes that test side by side: `once(name, make) -> folder`."""
    root = tmp_path_factory.getbasetemp()
    shared = root if worker_id == "master" else root.parent

    def folder_of(name: str, make: Callable[[Path], object]) -> Path:
        folder = shared / "once" / name / "made"
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name("lock")):
            if not folder.exists():
                make(folder)
        return folder

    return folder_of
