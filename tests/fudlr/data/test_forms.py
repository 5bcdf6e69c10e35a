"""The same data written in each form reads as the same interactions."""

import importlib.util
import json
import zipfile

import forms
import numpy as np
import polars as pl
import pytest
from fudlr.common.errors import DataError, FudlrError, UsageError
from fudlr.config import DataConfig
from fudlr.data import DataWarning, read_data, user_groups
from fudlr.data.readers import find_form
from fudlr.run import read_data as read_configured

FORM = {"recbole": "recbole", "dat": "movielens-dat", "u": "movielens-u"}


@pytest.fixture(scope="module")
def truth(tmp_path_factory):
    return read_data(forms.write_recbole(tmp_path_factory.mktemp("truth")))


def assert_same(data, truth):
    for name in ("user", "item", "time"):
        assert np.array_equal(getattr(data, name), getattr(truth, name)), name
    assert data.users.equals(truth.users.select(data.users.columns))
    assert sorted(data.users.columns) == sorted(truth.users.columns)
    assert data.items.equals(truth.items.select(data.items.columns))
    assert sorted(data.items.columns) == sorted(truth.items.columns)


@pytest.mark.parametrize("form", forms.TABLES)
def test_every_form_reads_as_the_same(form, tmp_path, truth):
    folder = forms.TABLES[form](tmp_path)
    assert find_form(folder) == FORM.get(form, "table")
    assert_same(read_data(folder), truth)
    assert truth.items["title"][3] == "Twins (1990) [4]"  # the twins are told apart in each


@pytest.mark.parametrize("form", forms.TABLES)
def test_side_tables_may_be_missing_in_every_form(form, tmp_path):
    folder = forms.TABLES[form](tmp_path)
    main = ("toy.inter", "ratings.dat", "u.data")
    for file in folder.iterdir():
        if file.name not in main and file.stem != "interactions":
            file.unlink()
    data = read_data(folder)
    assert (data.n_users, data.n_items, len(data)) == (6, 11, 48)


@pytest.mark.parametrize("form", ["csv", "parquet", "jsonl"])
def test_a_mapping_names_the_columns(form, tmp_path, truth):
    folder = forms.TABLES[form](tmp_path)
    suffix = f".{form}"
    for file, names in (
        ("interactions", {"user_id": "who", "item_id": "what", "timestamp": "when"}),
        ("users", {"user_id": "who"}),
        ("items", {"item_id": "what", "title": "label"}),
    ):
        path = folder / f"{file}{suffix}"
        if form == "parquet":
            pl.read_parquet(path).rename(names).write_parquet(path)
            continue
        text = path.read_text(encoding="utf-8")
        for old, new in names.items():
            text = text.replace(old, new, 1) if form == "csv" else text.replace(old, new)
        path.write_text(text, encoding="utf-8")
    columns = {"user": "who", "item": "what", "time": "when", "title": "label"}
    with pytest.raises(DataError, match="no column is known to be the `user`; there is 'who'"):
        read_data(folder)
    assert_same(read_data(folder, columns=columns), truth)
    configured = read_configured(DataConfig(source=str(folder), columns=columns))
    assert_same(configured, truth)


def test_dates_are_times(tmp_path):
    (tmp_path / "a.csv").write_text(
        "user,item,date\n1,a,2020-01-02\n1,b,2020-01-01T12:00:00Z\n1,c,2020-01-01 15:30:00+02:00\n"
    )
    data = read_data(tmp_path / "a.csv")
    assert data.time.tolist() == [1577880000, 1577885400, 1577923200]
    stamps = (data.time[[2, 0, 1]] * 1_000_000).astype("datetime64[us]")
    frame = pl.read_csv(tmp_path / "a.csv").with_columns(date=pl.Series(stamps))
    frame.write_parquet(tmp_path / "b.parquet")
    assert read_data(tmp_path / "b.parquet").time.tolist() == data.time.tolist()


def test_a_panic_of_the_parquet_reader_is_an_error_in_words(tmp_path, monkeypatch):
    def panic(*_, **__):
        raise pl.exceptions.PanicException("index out of bounds")

    folder = forms.write_parquet(tmp_path)
    monkeypatch.setattr(pl, "read_parquet", panic)
    with pytest.raises(DataError, match="index out of bounds"):
        read_data(folder)


def test_instructions_become_a_user_a_row(tmp_path):
    folder = forms.write_bigrec(tmp_path)
    with pytest.warns(DataWarning, match="metrics between groups of users are impossible"):
        data = read_data(folder)
    assert find_form(folder) == "instructions"
    assert data.users["user_id"].to_list() == [f"train row {n}" for n in range(1, 7)]
    titles = {i: f"{t} ({y})" for i, t, y, _ in forms.ITEMS}
    chosen = [titles[i] for u, i, _ in forms.EVENTS if u == 2]
    mine = data.items["item_id"].to_numpy()[data.item[data.user == 1]].tolist()
    assert mine == chosen
    with pytest.raises(UsageError):
        user_groups(data, "gender")


def test_disliked_titles_are_in_the_catalogue_alone(tmp_path):
    with pytest.warns(DataWarning):
        data = read_data(forms.write_tallrec(tmp_path))
    liked = ["Heat (1995)", "Rock, The (1996)", "Babe (1995)", 'A "quoted" one', "Seven (1995)"]
    names = data.items["item_id"].to_numpy()
    assert names[data.item[data.user == 0]].tolist() == [*liked, "Fargo (1996)"]
    assert names[data.item[data.user == 1]].tolist() == liked
    assert "Othello (1995)" in names


def test_further_fields_of_a_row_are_columns_of_its_user(tmp_path):
    rows = [
        row | {"gender": "MF"[n % 2], "user_id": n} for n, row in enumerate(forms.bigrec_rows())
    ]
    (tmp_path / "train.json").write_text(json.dumps(rows))
    with pytest.warns(DataWarning):
        data = read_data(tmp_path)
    assert user_groups(data, "gender", min_size=1)[1] == ["F", "M"]
    assert data.users["source_user_id"].to_list() == list("012345")


def test_rows_of_no_known_form_are_counted_and_none_is_refused(tmp_path):
    rows = forms.bigrec_rows()
    rows[2]["input"] = "Tell me a story."
    (tmp_path / "train.json").write_text(json.dumps(rows))
    with pytest.warns(DataWarning, match=r"1 rows are of no known form .*\(train row 3\)"):
        assert read_data(tmp_path).n_users == 5
    (tmp_path / "train.json").write_text(json.dumps([rows[2]]))
    with pytest.raises(DataError, match="the titles of no row could be told"):
        read_data(tmp_path)


@pytest.mark.skipif(
    importlib.util.find_spec("datasets") is None, reason="Hugging Face datasets is not installed"
)
def test_saved_datasets_read_as_the_same(tmp_path, truth):
    import datasets

    parts = zip(("interactions", "users", "items"), forms.frames(), strict=True)
    tables = {name: datasets.Dataset.from_list(frame.to_dicts()) for name, frame in parts}
    datasets.DatasetDict(tables).save_to_disk(str(tmp_path / "both"))
    assert_same(read_data(tmp_path / "both"), truth)
    tables["interactions"].save_to_disk(str(tmp_path / "one"))
    assert len(read_data(tmp_path / "one")) == len(truth)
    datasets.Dataset.from_list(forms.bigrec_rows()).save_to_disk(str(tmp_path / "prompts"))
    with pytest.warns(DataWarning, match="instruction data name no user"):
        assert read_data(tmp_path / "prompts").n_users == 6


def _csv(folder, text, name="a.csv"):
    (folder / name).write_text(text)
    return folder / name


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("user,item,time\n1,a\n", "line 2 has 2 fields, 3 are expected"),
        ('user,item,time\n1,"a",5\n1,"b"\n', "line 3 has 2 fields, 3 are expected"),
        ("user,item,time\n", "a header and no rows"),
        ("", "it is empty"),
        ("\ufeff \n", "it is empty"),
        ("\nuser,item,time\n1,a,5\n", "its first line is empty"),
        ("user,user,item,time\n1,1,a,5\n", "the name 'user' twice"),
        ("user,User,item,time\n1,1,a,5\n", "could each be the `user`"),
        ("user,item,time\n,a,5\n", "line 2 has an empty `user`"),
        ("user,item,time\n1,a,nan\n", "line 2 has 'nan'"),
        ("user,item,time\n1,a,\n", "has no time"),
        ("user,item,time\n1,a,soon\n", "line 2 has 'soon' for a time"),
        ("user,item,rating\n1,a,5\n", "no column is known to be the `time`"),
    ],
)
def test_bad_tables_are_refused(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        read_data(_csv(tmp_path, text))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"columns": {"when": "time"}}, "when is no role"),
        ({"columns": {"user": "uid"}}, "'uid' of .* was named for `user`"),
        ({"columns": {"user": "item"}}, "one column stands for two roles"),
    ],
)
def test_wrong_arguments_are_refused(tmp_path, arguments, message):
    path = _csv(tmp_path, "user,item,time\n1,a,5\n")
    with pytest.raises(UsageError, match=message):
        read_data(path, **arguments)


def test_a_folder_with_nothing_known_names_the_forms(tmp_path):
    (tmp_path / "notes.md").write_text("hello")
    with pytest.raises(DataError, match=r"no form that is known\. The forms are recbole"):
        read_data(tmp_path)
    with pytest.raises(FudlrError, match="no such file or folder"):
        read_data(tmp_path / "nowhere")


@pytest.mark.parametrize("separator", " \t")
@pytest.mark.parametrize("more", [["5"], ["5", "881250949"]], ids=["rating", "rating and time"])
def test_columns_apart_by_spaces_are_no_sequences(tmp_path, separator, more):
    """A rating is no item."""
    lines = [separator.join([user, item, *more]) for user, item in ("ab", "ac", "bc")]
    lines = [line.replace("a", "1").replace("b", "2").replace("c", "3") for line in lines]
    file = tmp_path / "r.txt"
    file.write_text("\n".join(lines) + "\n")
    with pytest.raises(DataError, match=r"no header.*data\.columns\.user=1"):
        read_data(file)
    columns = {"user": "1", "item": "2", "time": "4" if len(more) == 2 else "row"}
    data = read_data(file, columns)
    assert (data.users["user_id"].to_list(), data.user.tolist()) == (["1", "2"], [0, 0, 1])
    assert (data.items["item_id"].to_list(), data.item.tolist()) == (["2", "3"], [0, 1, 1])


def test_files_packed_in_other_ways_are_refused_by_name(tmp_path):
    (tmp_path / "a.csv.zst").write_bytes(b"\x28\xb5\x2f\xfd")
    with pytest.raises(DataError, match=r"files that end in \.zst are not read\. Unpack it"):
        read_data(tmp_path / "a.csv.zst")
    for name in ("a.xlsx", "a.bin.zip"):  # a spreadsheet is an archive too
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr("xl/sheet.xml", "<x/>")
    with pytest.raises(DataError, match=r"files that end in \.xlsx are not read"):
        read_data(tmp_path / "a.xlsx")
    with pytest.raises(DataError, match=r"read from \S*a\.bin\.zip: what is there has no form"):
        read_data(tmp_path / "a.bin.zip")
