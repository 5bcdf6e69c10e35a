"""The data step: what is missing is said with the command to run, and nothing is half-fetched."""

import subprocess
import zipfile

import pytest
from fudlr.common.errors import DataError
from fudlr.data import fetch
from fudlr.data.splits import leave_last_out


def test_missing_data_name_the_command(tmp_path):
    with pytest.raises(DataError, match="Run `fudlr data fetch ml-100k`"):
        fetch.find_ml100k(tmp_path)


def test_failed_download_is_told_and_leaves_nothing(monkeypatch, tmp_path):
    def fail(command, **_):
        assert command[-3:-1] == ["recbole==1.2.1", "-d"]
        return subprocess.CompletedProcess(command, 1, "", "ERROR: no network\n")

    monkeypatch.setattr(fetch.subprocess, "run", fail)
    with pytest.raises(DataError, match="pip failed: ERROR: no network"):
        fetch.fetch_ml100k(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_wrong_content_is_not_kept(monkeypatch, tmp_path):
    def bring_something_else(command, **_):
        with open(f"{command[-1]}/{fetch.WHEEL}", "wb") as file:
            file.write(b"not a wheel")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(fetch.subprocess, "run", bring_something_else)
    with pytest.raises(DataError, match="is another file: its SHA-256"):
        fetch.fetch_ml100k(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_smaller_data_set_of_that_name_is_refused(tmp_path):
    """Well formed, and not the one that is meant: every reader of it is told."""
    with zipfile.ZipFile(tmp_path / fetch.WHEEL, "w") as wheel:
        wheel.writestr("x/ml-100k.inter", "user_id:token\titem_id:token\ttimestamp:float\n1\t2\t3")
    for read in (fetch.find_ml100k, fetch.load_ml100k):
        with pytest.raises(DataError, match=f"instead of {fetch.SHA256}"):
            read(tmp_path)


def test_movielens_gives_the_known_numbers():
    try:
        fetch.find_ml100k()
    except DataError as error:
        pytest.skip(str(error))
    data = fetch.load_ml100k()
    assert data.items["title"].n_unique() == 1682
    split = leave_last_out(data)
    assert (len(split.train), len(split.valid), len(split.test)) == (7544, 943, 943)
    assert split.popularity.sum() == 100_000 - 2 * 943
