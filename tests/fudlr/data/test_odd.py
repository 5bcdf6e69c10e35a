"""Files as people have them: read as a person reads them, or refused in words that help."""

import gzip
import json
import warnings
import zipfile

import numpy as np
import polars as pl
import pytest
from fudlr.common.errors import DataError, UsageError
from fudlr.data import DataWarning, read_data

EVENTS = "user,item,time\nu1,a,5\nu1,b,6\nu2,a,7\n"
PLAIN = [("u1", "a", 5), ("u1", "b", 6), ("u2", "a", 7)]


def write(folder, **files):
    for name, content in files.items():
        raw = content if isinstance(content, bytes) else content.encode()
        (folder / name.replace("__", ".")).write_bytes(raw)
    return folder


def rows(data):
    """What was read, as a person would list it."""
    users, items = data.users["user_id"].to_list(), data.items["item_id"].to_list()
    triples = zip(data.user, data.item, data.time, strict=True)
    return [(users[u], items[i], int(t)) for u, i, t in triples]


def told(call):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = call()
    return found, [str(w.message) for w in caught]


@pytest.mark.parametrize(
    "raw",
    [
        EVENTS,
        "\ufeff" + EVENTS.replace("\n", "\r\n"),
        EVENTS.encode("utf-16"),
        EVENTS.replace(",", ";"),
        EVENTS.replace(",", "\t") + "\n\n",
        EVENTS.replace(",", " "),
        EVENTS.replace("\n", "\r"),
        "user,item,time\n" + "".join(f'"{u}","{i}","{t}"\n' for u, i, t in PLAIN),
        "User-ID,Movie ID,TIMESTAMP\n" + EVENTS.partition("\n")[2],
        ",user,item,time\n" + "".join(f"{n},{u},{i},{t}\n" for n, (u, i, t) in enumerate(PLAIN)),
        "customer_id,sku,product_id,rating,created_at\n"
        + "".join(f"{u},x,{i},-1,{t}\n" for u, i, t in PLAIN),
    ],
)
def test_tables_in_other_dress_are_the_same(raw, tmp_path):
    assert rows(read_data(write(tmp_path, a__csv=raw) / "a.csv")) == PLAIN


def test_packed_tables_are_the_same(tmp_path):
    raw = gzip.compress(EVENTS.encode())
    assert rows(read_data(write(tmp_path, **{"a.csv.gz": raw}) / "a.csv.gz")) == PLAIN
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.writestr("ml/ratings.csv", EVENTS)
        archive.writestr("ml/movies.csv", "movieId,title,genres\na,A,War\nb,B,War|Drama\n")
        archive.writestr("ml/README.txt", "hello")
    data = read_data(tmp_path / "b.zip")
    assert rows(data) == PLAIN
    assert data.items["genres"].to_list() == [["War"], ["War", "Drama"]]
    raw = (tmp_path / "a.csv.gz").read_bytes()
    (tmp_path / "c.csv.gz").write_bytes(raw[:-9])
    with pytest.raises(DataError, match="no whole gzip file"):
        read_data(tmp_path / "c.csv.gz")


def test_a_file_without_header_says_so_and_loses_no_row(tmp_path):
    lines = [f"{u}\t{i}\t3\t{t}" for u, i, t in ((1, 10, 7), (1, 11, 8), (2, 10, 5))]
    file = write(tmp_path, x__tsv="\n".join(lines)) / "x.tsv"
    with pytest.raises(DataError, match=r"no header: its first line is '1', '10'.*columns\.user=1"):
        read_data(file)
    with pytest.raises(UsageError, match="there is none; there is '1', '2', '3', '4'"):
        read_data(file, columns={"user": "196"})
    data = read_data(file, columns={"user": "1", "item": "2", "time": "4"})
    assert rows(data) == [("1", "10", 7), ("1", "11", 8), ("2", "10", 5)]


def test_hetrec_and_check_ins(tmp_path):
    write(
        tmp_path,
        **{
            "user_ratedmovies-timestamps.dat": "userID\tmovieID\trating\ttimestamp\n"
            "75\t3\t1\t1162160236000\n75\t4\t2\t1162160236001\n",
            "movies.dat": "id\ttitle\n3\tD\xe9lica\n4\tB\n".encode("latin-1"),
        },
    )
    data, said = told(lambda: read_data(tmp_path))
    assert rows(data) == [("75", "3", 1162160236000), ("75", "4", 1162160236001)]
    assert data.items["title"].to_list() == ["Délica", "B"]
    assert any("line 2 is not UTF-8" in text for text in said)
    (tmp_path / "other").mkdir()
    file = tmp_path / "other" / "gowalla.txt"
    file.write_text(
        "0\t2010-10-19T23:55:27Z\t30.2\t-97.7\t22847\n0\t2010-10-18T22:17:43Z\t1\t2\t7\n"
    )
    data = read_data(file, columns={"user": "1", "time": "2", "item": "5"})
    assert rows(data) == [("0", "7", 1287440263), ("0", "22847", 1287532527)]


def test_quotes_and_inch_signs(tmp_path):
    items = 'item,title\na,19" monitor\nb,"He said ""hi"",\nand left"\n'
    data = read_data(write(tmp_path, interactions__csv=EVENTS, items__csv=items))
    assert data.items["title"].to_list() == ['19" monitor', 'He said "hi",\nand left']
    write(tmp_path, items__csv='item,title\na,"A \\"B\\" C"\nb,x\n')
    assert read_data(tmp_path).items["title"][0] == 'A "B" C'
    write(tmp_path, items__csv='item,title\na,x\nb,"Cro" Dundee\n')
    with pytest.raises(DataError, match=r"items\.csv was to be read: line 3: .*in it are doubled"):
        read_data(tmp_path)


@pytest.mark.parametrize(
    ("dates", "times"),
    [
        (("2018-01-31", "2018-02-01T00:00:01Z"), [1517356800, 1517443201]),
        (("11/15/2019 10:22:32 AM", "11/16/2019 1:00:00 PM"), [1573813352, 1573909200]),
        (("09 30, 2018", "10 1, 2018"), [1538265600, 1538352000]),
        (("31.01.2018", "01.02.2018"), [1517356800, 1517443200]),
        (("Wed Oct 10 20:19:24 +0000 2018", "Thu Oct 11 20:19:24 +0000 2018"),
         [1539202764, 1539289164]),
        (("1600000000000000001", "1600000000000000002"),
         [1600000000000000001, 1600000000000000002]),
        (("1.25e9", "1250000001.5"), [1250000000, 1250000001]),
        (("12/31/99", "1/13/01"), [946598400, 979344000]),
        (("12/1/10 8:26", "12/13/10 8:28"), [1291191960, 1292228880]),
        (("2020-01-01 00:00:00 UTC", "2020-01-01 00:00:01.5 UTC"), [1577836800, 1577836801]),
        (("Wed, 01 Jan 2020 00:00:00 GMT", "Thu, 02 Jan 2020 00:00:00 GMT"),
         [1577836800, 1577923200]),
    ],
)  # fmt: skip
def test_times_in_many_forms(dates, times, tmp_path):
    body = f'1,b,"{dates[1]}"\n1,a,"{dates[0]}"\n'
    data = read_data(write(tmp_path, a__csv="user,item,date\n" + body) / "a.csv")
    assert rows(data) == [("1", "a", times[0]), ("1", "b", times[1])]


@pytest.mark.parametrize(
    ("dates", "said"),
    [
        (("01/02/2019", "03/04/2019"), "day and month cannot be told apart"),
        (("01/31/2019", "soon"), "line 3 has 'soon' for a time, which is neither"),
        (("01/02/03", "03/04/05"), "day and month cannot be told apart"),
        (("1577836800", "1577836800001"), "line 2 has 1577836800 for a time, of another unit"),
    ],
)
def test_dates_that_say_too_little(dates, said, tmp_path):
    body = "".join(f"1,{item},{date}\n" for item, date in zip("ab", dates, strict=True))
    with pytest.raises(DataError, match=said):
        read_data(write(tmp_path, a__csv="user,item,date\n" + body) / "a.csv")


def test_rows_may_be_the_order_of_time(tmp_path):
    file = write(tmp_path, a__csv="user,item,rating\n1,b,5\n2,c,1\n1,a,4\n") / "a.csv"
    with pytest.raises(DataError, match=r"data\.columns\.time=row"):
        read_data(file)
    data = read_data(file, columns={"time": "row"})
    assert rows(data) == [("1", "b", 0), ("1", "a", 2), ("2", "c", 1)]


def test_sequences(tmp_path):
    write(tmp_path, train__txt="0 5 6 7\n1 6\n2\n10 5\n", test__txt="0 8\n1 5\n")
    data, said = told(lambda: read_data(tmp_path))
    assert [(u, i) for u, i, _ in rows(data)] == [
        ("0", "5"), ("0", "6"), ("0", "7"), ("0", "8"), ("1", "6"), ("1", "5"), ("10", "5")
    ]  # fmt: skip
    assert any("have no times" in text for text in said)
    assert any("1 lines have a user and no item" in text for text in said)
    (tmp_path / "tabs").mkdir()
    tabs = write(tmp_path / "tabs", s__txt="0\t5\t6\n1\t6\n") / "s.txt"
    assert [(u, i) for u, i, _ in rows(read_data(tabs))] == [("0", "5"), ("0", "6"), ("1", "6")]
    pairs = write(tmp_path, v__txt="3 9\n3 1\n4 9\n") / "v.txt"
    assert [(u, i) for u, i, _ in rows(read_data(pairs))] == [("3", "9"), ("3", "1"), ("4", "9")]


def amazon(folder):
    reviews = [
        {"user_id": "u", "asin": f"v{p}", "parent_asin": p, "timestamp": 1588687728923 + n,
         "rating": 5.0, "images": [{"small": "x"}], "text": "fine"}
        for n, p in enumerate("ba")
    ]  # fmt: skip
    meta = [
        {"parent_asin": p, "title": f"T{p}", "details": {"Brand": "x"}, "images": [{"large": "y"}],
         "categories": ["Books", "Law & Order"], "price": None}
        for p in "abc"
    ]  # fmt: skip
    for name, lines in (("Books.jsonl", reviews), ("meta_Books.jsonl", meta)):
        (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_amazon_reviews_with_their_nested_metadata(tmp_path):
    data, said = told(lambda: read_data(amazon(tmp_path) / "Books.jsonl"))
    assert rows(data) == [("u", "b", 1588687728923), ("u", "a", 1588687728924)]
    assert data.items["title"].to_list() == ["Ta", "Tb", "Tc"]
    assert data.items["genres"].to_list() == [["Books", "Law & Order"]] * 3
    assert "details" not in data.items.columns
    words = " | ".join(said)
    assert "columns of nested values are left out: 'details', 'images'" in words
    assert "meta_Books.jsonl is read as the table of items" in words
    assert len(said) == 3


def test_side_tables_of_other_names_are_taken_or_said(tmp_path):
    write(
        tmp_path,
        purchases__csv="customer_id,product_id,created_at\nc1,p1,2020-01-01\nc1,p2,2020-01-02\n",
        customers__csv="customer_id,gender\nc1,F\n",
        catalogue__csv="product_id,name\np1,A\np2,B\n",
        prices__txt="nothing",
    )
    for path in (tmp_path, tmp_path / "purchases.csv"):
        data, said = told(lambda path=path: read_data(path))
        assert data.items["title"].to_list() == ["A", "B"]
        assert data.users["gender"].to_list() == ["F"]
        assert said == [
            "purchases: catalogue.csv is read as the table of items",
            "purchases: customers.csv is read as the table of users",
        ]
    write(tmp_path, stock__csv="product_id,left\np1,3\np2,0\n")
    data, said = told(lambda: read_data(tmp_path / "purchases.csv"))
    assert data.items["title"].to_list() == ["p1", "p2"]
    assert "not read: 'catalogue.csv', 'stock.csv'" in said[1]


@pytest.mark.parametrize(
    ("cell", "genres"),
    [
        ("'Books', 'Literature & Fiction'", ["Books", "Literature & Fiction"]),
        ('["Books", "Literature, Fiction"]', ["Books", "Literature, Fiction"]),
        ("Books|Literature, Fiction", ["Books", "Literature, Fiction"]),
        ("Action, Indie", ["Action", "Indie"]),
        ("Action / Indie", ["Action", "Indie"]),
        ("[{'id': 28, 'name': 'Action'}, {'id': 12, 'name': \"Kid's\"}]", ["Action", "Kid's"]),
        ('["Women\'s", "Kid\'s"]', ["Women's", "Kid's"]),
        ("[Action, Indie]", ["Action", "Indie"]),
        ('{"Sci-Fi & Fantasy",Indie}', ['"Sci-Fi & Fantasy"', "Indie"]),
        ('{"Sci-Fi","Indie"}', ["Sci-Fi", "Indie"]),
        ("[]", []),
        ("['']", []),
        ("", []),
    ],
)
def test_genres_of_one_text_are_split(cell, genres, tmp_path):
    text = cell.replace('"', '""')
    write(tmp_path, interactions__csv=EVENTS, items__csv=f'item,genres\na,"{text}"\nb,War\n')
    assert read_data(tmp_path).items["genres"].to_list() == [genres, ["War"]]


def test_quoted_lists_of_recboles_amazon(tmp_path):
    inter = "user_id:token\titem_id:token\ttimestamp:float\n1\ta\t5\n1\tb\t6\n"
    item = "item_id:token\tcategories:token_seq\tprice:float\n"
    item += "a\t'Books', 'Law & Order'\t1.5\nb\t'Books'\t\n"
    data = read_data(write(tmp_path, x__inter=inter, x__item=item))
    assert data.items["genres"].to_list() == [["Books", "Law & Order"], ["Books"]]
    assert data.items["price"].to_list() == ["1.5", ""]


def test_half_a_character_is_refused_with_its_column(tmp_path):
    items = '[{"item":"a","title":"\\ud800"},{"item":"b","title":"x"}]'
    with pytest.raises(DataError, match="`'title'` is no text"):
        read_data(write(tmp_path, interactions__csv=EVENTS, items__json=items))


def test_the_order_of_rows_changes_nothing(tmp_path):
    """Users, items and ties stand by id, numbers at the end by value: 2 before 10."""
    rng = np.random.default_rng(0)
    lines = [f"u{u},{i},{t}" for u in range(12) for i, t in zip(rng.permutation(30)[:9], range(9),
                                                              strict=True)]  # fmt: skip
    lines = [line.rsplit(",", 1)[0] + f",{n % 3}" for n, line in enumerate(lines)]
    items = [f"{i},T{i},{'War' if i % 2 else 'Drama'}" for i in range(30)]
    found = []
    for _ in range(3):
        rng.shuffle(lines)
        rng.shuffle(items)
        folder = write(
            tmp_path,
            interactions__csv="\n".join(["user,item,time", *lines]),
            items__csv="\n".join(["item,title,genres", *items]),
        )
        data = read_data(folder)
        found.append((rows(data), data.items.rows()))
    assert found[0] == found[1] == found[2]
    assert data.users["user_id"].to_list() == [f"u{u}" for u in range(12)]
    assert data.items["item_id"].to_list() == [str(i) for i in range(30)]


def test_an_instruction_row_of_open_quotes_takes_no_time(tmp_path):
    prompt = (
        "User Preference:" + '"a ' * 200_000 + "User Unpreference: x Whether the user will like"
    )
    row = {"instruction": "x", "input": prompt, "output": "Yes."}
    other = {"instruction": "x", "input": 'before: "A", "B"', "output": '"C"'}
    (tmp_path / "train.json").write_text(json.dumps([row, other]))
    with pytest.warns(DataWarning, match="1 rows are of no known form"):
        assert read_data(tmp_path).n_items == 3


def test_times_of_0_among_dates_are_said_and_counters_are_not(tmp_path):
    for times, said in (("0", ["2 times are 0 or less, as if not known"]), ("1577836799", [])):
        body = f"user,item,time\n1,a,1577836800\n1,b,{times}\n2,a,{times}\n"
        found = told(lambda body=body: read_data(write(tmp_path, a__csv=body) / "a.csv"))[1]
        assert len(found) == len(said)
        assert all(word in text for word, text in zip(said, found, strict=True))
    body = "user,item,time\n1,a,0\n1,b,1\n2,a,2\n"
    assert not told(lambda: read_data(write(tmp_path, a__csv=body) / "a.csv"))[1]


def test_times_beyond_64_bits_are_refused(tmp_path):
    times = pl.Series([2**63 + 1, 5], dtype=pl.UInt64)
    pl.DataFrame({"user": [1, 2], "item": [7, 8], "time": times}).write_parquet(
        tmp_path / "a.parquet"
    )
    with pytest.raises(DataError, match="line 1 has 9223372036854775809 for a time"):
        read_data(tmp_path / "a.parquet")


@pytest.mark.parametrize("dotted", ["interactions", "items"])
def test_ids_that_a_missing_value_made_floats_in_a_csv_are_whole(dotted, tmp_path):
    dot = {"interactions": "", "items": "", dotted: ".0"}
    events = "user,item,time\n" + "".join(f"u{n},{n}{dot['interactions']},{n}\n" for n in (7, 10))
    items = "item,title\n" + "".join(f"{n}{dot['items']},T{n}\n" for n in (7, 10))
    data = read_data(write(tmp_path, interactions__csv=events, items__csv=items))
    assert rows(data) == [("u7", "7", 7), ("u10", "10", 10)]
    assert data.items["title"].to_list() == ["T7", "T10"]


def test_ids_of_a_database_are_whole_or_refused(tmp_path):
    frame = pl.DataFrame({"user": ["a", "b"], "item": [7, 8], "time": [1, 2]})
    for scale in (0, 2):
        exact = frame.with_columns(pl.col("item").cast(pl.Decimal(10, scale)))
        exact.write_parquet(tmp_path / "a.parquet")
        assert [item for _, item, _ in rows(read_data(tmp_path / "a.parquet"))] == ["7", "8"]
    half = frame.with_columns(item=pl.Series(["7.5", "8"]).cast(pl.Decimal(10, 2)))
    half.write_parquet(tmp_path / "a.parquet")
    with pytest.raises(DataError, match="`item` holds numbers that are not whole"):
        read_data(tmp_path / "a.parquet")


def test_ids_are_the_same_however_their_accents_are_written(tmp_path):
    composed, apart = "caf\u00e9", "cafe\u0301"
    events = f"user,item,time\n{composed},{composed},5\n{apart},b,6\n"
    folder = write(tmp_path, interactions__csv=events, items__csv=f"item,title\n{apart},A\nb,B\n")
    assert rows(read_data(folder)) == [(composed, composed, 5), (composed, "b", 6)]


def test_whole_numbers_of_a_side_column_are_so_in_every_form(tmp_path):
    users = pl.DataFrame({"user": ["u1", "u2"], "job": [1.0, None]})
    for ending in ("csv", "parquet"):
        folder = tmp_path / ending
        folder.mkdir()
        write(folder, interactions__csv=EVENTS)
        getattr(users, f"write_{ending}")(folder / f"users.{ending}")
        assert read_data(folder).users["job"].to_list() == ["1", ""]


def test_records_with_a_name_are_genres_in_every_form(tmp_path):
    records = [[{"id": 1, "name": "War"}, {"id": 2, "name": "Drama"}], [{"id": 1, "name": "War"}]]
    items = pl.DataFrame({"item": ["a", "b"], "genres": records, "shown": [[{"id": 1}], []]})
    for ending, save in (("parquet", "write_parquet"), ("jsonl", "write_ndjson")):
        folder = tmp_path / ending
        folder.mkdir()
        write(folder, interactions__csv=EVENTS)
        getattr(items, save)(folder / f"items.{ending}")
        data, said = told(lambda folder=folder: read_data(folder))
        assert data.items["genres"].to_list() == [["War", "Drama"], ["War"]]
        assert data.items.columns == ["item_id", "title", "genres"]
        assert len(said) == 1
        assert "nested values are left out: 'shown'" in said[0]


def test_ids_that_pandas_made_floats_are_whole_again(tmp_path):
    frame = pl.DataFrame({"user": [1.0, 2.0], "item": [7, 8], "time": [1, 2]})
    frame.write_parquet(tmp_path / "a.parquet")
    assert [user for user, *_ in rows(read_data(tmp_path / "a.parquet"))] == ["1", "2"]
    frame.with_columns(user=pl.Series([1.5, 2.0])).write_parquet(tmp_path / "a.parquet")
    with pytest.raises(DataError, match="`user` holds numbers that are not whole"):
        read_data(tmp_path / "a.parquet")
