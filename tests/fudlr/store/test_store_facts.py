"""Facts, projection and audit beside the rows: whole after a kill, refused when bad."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from fudlr.gradients.store import Store, StoreError, StoreWriter, merge, random_projection
from fudlr.gradients.store import writer as writer_module
from fudlr.gradients.store.audit import AUDIT, save_audit
from fudlr.gradients.store.facts import facts_name
from fudlr.gradients.store.writer import PROJECTION
from store_cases import BINDING, random_rows

SHAPES = {"m.lora_B.weight": (12, 2)}
ROWS = random_rows(20, 8)
SUMS = torch.arange(20.0)[:, None] * torch.ones(24)


def write(folder, ids, writer="0", shard_rows=8):
    projection = random_projection(SHAPES, 4)
    with StoreWriter(
        folder, BINDING, 8, "float32", writer=writer, shard_rows=shard_rows,
        projection=projection, facts=24,
    ) as store:  # fmt: skip
        for part in store.missing(ids).split(4):
            store.append(part, ROWS[part], gradient_sum=SUMS[part].sum(0), losses=part.float() / 2)
    return Store.open(folder)


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "s", torch.arange(20))
    return tmp_path / "s"


LAST = facts_name("0", 2)


def test_sums_and_losses_are_those_of_the_rows(folder):
    facts = Store.open(folder).facts()
    torch.testing.assert_close(facts.mean_gradient, SUMS.mean(0))
    ask = torch.tensor([7, 3, 99])
    torch.testing.assert_close(
        facts.loss_of(ask), torch.tensor([3.5, 1.5, torch.nan]), equal_nan=True
    )
    assert [path.name for path in folder.glob("facts-*")] == [LAST]


def test_a_kill_between_the_facts_and_their_shard_loses_nothing(folder, tmp_path):
    # As the writer leaves it: the facts up to shard 1 and 2 are there, shard 2 is not.
    write(tmp_path / "two", torch.arange(16))
    whole = Store.open(folder)
    two = tmp_path / "two"
    shutil.copy(folder / LAST, two / LAST)
    facts = Store.open(two).facts()
    torch.testing.assert_close(facts.mean_gradient, SUMS[:16].mean(0))
    resumed = write(two, torch.arange(20))
    assert resumed.content_sha256() == whole.content_sha256()
    assert torch.equal(resumed.facts().gradient_sum, whole.facts().gradient_sum)
    assert [path.name for path in two.glob("facts-*")] == [LAST]


@pytest.mark.parametrize(
    "killed", [("write_shard", False, 8), ("write_shard", True, 16), ("remove_stale", False, 16)]
)
def test_a_writer_that_ends_between_facts_and_shard_can_be_gone_on_with(
    folder, tmp_path, monkeypatch, killed
):
    at, whole_first, stored = killed
    done, calls = getattr(writer_module, at), []

    def end(*given, **named):
        calls.append(1)
        # One call of remove_stale is the opening's; then there is one a shard.
        last = len(calls) == 2 + (at == "remove_stale")
        found = done(*given, **named) if whole_first or not last else None
        if last:
            raise OSError("killed")
        return found

    monkeypatch.setattr(writer_module, at, end)
    with pytest.raises(StoreError, match="killed"):
        write(tmp_path / "s2", torch.arange(20))
    monkeypatch.setattr(writer_module, at, done)
    left = Store.open(tmp_path / "s2")
    assert left.n == stored
    torch.testing.assert_close(left.facts().mean_gradient, SUMS[: left.n].mean(0))
    resumed, whole = write(tmp_path / "s2", torch.arange(20)), Store.open(folder)
    assert resumed.content_sha256() == whole.content_sha256()
    assert torch.equal(resumed.facts().gradient_sum, whole.facts().gradient_sum)


def test_facts_are_of_whole_shards_where_batches_do_not_fill_them(tmp_path):
    store = StoreWriter(tmp_path, BINDING, 8, "float32", shard_rows=6, facts=24)
    for part in torch.arange(8).split(4):
        store.append(part, ROWS[part], gradient_sum=SUMS[part].sum(0))
    store.rest()  # the second batch is in no shard
    store.abandon()
    found = Store.open(tmp_path)
    assert found.ids.tolist() == [0, 1, 2, 3]
    torch.testing.assert_close(found.facts().mean_gradient, SUMS[:4].mean(0))


def test_a_kill_between_projection_and_manifest(tmp_path):
    folder = tmp_path / "s"
    folder.mkdir()
    random_projection(SHAPES, 4).save(folder / PROJECTION)
    saved = (folder / PROJECTION).read_bytes()
    store = write(folder, torch.arange(20))
    assert (folder / PROJECTION).read_bytes() == saved
    assert store.projection().dim == 8


def test_merged_stores_add_their_facts(tmp_path):
    write(tmp_path / "a", torch.arange(9))
    write(tmp_path / "b", torch.arange(9, 20))
    facts = merge([tmp_path / "a", tmp_path / "b"], tmp_path / "m").facts()
    torch.testing.assert_close(facts.mean_gradient, SUMS.mean(0))


@pytest.mark.parametrize("place", [0, 9, 60, 400, -1, -100])
def test_changed_or_cut_facts_are_refused_by_name(folder, place):
    raw = bytearray((folder / LAST).read_bytes())
    raw[place] ^= 1
    (folder / LAST).write_bytes(raw)
    with pytest.raises(StoreError, match=LAST):
        Store.open(folder, check="full")
    (folder / LAST).write_bytes(raw[:-3])
    with pytest.raises(StoreError, match=f"{LAST} cannot be read"):
        Store.open(folder).facts()


def test_foreign_facts_are_refused(folder, tmp_path):
    write(tmp_path / "o", torch.arange(19, -1, -1))
    shutil.copy(tmp_path / "o" / LAST, folder / LAST)
    with pytest.raises(StoreError, match=f"{LAST} is of other samples"):
        Store.open(folder).facts()


def test_a_foreign_or_damaged_projection_and_audit_are_refused(folder):
    save_audit(folder, BINDING, {"energy": 0.5})
    assert Store.open(folder).audit() == {"energy": 0.5}
    text = json.loads((folder / AUDIT).read_text())
    text["figures"]["energy"] = 0.9
    (folder / AUDIT).write_text(json.dumps(text))
    with pytest.raises(StoreError, match="does not match its checksum"):
        Store.open(folder).audit()
    random_projection(SHAPES, 4, seed=1).save(folder / PROJECTION)
    with pytest.raises(StoreError, match="is not the projection"):
        Store.open(folder).projection()
