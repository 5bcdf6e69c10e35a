"""Files are whole or absent: errors, interruptions and kills in the middle of a write."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from fudlr.errors import FudlrError
from fudlr.files import atomic_file, atomic_folder, check_writable, write_json


def _entries(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_file_appears_under_its_name_and_readable_by_others(tmp_path: Path) -> None:
    path = tmp_path / "new" / "result.json"
    with atomic_file(path) as temporary:
        temporary.write_text("whole")
        assert not path.exists()
        assert temporary.suffix == path.suffix
    assert path.read_text() == "whole"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert _entries(path.parent) == ["result.json"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_error_in_the_middle_leaves_the_old_file(
    tmp_path: Path, error: type[BaseException]
) -> None:
    path = tmp_path / "result.json"
    path.write_text("old")

    def write() -> None:
        with atomic_file(path) as temporary:
            temporary.write_text("hal")
            raise error

    with pytest.raises(error):
        write()
    assert path.read_text() == "old"
    assert _entries(tmp_path) == ["result.json"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_error_in_the_middle_leaves_the_old_folder(
    tmp_path: Path, error: type[BaseException]
) -> None:
    path = tmp_path / "adapter"
    path.mkdir()
    (path / "weights").write_text("old")

    def write() -> None:
        with atomic_folder(path) as temporary:
            (temporary / "weights").write_text("hal")
            raise error

    with pytest.raises(error):
        write()
    assert (path / "weights").read_text() == "old"
    assert _entries(tmp_path) == ["adapter"]


def test_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "adapter"
    for name in ("first", "second"):
        with atomic_folder(path) as temporary:
            (temporary / "inner").mkdir()
            (temporary / "inner" / name).write_text(name)
    assert _entries(path / "inner") == ["second"]
    assert _entries(tmp_path) == ["adapter"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o755


def test_old_folder_comes_back_when_the_new_one_cannot_take_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "adapter"
    path.mkdir()
    (path / "weights").write_text("old")
    rename = Path.replace

    def refuse_the_new(self: Path, target: Path) -> Path:
        if target == path and (self / "weights").read_text() == "new":
            raise OSError("no")
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", refuse_the_new)
    with pytest.raises(OSError, match="no"), atomic_folder(path) as temporary:
        (temporary / "weights").write_text("new")
    assert (path / "weights").read_text() == "old"
    assert _entries(tmp_path) == ["adapter"]


KILLED = """
import os, signal, sys
from pathlib import Path
from fudlr.files import atomic_{kind}
with atomic_{kind}(Path(sys.argv[1])) as temporary:
    (temporary / "weights" if {folder} else temporary).write_text("hal")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_kill_in_the_middle_leaves_the_old(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "result"
    weights = path / "weights" if kind == "folder" else path
    weights.parent.mkdir(exist_ok=True)
    weights.write_text("old")
    script = KILLED.format(kind=kind, folder=kind == "folder")
    done = subprocess.run([sys.executable, "-c", script, str(path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert weights.read_text() == "old"
    with (atomic_folder if kind == "folder" else atomic_file)(path) as temporary:
        (temporary / "weights" if kind == "folder" else temporary).write_text("new")
    assert weights.read_text() == "new"


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


def test_json_round_trip_keeps_letters(tmp_path: Path) -> None:
    value = {"title": "Amélie", "numbers": [1, 2.5, None]}
    write_json(tmp_path / "value.json", value)
    text = (tmp_path / "value.json").read_text(encoding="utf-8")
    assert json.loads(text) == value
    assert "Amélie" in text


def test_json_refuses_nan_and_keeps_the_old(tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    write_json(path, 1)
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"arp": float("nan")})
    assert json.loads(path.read_text()) == 1


def test_a_file_in_the_way_of_the_output_folder_is_told_early(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    for folder in (tmp_path / "taken", tmp_path / "taken" / "below"):
        with pytest.raises(FudlrError, match="--out"):
            check_writable(folder)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_folder_without_permission_is_told_early(tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    with pytest.raises(FudlrError, match="--out"):
        check_writable(locked / "below")


def test_writable_folder_is_made_and_left_empty(tmp_path: Path) -> None:
    check_writable(tmp_path / "a" / "b")
    assert _entries(tmp_path / "a" / "b") == []
