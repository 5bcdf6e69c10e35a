"""Residual k-means: the codes of made-up clusters, the same again, and items of one place apart."""

import json

import numpy as np
import polars as pl
import pytest
from fudlr.common.errors import DataError
from fudlr.data import synthetic
from fudlr.data.codes import item_codes, told_apart
from fudlr.data.quantise import kmeans, make_codes, nearest, read_vectors, text_vectors


def clusters():
    """3 × 3 × 2 points: far clusters, near ones within, and a pair at each."""
    centre = np.array([[-9.0, 0.0], [0.0, 9.0], [9.0, 0.0]])
    within = np.array([[0.0, -2.0], [1.5, 1.0], [-1.5, 1.0]])
    pair = np.array([[0.1, 0.0], [-0.1, 0.0]])
    return (centre[:, None, None] + within[:, None] + pair).reshape(-1, 2)


def table(count):
    return pl.DataFrame({"item_id": [f"i{j}" for j in range(count)]})


def test_each_level_tells_what_the_one_before_left():
    points = clusters()
    codes, _ = make_codes(table(18), points, levels=3, size=3, seed=1)
    first = np.array([own[0] for own in codes]).reshape(3, 6)
    assert len(set(first[:, 0])) == 3
    assert (first == first[:, :1]).all()
    assert len(set(codes)) == 18
    assert all(len(own) == 3 for own in codes)
    again, _ = make_codes(table(18), points, levels=3, size=3, seed=1)
    assert codes == again


def test_items_of_one_place_share_the_last_codes_out_and_are_counted():
    points = np.repeat(np.array([[0.0, 0.0], [9.0, 9.0], [0.0, 9.0]]), [3, 1, 1], axis=0)
    codes, moved = make_codes(table(5), points, levels=2, size=3, seed=0)
    assert len({own[0] for own in codes[:3]}) == 1
    assert sorted(own[1] for own in codes[:3]) == ["<b_0>", "<b_1>", "<b_2>"]
    assert len(set(codes)) == 5
    assert moved == 2
    same, moved = make_codes(table(9), np.zeros((9, 2)), levels=2, size=3)
    assert len(set(same)) == 9, "the codes before the last are shared out as well"
    assert moved == 8
    with pytest.raises(DataError, match="2 codes of 3 each tell no more than 9 items apart"):
        make_codes(table(10), np.zeros((10, 2)), levels=2, size=3)


def test_kmeans_finds_the_means_and_the_nearest():
    points = clusters()
    found = kmeans(points, 3, np.random.default_rng(0))
    means = points.reshape(3, 6, 2).mean(1)
    assert np.allclose(found[np.lexsort(found.T[::-1])], means[np.lexsort(means.T[::-1])])
    distance = ((points[:, None] - found) ** 2).sum(2)
    assert (nearest(points, found) == distance.argmin(1)).all()


def test_texts_of_the_same_words_are_nearer_than_others():
    items = pl.DataFrame(
        {
            "item_id": ["1", "2", "3", "4"],
            "title": ["red stone one", "stone red", "blue sea", "sea blue two"],
            "genres": [["a"], ["a"], ["b"], ["b"]],
        }
    )
    vectors = text_vectors(items, np.random.default_rng(0))
    assert np.allclose(vectors[0], vectors[1]), "words of one item alone are left out"
    assert np.linalg.norm(vectors[0] - vectors[2]) > 1
    with pytest.raises(DataError, match="no word stands in two of them"):
        text_vectors(items.select("item_id"), np.random.default_rng(0))


def test_codes_made_of_data_are_codes_that_are_read(tmp_path):
    items = synthetic(30, 40, seed=0).items
    codes, _ = make_codes(items)
    file = tmp_path / "codes.json"
    file.write_text(json.dumps(dict(zip(items["item_id"].to_list(), codes, strict=True))))
    assert item_codes(items, str(file)) == codes


def test_vectors_are_read_by_id_or_in_order_and_refused_by_name(tmp_path):
    items, own = table(3), np.arange(6.0).reshape(3, 2)
    np.save(tmp_path / "v.npy", own)
    frame = pl.DataFrame({"item_id": ["i2", "i0", "i1"], "vector": own[[2, 0, 1]].tolist()})
    frame.write_parquet(tmp_path / "v.parquet")
    frame[:2].write_parquet(tmp_path / "part.parquet")
    for name in ("v.npy", "v.parquet"):
        assert (read_vectors(tmp_path / name, items) == own).all()
    with pytest.raises(DataError, match=r"1 items have none.*i1"):
        read_vectors(tmp_path / "part.parquet", items)
    with pytest.raises(DataError, match="cannot be read"):
        read_vectors(tmp_path / "none.npy", items)
    with pytest.raises(DataError, match=r"vectors are \[3, 2\]"):
        make_codes(table(4), own)


def test_twins_get_the_first_last_code_that_is_free():
    codes = [
        ("<a>", "<c_0>"),
        ("<a>", "<c_0>"),
        ("<a>", "<c_1>"),
        ("<b>", "<c_2>"),
        ("<a>", "<c_0>"),
    ]
    with pytest.raises(DataError, match="behind <a> all 3 last codes are taken"):
        told_apart(codes)
    found, changed = told_apart(codes[:4])
    assert found == [codes[0], ("<a>", "<c_2>"), codes[2], codes[3]]
    assert changed == [1]
