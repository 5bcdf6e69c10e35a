"""What `make gpu-check` makes of what it finds: a GPU that fails is seen, whatever the part."""

import json
import os
import sys
import time

import gpu_check
import polars as pl
import pytest


@pytest.fixture
def check(tmp_path):
    found = gpu_check.Check(tmp_path / "check.json", rehearse=False, end=time.monotonic() + 60)
    found.folder.mkdir()
    return found


def written(check):
    return json.loads(check.out.read_text())["parts"]


def test_a_part_that_fails_says_why_and_the_others_go_on(check, monkeypatch, capsys):
    def works(*given):
        return {"figure": 1}

    def fails(check, python):
        code = "import sys; print('the device says no'); sys.exit(3)"
        check.run("tests", [sys.executable, "-c", code], 20)

    monkeypatch.setattr(gpu_check, "demo_command", lambda *given: [sys.executable, "-c", ""])
    for name in ("install", "request", "rates", "compare_demos"):
        monkeypatch.setattr(gpu_check, name, works)
    monkeypatch.setattr(gpu_check, "tests", fails)
    assert not gpu_check.run(check, sys.executable)
    parts = written(check)
    assert {name: part["passed"] for name, part in parts.items()} == {
        "install": True, "tests": False, "demo": True, "request": True, "rates": True,
    }  # fmt: skip
    assert parts["tests"]["why"] == "exit code 3"
    assert "the device says no" in parts["tests"]["log"]
    assert "FAIL  tests" in capsys.readouterr().out
    monkeypatch.setattr(gpu_check, "tests", works)
    assert gpu_check.run(check, sys.executable)


def test_without_an_installation_nothing_goes_on(check, monkeypatch):
    monkeypatch.setattr(gpu_check, "runs", lambda python, code: True)
    assert not gpu_check.run(check, sys.executable)  # no GPU here, or none that torch can use
    parts = written(check)
    assert list(parts) == ["install"]
    assert parts["install"]["why"].startswith("the GPU would not be used: this torch")


@pytest.mark.parametrize("libraries", [True, False])
def test_where_the_libraries_are_nothing_is_fetched(check, monkeypatch, tmp_path, libraries):
    """The native library is built where it lies, for the GPU that is there."""
    said = []
    for name in ("nvidia-smi", "nvcc"):
        (tmp_path / name).write_text("#!/bin/sh\necho 9.0\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(gpu_check.os, "environ", dict(os.environ))
    monkeypatch.setattr(gpu_check, "runs", lambda _, code: libraries and "devices" not in code)
    monkeypatch.setattr(check, "run", lambda name, command, *_, **__: said.append(command))
    python = gpu_check.Path(sys.executable)
    with pytest.raises(gpu_check.Failed, match="the GPU would not be used"):
        gpu_check.install(check, python)
    ((first, *rest),) = said
    assert (first, "build_ext" in rest) == ((python, True) if libraries else ("make", False))
    assert gpu_check.os.environ["FUDLR_CUDA_GPUS"] == "90"


def test_a_command_that_takes_too_long_is_ended(check):
    check.left = lambda most: 0.2
    part = check.part("slow", lambda: check.run("slow", ["sleep", "60"], 60))
    assert not part
    assert "was not done" in written(check)["slow"]["why"]


CASES = {
    "passed": '<testcase classname="a" name="b"/>',
    "failed": '<testcase classname="a" name="bad"><failure message="x"/></testcase>',
    "broken": '<testcase classname="a" name="bad"><error message="x"/></testcase>',
    "skipped": '<testcase classname="a" name="c"><skipped message="no CUDA device"/></testcase>',
}


@pytest.mark.parametrize(
    ("cases", "why"),
    [
        (["passed", "skipped"], ""),
        (["passed", "failed"], "a.bad"),
        (["passed", "broken"], "a.bad"),
        (["skipped"], "no test ran .*no CUDA device"),
        ([], "no test ran"),
    ],
)
def test_tests_are_read(tmp_path, cases, why):
    report = tmp_path / "tests.xml"
    report.write_text(f"<testsuites><testsuite>{''.join(CASES[c] for c in cases)}"
                      "</testsuite></testsuites>")  # fmt: skip
    if why:
        with pytest.raises(gpu_check.Failed, match=why):
            gpu_check.judge_tests(report)
    else:
        found = gpu_check.judge_tests(report)
        assert found == {"passed_tests": 1, "failed": 0, "skipped": 1}
    if cases == ["skipped"]:
        assert gpu_check.judge_tests(report, rehearse=True)["skipped"] == 1


def result(folder, device, removed, after):
    folder.mkdir()
    pl.DataFrame({"sample_id": range(1000), "mask": [int(i in removed) for i in range(1000)]}
                 ).write_parquet(folder / "mask.parquet")  # fmt: skip
    summary = {"before": {"arp": 100.0}, "after": {"arp": after}, "cost": {"seconds": 1.0},
               "device": {"device": device, "way": "fused"}}  # fmt: skip
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


@pytest.mark.parametrize(
    ("device", "removed", "after", "why"),
    [
        ("cuda:0", range(100), 90.0, ""),
        ("cuda:0", range(5, 105), 90.19, ""),  # 99% and 1.9%, both still right
        ("cuda:0", range(6, 106), 90.0, "agree on 98.80%"),
        ("cuda:0", range(100), 90.21, "2.1% apart"),
        ("cuda:0", range(100), 110.0, "200.0% apart"),
        ("cuda:0", range(100), float("nan"), "nan"),
        ("cpu", range(100), 90.0, r"they are of \['cpu', 'cpu'\]"),
    ],
)
def test_pairs_are_judged(tmp_path, device, removed, after, why):
    pair = (result(tmp_path / "a", "cpu", range(100), 90.0),
            result(tmp_path / "b", device, removed, after))  # fmt: skip
    if why:
        with pytest.raises(gpu_check.Failed, match=why):
            gpu_check.judge_pair(*pair)
    else:
        assert gpu_check.judge_pair(*pair)["same_mask"] >= 0.99


@pytest.mark.parametrize("after", [90.0, 80.0])
def test_demos_say_how_far_their_trainings_agree(check, after):
    for device, loss, arp in (("cpu", 2.0, 90.0), ("cuda", 2.002, after)):
        folder = check.folder / f"demo-{device}"
        (folder / "run").mkdir(parents=True)
        (folder / "run" / "train.json").write_text(json.dumps({"losses": [9.0, loss]}))
        result(folder / "arp", device, range(100), arp)
    if after == 90.0:
        found = gpu_check.compare_demos(check, sys.executable)
        assert found["losses_apart"] == pytest.approx(1e-3)
    else:
        with pytest.raises(gpu_check.Failed, match=r"100.0% apart .*are 1.0e-03 apart"):
            gpu_check.compare_demos(check, sys.executable)


ROW = {"op": "row_dots", "size": "7 × 9", "dtype": "float32"}


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        ([{**ROW, "seconds": {"ours": 1}, "faster_than": {"plain": 2.0}}], ""),
        ([{**ROW, "seconds": {"ours": 1}}, {**ROW, "failed": "WrongAnswer: off by 3e-1"}],
         "1 of 2 rows: row_dots.*off by 3e-1"),
        ([{**ROW, "not_measured": "out of memory"}], "none measured"),
        ([], "none measured"),
    ],
)  # fmt: skip
def test_rates_are_read(tmp_path, rows, why):
    report = tmp_path / "rates.json"
    with pytest.raises(gpu_check.Failed, match="nothing was measured"):
        gpu_check.judge_rates(report)
    report.write_text(json.dumps({"results": rows}))
    if why:
        with pytest.raises(gpu_check.Failed, match=why):
            gpu_check.judge_rates(report)
    else:
        assert gpu_check.judge_rates(report)["slower_than_torch"] == []
