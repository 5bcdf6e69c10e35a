"""MiniOneRec's files: users' sequences, titles and codes, as its scripts write them."""

import json
from itertools import pairwise

import pytest
from fudlr.common.errors import DataError
from fudlr.data import READERS, read_data
from fudlr.data.codes import item_codes
from fudlr.data.readers import find_form

CODES = {i: f"<a_{i % 2}><b_{i // 2}><c_0>" for i in range(6)}
TITLES = {i: f'A "{i}", red' for i in range(6)}
HEAD = "user_id,history_item_title,item_title,history_item_id,item_id,history_item_sid,item_sid"
SPLITS = {
    "train": [("A1", [0], 1), ("A2", [3, 2], 10), ("A1", [0, 1], 2)],
    "valid": [("A1", [1, 2], 3), ("A2", [2, 10], 0)],
    "test": [("A1", [2, 3], 4), ("A2", [10, 0], 3)],
}
"""User, the latest of the history, item; item 10 is not in the list of items."""


def quoted(text):
    return '"' + text.replace('"', '""') + '"'


def row(user, history, item):
    codes = {**CODES, 10: "<a_1><b_9><c_0>"}
    titles = {**TITLES, 10: "Ten"}
    cells = [user, [titles[i] for i in history], titles[item], history, item,
             [codes[i] for i in history], codes[item]]  # fmt: skip
    return ",".join(quoted(str(cell)) for cell in cells)


def write(folder, name="Tools_5_2016"):
    for part, rows in SPLITS.items():
        (folder / part).mkdir(exist_ok=True)
        text = "\n".join([HEAD, *(row(*each) for each in rows)]) + "\n"
        (folder / part / f"{name}.csv").write_text(text)
    for side in ("info", "index"):
        (folder / side).mkdir(exist_ok=True)
    lines = [f"{CODES[i]}\t{TITLES[i]}\t{i}" for i in CODES]
    (folder / "info" / f"{name}.txt").write_text("\n".join(lines) + "\n")
    about = {str(i): {"title": TITLES[i], "brand": "", "categories": f"c{i}"} for i in CODES}
    (folder / "index" / "Tools.item.json").write_text(json.dumps(about))
    return folder


@pytest.mark.filterwarnings("ignore:Tools")
@pytest.mark.parametrize("named", ["", "train/Tools_5_2016.csv", "test/Tools_5_2016.csv"])
def test_sequences_titles_and_codes_are_read_whole(named, tmp_path):
    path = write(tmp_path) / named
    assert find_form(path) == "minionerec"
    with pytest.warns(UserWarning, match="rows have no times"):
        data = read_data(path)
    items = data.items["item_id"].to_list()
    assert items == ["0", "1", "2", "3", "4", "5", "10"]
    starts = data.user_starts.tolist()
    sequences = [[items[i] for i in data.item[a:b]] for a, b in pairwise(starts)]
    assert sequences == [["0", "1", "2", "3", "4"], ["3", "2", "10", "0"]]
    assert data.items["title"].to_list() == [*TITLES.values(), "Ten"]
    assert data.items["genres"].to_list()[:2] == [["c0"], ["c1"]]
    assert "brand" not in data.items.columns
    assert ["".join(own) for own in item_codes(data.items, None)] == [
        *CODES.values(),
        "<a_1><b_9><c_0>",
    ]


def test_several_data_sets_and_two_indices_are_refused(tmp_path):
    write(tmp_path)
    rows = tmp_path / "valid" / "Tools_5_2016.csv"
    rows.write_text(rows.read_text().replace(CODES[3], "<a_7><b_7><c_7>"))
    with pytest.raises(DataError, match=r"item '3' is <a_1><b_1><c_0> in one row and <a_7>"):
        read_data(tmp_path)
    rows.write_text("\n".join([HEAD, row("A1", [1], 2).replace("[1]", "[1, 2]")]))
    with pytest.raises(DataError, match="line 2 has 2 ids and 1 semantic IDs"):
        read_data(tmp_path)
    write(tmp_path, "Other_5_2016")
    with pytest.raises(DataError, match=r"several data sets.*train/Other_5_2016.csv"):
        read_data(tmp_path)


def test_columns_of_ones_own_make_it_a_table(tmp_path):
    file = write(tmp_path) / "train" / "Tools_5_2016.csv"
    assert find_form(file, {"time": "row"}) == "table"
    assert list(READERS)[-1] == "table", "the last form, which takes what the others leave"
