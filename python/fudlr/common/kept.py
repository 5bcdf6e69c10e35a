"""Finished work as files named by a digest of all that it depends on: asked for again, it is read.

FOLDER/<key><ending>: safetensors, its facts as JSON in the header. What is there is whole.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fudlr.common.digest import digest
from fudlr.common.errors import DataError
from fudlr.common.files import atomic_file, write_json
from fudlr.common.reading import read_json

AGAIN = "Delete it: it will be made again"


def key_of(*parts: Any) -> str:
    """A short name for the work that depends on `parts`; see `digest`."""
    return digest(*parts)[:24]


def kept_json(path: Path | None, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `make` gives, as JSON in `path` keeps it: read where it is there, else made and kept."""
    if path is not None and path.is_file():
        return read_json(path, dict[str, Any], AGAIN)
    value = make()
    if path is not None:
        write_json(path, value)
    return value


@dataclass(frozen=True)
class Kept:
    """Results in one folder.

    Attributes:
        folder: Made where it is not there.
        ending: Of the files' names.
    """

    folder: Path
    ending: str = ".safetensors"

    def path(self, key: str) -> Path:
        """The file of the work `key`."""
        return self.folder / f"{key}{self.ending}"

    def write(self, key: str, tensors: Mapping[str, Tensor], facts: Any) -> None:
        """Keep a result, whole or not at all, in place of an earlier one."""
        contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
        with atomic_file(self.path(key)) as temporary:
            header = {"facts": json.dumps(facts), "sha256": digest(contiguous)}
            save_file(contiguous, temporary, header)

    def read(self, key: str) -> tuple[dict[str, Tensor], Any] | None:
        """Tensors and facts of the work `key`; None where it is not there.

        Raises:
            DataError: The file is damaged.
        """
        path = self.path(key)
        if not path.is_file():
            return None
        try:
            with safe_open(path, "pt") as file:
                names, header = list(file.keys()), file.metadata()
                tensors = {name: file.get_tensor(name) for name in names}
            if digest(tensors) != header["sha256"]:
                raise ValueError("its numbers are not those that were written")
            return tensors, json.loads(header["facts"])
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"what was kept in {path} was to be read",
                f"the file is damaged ({error})",
                AGAIN,
            ) from error

    def clear(self, key: str) -> None:
        """Forget the work `key`."""
        self.path(key).unlink(missing_ok=True)
