"""Rows of gradients: stored equals recomputed equals dense."""

import gc
import weakref

import pytest
import torch
from bed import N
from fudlr.common.batches import Batches
from fudlr.common.errors import DataError, NumericalError, UsageError
from fudlr.gradients import MemoryRows, StreamedRows, record_rows


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def uneven(bed):
    """Batches of unequal size, so that a mean of batch means would be wrong."""
    for index in torch.arange(N).split([500, 3, 97, 600]):
        yield bed.recommender.collate(bed.train.take(index))


@pytest.fixture(scope="module")
def face(bed):
    return bed.engine, bed.recommender.forward, bed.recommender.loss


@pytest.fixture(scope="module")
def streamed(bed, face):
    return StreamedRows(*face, lambda: uneven(bed))


@pytest.fixture(scope="module")
def recorded(bed, face):
    return record_rows(*face, lambda: uneven(bed))


def test_recorded_rows_are_the_samples_gradients(bed, recorded):
    assert (recorded.n, recorded.d) == bed.matrix.shape
    assert torch.allclose(recorded.matrix, bed.matrix, atol=1e-12)


def test_products_agree_with_dense(bed, streamed, recorded):
    g, d = bed.matrix, bed.engine.d
    v, weights, few = normal(3, d), normal(2, N, seed=1), normal(N, seed=2).abs()
    for rows in (recorded, streamed):
        assert (rows.n, rows.d) == (N, d)
        assert torch.allclose(rows.dots(v), g @ v.T, atol=1e-10)
        assert torch.allclose(rows.sum(weights), weights @ g, atol=1e-10)
        assert torch.allclose(rows.gram_product(v), v @ g.T @ g / N, atol=1e-10)
        weighted = v @ g.T @ torch.diag(few) @ g / N
        assert torch.allclose(rows.gram_product(v, few), weighted, atol=1e-10)


def test_streaming_holds_one_batch_at_a_time(bed, face):
    alive = []

    def batches():
        for batch in uneven(bed):
            gc.collect()
            # The generator's own batch, and the last one in the loop's hands.
            assert sum(reference() is not None for reference in alive) <= 1
            x = batch["x"].clone()
            alive.append(weakref.ref(x))
            yield {"x": x, "target": batch["target"]}
            del x, batch

    rows = StreamedRows(*face, Batches(batches, [500, 3, 97, 600]))
    rows.dots(normal(2, rows.d))
    assert len(alive) == 4


def test_batches_without_weight_are_not_computed(bed, face):
    engine, forward, loss = face
    seen = []

    def counted(model, batch):
        seen.append(len(batch["x"]))
        return forward(model, batch)

    rows = StreamedRows(engine, counted, loss, lambda: uneven(bed))
    weights = torch.zeros(1, N, dtype=torch.float64)
    weights[0, 501] = 1
    assert torch.allclose(rows.sum(weights)[0], bed.matrix[501], atol=1e-12)
    assert seen == [3]


def test_bad_rows():
    g = normal(6, 4)
    g[4, 1] = torch.inf
    with pytest.raises(NumericalError, match="sample 4"):
        MemoryRows(g)
    for wrong in (g[0], torch.empty(0, 4), torch.ones(2, 2, dtype=torch.int64)):
        with pytest.raises(DataError):
            MemoryRows(wrong)
    rows = MemoryRows(normal(6, 4))
    with pytest.raises(DataError, match="d = 4"):
        rows.dots(normal(2, 5))
    with pytest.raises(DataError, match="one row"):
        rows.dots(normal(4))
    with pytest.raises(DataError, match="n = 6"):
        rows.sum(normal(1, 4))


def test_recording_names_the_broken_sample(bed, face):
    engine, forward, loss = face

    class Broken:
        def sample_grads(self, *face_and_batch):
            rows = engine.sample_grads(*face_and_batch)
            if len(rows) == 97:
                rows[4] = torch.nan
            return rows

    with pytest.raises(NumericalError, match="sample 507"):
        record_rows(Broken(), forward, loss, lambda: uneven(bed))


def test_bad_batches(bed, face):
    with pytest.raises(UsageError, match="3 were expected"):
        StreamedRows(*face, Batches(lambda: uneven(bed), [500, 3, 97])).dots(
            normal(1, bed.engine.d)
        )
    with pytest.raises(DataError, match="501 samples"):
        record_rows(*face, Batches(lambda: uneven(bed), [501, 2, 97, 600]))
    with pytest.raises(UsageError, match="sizes"):
        _ = Batches(["no tensor"]).n
    with pytest.raises(DataError, match="n ≥ 1"):
        record_rows(*face, [])
    used_up = uneven(bed)
    rows = StreamedRows(*face, Batches(lambda: used_up, [500, 3, 97, 600]))
    rows.dots(normal(1, rows.d))
    with pytest.raises(UsageError, match="fresh iterator"):
        rows.dots(normal(1, rows.d))


class Linear:
    """An engine whose rows are the batch itself."""

    d = 3
    device = torch.device("cpu")

    def sample_dots(self, forward, loss, batch, vectors):
        return batch @ vectors.T


def test_a_shuffled_loader_is_refused_at_its_second_pass():
    """The rows of two passes would differ, silently."""
    data, v = normal(20, 3), normal(1, 3, seed=1)
    shuffled = torch.utils.data.DataLoader(data, batch_size=4, shuffle=True)
    with pytest.raises(UsageError, match=r"another batch .*shuffle=False"):
        StreamedRows(Linear(), None, None, shuffled).dots(v)
    rows = StreamedRows(Linear(), None, None, torch.utils.data.DataLoader(data, 4))
    assert torch.equal(rows.dots(v), data @ v.T)
    assert torch.equal(rows.dots(v), data @ v.T)
