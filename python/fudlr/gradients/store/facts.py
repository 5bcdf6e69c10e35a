"""What a request needs beside the rows: Σ g_i in full space, and each sample's loss.

    facts-<writer>-<number>.safetensors: ids int64 [m], losses float32 [m], gradient_sum float64 [d]

Each file holds the running state of one writer up to and with its shard of the same number, and is
written before that shard: a kill in between leaves a file of a shard that is not there, which the
next writer removes. The one before it goes once the shard is in place. So the facts are those of
the finished shards at every moment, and a writer that goes on continues the same sums in the same
order.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fudlr.common.files import atomic_file
from fudlr.gradients.store.errors import StoreError
from fudlr.gradients.store.shards import Shard
from fudlr.gradients.store.spec import StoreSpec, canonical_json, tensor_bytes

NAME = re.compile(r"facts-(?P<writer>[A-Za-z0-9_.]+)-(?P<sequence>\d{6,})\.safetensors")


@dataclass(frozen=True)
class Facts:
    """Σ g_i over some samples, and their losses.

    Attributes:
        ids: The samples `[m]`.
        losses: ℓ_i `[m]`, float32; NaN where it was not recorded.
        gradient_sum: Σ g_i `[d]`, float64, of all LoRA parameters.
    """

    ids: Tensor
    losses: Tensor
    gradient_sum: Tensor

    @classmethod
    def none(cls, d: int) -> Self:
        """Of no sample yet."""
        return cls(
            torch.empty(0, dtype=torch.int64), torch.empty(0), torch.zeros(d, dtype=torch.float64)
        )

    @property
    def mean_gradient(self) -> Tensor:
        """ḡ = (1/m) Σ g_i, `[d]` float32."""
        return (self.gradient_sum / max(len(self.ids), 1)).float()

    def plus(self, other: Facts) -> Facts:
        """Those of both, the other's samples after these."""
        return Facts(
            torch.cat([self.ids, other.ids]),
            torch.cat([self.losses, other.losses]),
            self.gradient_sum + other.gradient_sum,
        )

    def loss_of(self, ids: Tensor) -> Tensor:
        """ℓ_i of the samples `ids` `[m]`, NaN for those that are not among them."""
        out = torch.full((len(ids),), torch.nan)
        if len(self.ids):
            values, order = self.ids.sort()
            place = torch.searchsorted(values, ids).clamp(max=len(values) - 1)
            known = values[place] == ids
            out[known] = self.losses[order[place[known]]]
        return out

    def save(self, folder: Path, spec: StoreSpec, writer: str, sequence: int) -> None:
        """Write them as the facts of `writer` up to shard `sequence`."""
        tensors = self._tensors()
        about = {"spec": spec.to_json(), "writer": writer, "sequence": sequence}
        text = canonical_json({**about, "sha256": _seal(about, tensors)})
        with atomic_file(folder / facts_name(writer, sequence)) as temporary:
            save_file(tensors, temporary, metadata={"facts": text})

    def _tensors(self) -> dict[str, Tensor]:
        return {"ids": self.ids, "losses": self.losses, "gradient_sum": self.gradient_sum}


def facts_name(writer: str, sequence: int) -> str:
    """File name of the facts up to a writer's `sequence`-th shard."""
    return f"facts-{writer}-{sequence:06d}.safetensors"


def load_facts(folder: Path, spec: StoreSpec, shards: Sequence[Shard], ids: Tensor) -> Facts | None:
    """The facts of one writer's `shards`, which hold `ids`; None where it recorded none.

    Raises:
        StoreError: The file is gone, damaged, or of other rows; named.
    """
    if not shards:
        return None
    writer, last = shards[-1].writer, shards[-1].sequence
    path = folder / facts_name(writer, last)
    if not path.exists():
        left = [p.name for p in folder.glob(f"facts-{writer}-*") if NAME.fullmatch(p.name)]
        if left or any(folder.glob("facts-*")):
            raise _refuse(path, "is missing")
        return None
    facts = _read(path, spec, writer, last)
    if not torch.equal(facts.ids, ids):
        raise _refuse(path, "is of other samples than the shards")
    return facts


def remove_stale(folder: Path, writer: str, keep: int | None) -> None:
    """Remove a writer's facts of other shards than number `keep`, the last one in place."""
    for path in folder.glob(f"facts-{writer}-*"):
        found = NAME.fullmatch(path.name)
        if found and found["writer"] == writer and int(found["sequence"]) != keep:
            path.unlink()


def _read(path: Path, spec: StoreSpec, writer: str, sequence: int) -> Facts:
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads(file.metadata()["facts"])
            tensors = {name: file.get_tensor(name) for name in ("ids", "losses", "gradient_sum")}
        seal = about.pop("sha256")
        sound = seal == _seal(about, tensors)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _refuse(path, f"cannot be read ({error})") from error
    if not sound:
        raise _refuse(path, "is corrupted: it does not match its checksum")
    if about != {"spec": spec.to_json(), "writer": writer, "sequence": sequence}:
        raise _refuse(path, "belongs to another store or shard")
    return Facts(**tensors)


def _seal(about: dict[str, object], tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256(canonical_json(about).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor_bytes(tensor))
    return digest.hexdigest()


def _refuse(path: Path, found: str) -> StoreError:
    return StoreError(
        f"the facts of the store {path.parent} were to be read",
        f"{path.name} {found}",
        "Restore it from a copy, or record the store again",
    )
