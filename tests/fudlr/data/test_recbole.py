"""Bad files are refused by name and line; good ones are read as they are meant."""

import zipfile

import numpy as np
import pytest
from fudlr.common.errors import DataError
from fudlr.data import DataWarning, read_data

INTER = """user_id:token\titem_id:token\trating:float\ttimestamp:float
7\ta\t3\t300
7\tb\t4\t100
9\ta\t5\t200
9\tc\t5\t200
9\tb\t1\t200
"""
ITEM = """item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq
a\tThe Film\t1995\tDrama War
b\tThe Film\t1995\tComedy
c\tThe Film\tV\t
"""
USER = """user_id:token\tage:token\tgender:token
7\t24\tM
9\t53\tF
"""


def write(folder, inter=INTER, item=ITEM, user=USER):
    for kind, text in (("inter", inter), ("item", item), ("user", user)):
        if text is not None:
            data = text if isinstance(text, bytes) else text.encode()
            (folder / f"toy.{kind}").write_bytes(data)
    return folder


def test_titles_are_told_apart_and_genres_are_lists(tmp_path):
    items = read_data(write(tmp_path)).items
    assert items["title"].to_list() == ["The Film (1995) [a]", "The Film (1995) [b]", "The Film"]
    assert items["genres"].to_list() == [["Drama", "War"], ["Comedy"], []]
    assert items["year"].to_list() == [1995, 1995, None]


def test_reads_in_place_from_an_archive(tmp_path):
    folder = tmp_path / "files"
    folder.mkdir()
    write(folder)
    archive = tmp_path / "some.whl"
    with zipfile.ZipFile(archive, "w") as target:
        for file in folder.iterdir():
            target.write(file, f"inside/deep/{file.name}")
    from_zip, from_folder = read_data(archive), read_data(folder)
    assert from_zip.items.equals(from_folder.items)
    assert np.array_equal(from_zip.item, from_folder.item)


def test_quotes_are_characters(tmp_path):
    data = read_data(write(tmp_path, item=ITEM.replace("The Film\t", '"Film\t', 1)))
    assert data.items["title"][0] == '"Film (1995)'


def test_repeated_interactions_keep_the_first(tmp_path):
    with pytest.warns(DataWarning, match="1 repeated interactions"):
        data = read_data(write(tmp_path, inter=INTER + "9\ta\t2\t900\n"))
    assert len(data) == 5
    assert data.time.tolist() == [100, 300, 200, 200, 200]


def test_repeated_rows_of_a_side_table_are_read_once(tmp_path):
    with pytest.warns(DataWarning, match="1 repeated rows"):
        data = read_data(write(tmp_path, user=USER + "9\t53\tF\n"))
    assert data.n_users == 2


def test_idle_users_leave_and_idle_items_stay(tmp_path):
    user, item = USER.replace("7\t", "1\t1\tF\n7\t"), ITEM + "z\tOther\t1990\tWar\n"
    with pytest.warns(DataWarning) as caught:
        data = read_data(write(tmp_path, user=user, item=item))
    assert sorted(str(w.message) for w in caught) == [
        "toy: 1 items without interactions stay in the catalogue with popularity 0",
        "toy: 1 users without interactions are left out",
    ]
    assert (data.n_users, data.n_items) == (2, 4)
    assert data.users["user_id"].to_list() == ["7", "9"]
    assert data.user.tolist() == [0, 0, 1, 1, 1]


BAD = {
    "truncated row": ({"inter": INTER[:-5]}, "line 6 has 3 fields, 4 are expected"),
    "blank line": ({"inter": INTER.replace("\n9", "\n\n9", 1)}, "line 4 has 1 fields"),
    "header without types": ({"inter": INTER.replace(":token", "")}, "the field 'user_id'"),
    "unknown type": ({"inter": INTER.replace(":float", ":double")}, "the field 'rating:double'"),
    "NaN time": ({"inter": INTER.replace("300", "nan")}, "line 2 has 'nan' in the number column"),
    "a sequence for a time": (
        {"inter": INTER.replace("timestamp:float", "timestamp:token_seq").replace("300", "May")},
        "line 2 has 'May'",
    ),
    "time out of range": ({"inter": INTER.replace("300", "1e30")}, "a time is out of range"),
    "unknown item": ({"inter": INTER.replace("9\tc", "9\tq")}, r"1 are missing \('q'\)"),
    "foreign items": ({"item": "item_id:token\nx\ny\n"}, "none of the interactions' item_id"),
    "contradicting rows": ({"user": USER + "9\t20\tF\n"}, "more than once and differently"),
    "not UTF-8": ({"item": ITEM.replace("War", "Gu\xe8rre").encode("latin-1")}, "line 2 is not"),
}


@pytest.mark.parametrize(("changed", "message"), BAD.values(), ids=BAD.keys())
def test_bad_content_is_refused(tmp_path, changed, message):
    with pytest.raises(DataError, match=message):
        read_data(write(tmp_path, **changed))


def test_the_only_data_set_is_found_and_of_several_one_is_named(tmp_path):
    assert len(read_data(write(tmp_path))) == 5
    (tmp_path / "other.inter").write_text(INTER)
    with pytest.raises(DataError, match=r"it holds 2\. Name one of other\.inter, toy\.inter"):
        read_data(tmp_path)
    assert read_data(tmp_path / "toy.inter").items["title"][2] == "The Film"


def test_damaged_member_of_an_archive(tmp_path):
    archive = tmp_path / "some.whl"
    with zipfile.ZipFile(archive, "w") as target:
        target.writestr("toy.inter", INTER)
    data = archive.read_bytes()
    archive.write_bytes(data.replace(b"7\ta\t3", b"7\ta\t4"))
    with pytest.raises(DataError, match="or fetch it again"):
        read_data(archive)
