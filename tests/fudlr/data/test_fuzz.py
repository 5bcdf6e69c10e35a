"""Damaged data through `fudlr data check`: an answer or an error in words, never a traceback.

Every input is a good one of a known form with one damage, drawn by the seed that is its name.
"""

import json
import shutil
import sys
import warnings

import forms
import numpy as np
import pytest
from fudlr import cli
from fudlr.common.errors import FudlrError
from fudlr.data import DataWarning
from typer.testing import CliRunner

GOOD = {**forms.TABLES, **forms.INSTRUCTIONS}
runner = CliRunner()


def _file(rng, folder):
    files = sorted(folder.iterdir())
    return files[rng.integers(len(files))]


def _rewrite(change):
    def damage(rng, folder):
        file = _file(rng, folder)
        file.write_bytes(change(rng, file.read_bytes()))

    return damage


def _without_middle(rng, raw):
    a, b = sorted(rng.integers(len(raw), size=2))
    return raw[:a] + raw[b:]


def _flip(rng, raw):
    data = bytearray(raw)
    for at in rng.integers(len(data), size=rng.integers(1, 20)):
        data[at] ^= int(rng.integers(1, 256))
    return bytes(data)


def _replaced(*pairs):
    def change(rng, raw):
        return raw.replace(*pairs[rng.integers(len(pairs))])

    return _rewrite(change)


def _line(change):
    def damage(rng, raw):
        lines = raw.split(b"\n")
        at = int(rng.integers(len(lines)))
        return b"\n".join(lines[:at] + change(rng, lines[at]) + lines[at + 1 :])

    return _rewrite(damage)


def _number(rng, raw):
    """One number of the file becomes something that is none, or absurd."""
    spots = [i for i, byte in enumerate(raw) if chr(byte).isdigit()]
    at = spots[rng.integers(len(spots))] if spots else 0
    new = [b"NaN", b"inf", b"-1", b"1e400", b"9" * 400, b"", b"null", b"\x00", b'"', b"1e18"]
    return raw[:at] + new[rng.integers(len(new))] + raw[at + 1 :]


def _swap(rng, folder):
    files = sorted(folder.iterdir())
    if len(files) == 1:
        files[0].rename(files[0].with_suffix(".csv"))
        return
    a, b = rng.permutation(len(files))[:2]
    raw = files[a].read_bytes()
    files[a].write_bytes(files[b].read_bytes())
    files[b].write_bytes(raw)


def _foreign(rng, folder):
    """A file of another form under this one's name."""
    file = _file(rng, folder)
    other = folder.parent / "other"
    other.mkdir()
    GOOD[sorted(GOOD)[rng.integers(len(GOOD))]](other)
    file.write_bytes(_file(rng, other).read_bytes())
    shutil.rmtree(other)


def _to_folder(rng, folder):
    file = _file(rng, folder)
    file.unlink()
    file.mkdir()


def _rename(rng, folder):
    file = _file(rng, folder)
    suffix = [".csv", ".parquet", ".json", ".jsonl", ".dat", ".inter", ".zip"][rng.integers(7)]
    file.rename(file.with_name(file.stem + "x" * int(rng.integers(2)) + suffix))


DAMAGES = {
    "truncated": _rewrite(lambda rng, raw: raw[: rng.integers(len(raw))]),
    "hole": _rewrite(_without_middle),
    "flipped bytes": _rewrite(_flip),
    "empty": _rewrite(lambda rng, raw: b"\n" * int(rng.integers(3))),
    "binary garbage": _rewrite(lambda rng, raw: rng.bytes(int(rng.integers(1, 3000)))),
    "garbage between good ends": _rewrite(
        lambda rng, raw: raw[:8] + rng.bytes(int(rng.integers(1, 500))) + raw[-12:]
    ),
    "wrong separator": _replaced(
        (b"::", b","), (b"\t", b"  "), (b",", b";"), (b"|", b","), (b":", b"")
    ),
    "renamed columns": _replaced(
        (b"user_id", b"u"), (b"item_id", b"user_id"), (b"timestamp", b"t"), (b"_", b" ")
    ),
    "bad encoding": _rewrite(
        lambda rng, raw: (
            raw.decode("latin-1").encode(("utf-16", "utf-32", "utf-7")[rng.integers(3)])
            + b"\xff" * int(rng.integers(3))
        )
    ),
    "a number that is none": _rewrite(_number),
    "short line": _line(lambda rng, line: [line[: rng.integers(len(line) + 1)]]),
    "line twice": _line(lambda rng, line: [line, line]),
    "line lost": _line(lambda rng, line: []),
    "absurd field": _line(lambda rng, line: [line + b"x" * 300_000]),
    "absurd number of fields": _line(lambda rng, line: [line + b"\t1" * 20_000]),
    "header again": _rewrite(lambda rng, raw: raw.split(b"\n")[0] + b"\n" + raw),
    "deep nesting": _rewrite(lambda rng, raw: b"[" * 100_000 + raw),
    "quotes": _line(lambda rng, line: [line.replace(line[-3:], b'"' + line[-3:])]),
    "swapped files": _swap,
    "foreign file": _foreign,
    "removed file": lambda rng, folder: _file(rng, folder).unlink(),
    "file is a folder": _to_folder,
    "renamed file": _rename,
}


def make_input(seed, folder):
    """Write the good input and damage it; returns its form and the damage."""
    rng = np.random.default_rng(seed)
    form = sorted(GOOD)[seed % len(GOOD)]
    damage = sorted(DAMAGES)[(seed // len(GOOD)) % len(DAMAGES)]
    folder.mkdir()
    DAMAGES[damage](rng, GOOD[form](folder))
    return form, damage


def check(path):
    """Exit code and what a person would read; anything but a wanted error is raised."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a warning is part of the answer, never on the side
        warnings.simplefilter("always", DataWarning)
        result = runner.invoke(cli.app, ["data", "check", str(path), "--json", "--set", "data.k=2"])
    error = result.exception
    if error is None or isinstance(error, SystemExit):
        return result.exit_code, result.stdout
    if not isinstance(error, FudlrError):
        raise error
    return cli.exit_code(error), str(error)


def is_sane(figures):
    """What the answer says of itself agrees."""
    users, items, n = figures["users"], figures["items"], figures["interactions"]
    return (
        0 < users <= n
        and items > 0
        and figures["time"][0] <= figures["time"][1]
        and figures["ties"] + users <= n
        and sum(figures["samples"].values()) <= n
        and bool(figures["samples"]) != bool(figures["problems"])
        and all(g["unknown"] <= max(users, items) for g in figures["groups"])
    )


def test_damaged_data_end_in_an_answer_or_in_words(tmp_path, capfd):
    """Of every damage, and for many reasons: harmless damages would show nothing."""
    refused, reasons, drawn = 0, set(), set()
    every = range(len(GOOD) * len(DAMAGES))
    seeds = [seed for seed in every if (seed + seed // len(GOOD)) % 2]  # half of each damage's
    for seed in seeds:
        form, damage = make_input(seed, tmp_path / str(seed))
        drawn.add(damage)
        code, said = check(tmp_path / str(seed))
        outside = capfd.readouterr()
        context = f"{seed}, {form}, {damage}: {said}"
        assert "Traceback" not in said + outside.err, context
        assert "panicked" not in outside.err, context
        if said.startswith("{"):
            figures = json.loads(said)
            assert is_sane(figures), context
            assert code == (1 if figures["problems"] else 0), context
        else:
            assert code in (1, 2), context
            assert len(said) < 3000, context
            assert ": " in said, context
        refused += code != 0
        reasons.add(said.split(": ", 2)[-1][:20])
    assert drawn == set(DAMAGES)
    assert 0.4 * len(seeds) < refused < len(seeds)
    assert len(reasons) > 20


def test_the_good_inputs_pass(tmp_path):
    for form, write in GOOD.items():
        folder = tmp_path / form
        folder.mkdir()
        code, said = check(write(folder))
        assert code == 0, f"{form}: {said}"
        assert is_sane(json.loads(said))


def test_the_command_itself_prints_words(tmp_path, monkeypatch, capsys):
    forms.write_csv(tmp_path)
    (tmp_path / "interactions.csv").write_bytes(b"\x89PNG\r\n\x1a\n\x00\xff")
    monkeypatch.setattr(sys, "argv", ["fudlr", "data", "check", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capsys.readouterr().err
    assert ended.value.code == 1
    assert said.startswith("error: ")
    assert "line 3 holds zero bytes" in said
    assert "Traceback" not in said
