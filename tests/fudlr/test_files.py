"""Files are whole or absent: errors, interruptions and kills in the middle of a write."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
from fudlr.common.errors import DataError, FudlrError, UsageError
from fudlr.common.files import (
    MARKER,
    atomic_file,
    atomic_folder,
    check_file,
    check_replaceable,
    check_writable,
    claim_folder,
    write_json,
    write_table,
)
from fudlr.common.reading import read_json
from pydantic import BaseModel


def _entries(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_file_appears_under_its_name_as_the_umask_says(
    tmp_path: Path, umask: int, mode: int
) -> None:
    path = tmp_path / "new" / "result.json"
    earlier = os.umask(umask)
    try:
        with atomic_file(path) as temporary:
            temporary.write_text("whole")
            assert not path.exists()
            assert temporary.suffix == path.suffix
    finally:
        os.umask(earlier)
    assert path.read_text() == "whole"
    assert stat.S_IMODE(path.stat().st_mode) == mode
    assert _entries(path.parent) == ["result.json"]


def _written(path: Path, text: str, kind: str = "result") -> Path:
    with atomic_folder(path, kind) as temporary:
        (temporary / "inner").mkdir()
        (temporary / "inner" / "weights").write_text(text)
    return path


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_error_in_the_middle_leaves_the_old(tmp_path: Path, error: type[BaseException]) -> None:
    path, folder = tmp_path / "result.json", _written(tmp_path / "adapter", "old")
    path.write_text("old")

    def write(atomic, below: str) -> None:
        with atomic as temporary:
            (temporary / below).write_text("hal")
            raise error

    for atomic, below in ((atomic_file(path), ""), (atomic_folder(folder, "result"), "weights")):
        with pytest.raises(error):
            write(atomic, below)
    assert path.read_text() == (folder / "inner" / "weights").read_text() == "old"
    assert _entries(tmp_path) == ["adapter", "result.json"]


@pytest.mark.parametrize("exchange", [True, False])
def test_folder_is_replaced_as_a_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: bool
) -> None:
    if not exchange:  # as on systems without renameat2
        monkeypatch.setattr("fudlr.common.exchange.ctypes.CDLL", lambda *_, **__: object())
    for name in ("first", "second"):
        with atomic_folder(tmp_path / "adapter", "adapter") as temporary:
            (temporary / "inner").mkdir()
            (temporary / "inner" / name).write_text(name)
    assert _entries(tmp_path / "adapter" / "inner") == ["second"]
    assert _entries(tmp_path) == ["adapter"]


def test_old_folder_comes_back_when_the_new_one_cannot_take_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _written(tmp_path / "adapter", "old")
    rename = Path.replace

    def refuse_the_new(self: Path, target: Path) -> Path:
        if target == path and (self / "inner" / "weights").read_text() == "new":
            raise OSError("no")
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", refuse_the_new)
    monkeypatch.setattr("fudlr.common.exchange.ctypes.CDLL", lambda *_, **__: object())
    with pytest.raises(OSError, match="no"):
        _written(path, "new")
    assert (path / "inner" / "weights").read_text() == "old"
    assert _entries(tmp_path) == ["adapter"]


def _refused(folder: Path, words: str, kind: str = "result") -> None:
    """`folder` is refused before work, and at its end; nothing in it or beside it changes."""
    before = sorted(folder.parent.rglob("*"))
    with pytest.raises(UsageError, match=words):
        check_replaceable(folder, kind)
    with pytest.raises(UsageError, match=words):
        _written(folder, "new", kind)
    with pytest.raises(UsageError, match=words):
        claim_folder(folder, kind)
    assert sorted(folder.parent.rglob("*")) == before


@pytest.mark.parametrize("name", ["summary.json", "notes.md"])
def test_folders_of_somebody_else_are_refused_whatever_they_hold(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / name).write_text("theirs")
    _refused(folder, "no .fudlr.json")


@pytest.mark.parametrize("name", ["notes.md", "inner/deep/notes.md", "empty/"])
def test_foreign_names_in_a_folder_of_ours_are_refused_and_named(tmp_path: Path, name: str) -> None:
    folder = _written(tmp_path / "result", "old")
    if name.endswith("/"):
        (folder / name).mkdir()
    else:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("theirs")
    _refused(folder, name.rstrip("/"))


def test_another_kind_of_ours_and_a_damaged_marker_are_refused(tmp_path: Path) -> None:
    _refused(_written(tmp_path / "run", "old", "run"), "another kind: run")
    folder = _written(tmp_path / "result", "old")
    for text in ("", "[]", '{"kind": 1}', '{"kind": "result", "files": 3}', "[" * 100_000):
        (folder / MARKER).write_text(text)
        _refused(folder, "damaged")
    (folder / MARKER).unlink()
    os.mkfifo(folder / MARKER)  # reading it would wait for ever
    _refused(folder, "no regular file")


def test_what_our_own_commands_add_later_is_not_foreign(tmp_path: Path) -> None:
    folder = _written(tmp_path / "result", "old")
    (folder / "retrainings").mkdir()
    (folder / "retrainings" / "0a.safetensors").write_text("")
    (folder / "inner" / ".weights.0123abcd").write_text("of a write that was killed")
    _written(folder, "new")
    assert (folder / "inner" / "weights").read_text() == "new"
    run = _written(tmp_path / "run", "old", "run")
    (run / "store").mkdir()
    (run / "store" / "rows-0-000000.safetensors").write_text("")
    check_replaceable(run, "run")
    (run / "store" / "notes.txt").write_text("theirs")
    _refused(run, "store/notes.txt", "run")


def test_links_mounts_and_special_files_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = _written(tmp_path / "real", "old")
    (tmp_path / "link").symlink_to(real)
    _refused(tmp_path / "link", "a link to")
    (tmp_path / "nowhere").symlink_to(tmp_path / "missing")
    _refused(tmp_path / "nowhere", "a link to")
    (real / "inner" / "link").symlink_to(tmp_path)
    _refused(real, "inner/link")
    os.mkfifo(tmp_path / "pipe")
    _refused(tmp_path / "pipe", "device, pipe or socket")
    (tmp_path / "file").write_text("theirs")
    _refused(tmp_path / "file", "it is a file")
    monkeypatch.setattr(Path, "is_mount", lambda self: self.name == "volume")
    (tmp_path / "volume").mkdir()
    _refused(tmp_path / "volume", "mount point")


def test_a_file_is_not_written_over_a_link_a_folder_or_a_device(tmp_path: Path) -> None:
    (tmp_path / "theirs").write_text("theirs")
    (tmp_path / "link").symlink_to(tmp_path / "theirs")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "folder", "pipe"):
        with pytest.raises(UsageError), atomic_file(tmp_path / name):
            pass
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "theirs").read_text() == "theirs"


def test_nothing_is_written_into_a_folder_of_ours_but_what_belongs_there(tmp_path: Path) -> None:
    run = _written(tmp_path / "run", "old", "run")
    before = sorted(tmp_path.rglob("*"))
    for name in ("result", "inner/result", "inner"):
        with pytest.raises(UsageError, match=r"it lies in .*/run, where fudlr keeps a run"):
            check_replaceable(run / name, "result")
    for name in ("config.yaml", "inner/weights", "new.json"):
        with pytest.raises(UsageError, match=r"it lies in .*/run"):
            check_file(run / name)
    check_replaceable(run / "store", "store")
    assert sorted(tmp_path.rglob("*")) == before


def test_the_current_folder_is_not_replaced(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in (".", "", "../" + tmp_path.name, str(tmp_path)):
        with pytest.raises(UsageError, match="it is the current folder"):
            check_replaceable(Path(name), "result")


def test_a_table_goes_where_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    table = pl.DataFrame({"a": [1]})
    for name in ("~/a.parquet", "*?[a].parquet", "a b,c%20.parquet", "file:b.parquet"):
        write_table(Path(name), table)
        assert pl.read_parquet(Path(name).read_bytes()).equals(table)
    assert not (tmp_path / "home").exists()


def test_a_claimed_folder_is_claimed_again(tmp_path: Path) -> None:
    for _ in range(2):
        claim_folder(tmp_path / "sweep", "sweep")
        write_json(tmp_path / "sweep" / "sweep.json", 1)
    assert _entries(tmp_path / "sweep") == [MARKER, "sweep.json"]


KILLED = """
import os, signal, sys
from pathlib import Path
from fudlr.common.files import atomic_{kind}
with atomic_{kind}(Path(sys.argv[1]){more}) as temporary:
    (temporary / "weights" if {folder} else temporary).write_text("hal")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_kill_in_the_middle_leaves_the_old(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "result"
    weights = path / "inner" / "weights" if kind == "folder" else path
    if kind == "folder":
        _written(path, "old")
    else:
        path.write_text("old")
    folder = kind == "folder"
    script = KILLED.format(kind=kind, folder=folder, more=', "result"' if folder else "")
    done = subprocess.run([sys.executable, "-c", script, str(path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert weights.read_text() == "old"
    if folder:
        assert len(_entries(tmp_path)) == 2
        with atomic_folder(path, "result"):  # of this process, which lives
            _written(path, "new")
            assert len(_entries(tmp_path)) == 2
            shutil.copytree(path, tmp_path / "copy")
        assert _entries(tmp_path) == ["copy", "result"]
        weights = tmp_path / "copy" / "inner" / "weights"
    else:
        with atomic_file(path) as temporary:
            temporary.write_text("new")
    assert weights.read_text() == "new"


def test_what_killed_writes_left_in_a_claimed_folder_is_removed(tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    claim_folder(sweep, "sweep")
    for name in ("sweep.json", "points/one.json"):
        (sweep / name).parent.mkdir(exist_ok=True)
        script = KILLED.format(kind="file", folder=False, more="")
        subprocess.run([sys.executable, "-c", script, str(sweep / name)], check=False)
    assert len(_entries(sweep)) == 3
    with atomic_file(sweep / "sweep.svg") as temporary:  # of this process, which lives
        claim_folder(sweep, "sweep")
        assert _entries(sweep) == sorted([MARKER, temporary.name, "points"])
        assert _entries(sweep / "points") == []


def test_an_earlier_folder_that_was_replaced_is_removed_by_the_next(tmp_path: Path) -> None:
    path, names = tmp_path / "result", (".result.0123abcd", ".result.4567abcd", ".result.89abcdef")
    for name in names:
        _written(tmp_path / name, "old")
    (tmp_path / names[1] / "mine.txt").write_text("a note of the user's")
    (tmp_path / names[2] / MARKER).unlink()
    _written(path, "new")
    assert _entries(tmp_path) == [*names[1:], "result"]
    assert _entries(path) == [MARKER, "inner"]


def test_a_table_without_room_is_the_systems_error(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, before[1]))
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with pytest.raises(OSError, match="File too large"):
            write_table(tmp_path / "table.parquet", pl.DataFrame({"a": range(9)}))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert _entries(tmp_path) == []


def test_contents_are_flushed_before_the_name_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    fsync, rename = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (events.append("fsync"), fsync(handle)))
    monkeypatch.setattr(
        Path, "replace", lambda self, to: (events.append("rename"), rename(self, to))[1]
    )
    with atomic_file(tmp_path / "result") as temporary:
        temporary.write_text("whole")
    assert events == ["fsync", "rename", "fsync"]


def test_json_keeps_letters_and_refuses_nan(tmp_path: Path) -> None:
    path, value = tmp_path / "value.json", {"title": "Amélie", "numbers": [1, 2.5, None]}
    write_json(path, value)
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"arp": float("nan")})
    text = path.read_text(encoding="utf-8")
    assert json.loads(text) == value
    assert "Amélie" in text


def test_whether_a_folder_can_be_written_is_told_early(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    for folder in (tmp_path / "taken", tmp_path / "taken" / "below"):
        with pytest.raises(FudlrError, match="--out"):
            check_writable(folder)
    check_writable(tmp_path / "a" / "b")
    assert _entries(tmp_path / "a" / "b") == []


class Form(BaseModel):
    losses: list[float]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "damaged"),
        (b'{"losses": [1.0', "damaged"),
        (b'{"losses": [1.0, NaN]}', "NaN is no number"),
        (b'{"losses": [], "losses": [1]}', "twice: 'losses'"),
        (b"\xff\xfe\x00", "damaged"),
        (b"[" * 100_000, "nested too deep"),
        (b"[1, 2]", "form expected"),
        (b'{"loss": [1]}', "losses: field required"),
        (b'{"losses": [1, "2"]}', "losses.1: input should be a valid number"),
        (b'{"losses": [true]}', "losses.0"),
    ],
)
def test_json_of_another_form_is_refused_with_its_place(tmp_path: Path, content, words) -> None:
    (tmp_path / "value.json").write_bytes(content)
    with pytest.raises(DataError, match=re.escape(words)) as found:
        read_json(tmp_path / "value.json", Form)
    assert "value.json" in str(found.value)


def test_json_is_read_from_regular_files_alone(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")  # reading it would wait for ever
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "folder", "missing"):
        with pytest.raises(DataError, match=name):
            read_json(tmp_path / name, Form)
    write_json(tmp_path / "value.json", {"losses": [1, 2.5], "more": None})
    assert read_json(tmp_path / "value.json", Form).losses == [1, 2.5]


def test_a_folder_whose_maker_was_killed_before_its_marker_is_taken(tmp_path):
    made = tmp_path / "store"
    claim_folder(made, "store")
    (made / MARKER).rename(made / f".{Path(MARKER).stem}.0a1b2c3d.json")
    (made / ".fudlr.0a1b2c3d").touch()
    claim_folder(made, "store")
    assert [path.name for path in made.iterdir()] == [MARKER]
    other = tmp_path / "other"
    other.mkdir()
    (other / ".fudlr.0a1b2c3d").touch()
    (other / "notes.txt").touch()
    with pytest.raises(UsageError, match="holds other files"):
        claim_folder(other, "store")
