"""The rows of benchmarks/gpu.py in small, on the CPU and, with -m gpu, on a GPU: all ways agree."""

import importlib
import json
import math
import sys
from pathlib import Path

import pytest
import torch

from fudlr_ext import _C

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"
FAMILIES = ("rows", "catalogues", "heads", "attention", "trunk", "samples")
DEVICES = ("cpu", pytest.param("cuda", marks=pytest.mark.gpu))
RATES = {"bytes_per_second": 1e9} | {
    f"operations_per_second_torch.{name}": 1e9 for name in ("float32", "bfloat16", "float16")
}


@pytest.fixture(scope="module")
def bench():
    """benchmarks/ as gpu.py sees it; its modules are forgotten afterwards."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield importlib.import_module
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", "")).startswith(f"{BENCHMARKS}/"):
            del sys.modules[name]


@pytest.fixture
def gpu(bench):
    return bench("gpu")


def ready(device):
    if device == "cuda" and not (torch.cuda.is_available() and "cuda" in _C.devices()):
        pytest.skip("no CUDA device is at hand, or the library has no GPU kernels")


def test_the_table_of_families_is_what_is_tested(bench):
    assert tuple(bench("gpu_cases").FAMILIES) == FAMILIES


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("family", FAMILIES)
def test_all_ways_of_every_row_agree(bench, family, device):
    ready(device)
    measure = bench("gpu_cases.measure")
    for case in bench("gpu_cases").cases(family, small=True):
        ways = case.build(device)
        if device == "cpu" and case.cpu_refuses:
            with pytest.raises(ValueError, match="float32"):
                ways.timed["ours"]()
            continue
        errors, left_out = measure.differences(case, ways.compared)
        assert not left_out, f"{case}: {left_out}"
        assert errors.keys() == ways.timed.keys() >= {"ours", "plain"}, str(case)


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_are_told_apart_and_have_their_numbers(bench, gpu, family):
    """Of the sizes that are measured, none of which is made here."""
    seen = set()
    for case in bench("gpu_cases").cases(family):
        assert str(case) not in seen
        seen.add(str(case))
        assert case.work.bytes > 0, str(case)
        assert case.work.operations > 0, str(case)
        facts = gpu.facts(family, case)
        assert json.loads(json.dumps(facts))["shape"] == json.loads(json.dumps(case.shape))
    small = [str(case) for case in bench("gpu_cases").cases(family, small=True)]
    assert small == [str(case) for case in bench("gpu_cases").cases(family)]


def test_every_op_has_rows(bench):
    """Every schema, a backward by autograd's name for it."""
    measured = {
        case.op.partition(",")[0]
        for family in FAMILIES
        for case in bench("gpu_cases").cases(family)
    }
    names = {
        "catalogue_mean_backward": "catalogue_mean and backward",
        "linear_cross_entropy_backward": "linear_cross_entropy and both gradients",
    }
    schemas = (schema.name.partition("::") for schema in torch._C._jit_get_all_schemas())
    ops = {op for library, _, op in schemas if library in ("fudlr", "fudlr_grad", "fudlr_trunk")}
    assert {names.get(op, op) for op in ops} <= measured


# What a formula gives, counted by hand for a few numbers.
COUNTED = {
    # 7 rows of 128 numbers, 2 vectors and their products.
    "row_dots, 300,000 × 2,048, 8 vectors, float32": (3584 + 1080, 3584),
    # 3 users, 21 items of 8 numbers, 4 columns: E, h, C, mean and lse; scores and p C.
    "catalogue_mean, 100,000 items × 4,096, float32": (672 + 96 + 336 + 60, 1008 + 504),
    # 2 samples of 5 positions, 4 heads and 1 key head of 4 numbers, 2 tangents: rows of 160 and of
    # 40 numbers; 15 pairs a sample, 9 products of 8 operations.
    "attention_tangent, Llama 1B, float32": (4 * (5 * 160 + 6 * 40), 2 * 15 * 4 * 9 * 8),
}


def test_formulas_give_what_was_counted_by_hand(bench):
    found = {
        str(case): (case.work.bytes, case.work.operations)
        for family in FAMILIES
        for case in bench("gpu_cases").cases(family, small=True)
    }
    assert {name: found[name] for name in COUNTED} == COUNTED


def first(bench, family="rows"):
    return next(bench("gpu_cases").cases(family, small=True))


def test_a_row_can_be_written(bench, gpu):
    case = first(bench)
    row = gpu.row_of("rows", case, "cpu", RATES, lambda way: way() is None or 0.5)
    row = json.loads(json.dumps(row, allow_nan=False))
    assert row["seconds"]["ours"]["median"] == row["seconds"]["plain"]["most"]
    assert row["faster_than"] == {"plain": 1.0}
    assert math.isclose(row["share_of_copy"], row["bytes"] / row["seconds"]["ours"]["median"] / 1e9)
    assert "MB" not in gpu.line_of(row)


def test_a_wrong_answer_is_not_timed(bench, gpu):
    case, called = first(bench), []
    ways = case.build("cpu")
    for wrong in (
        lambda: ways.timed["plain"]() * 1.001,
        lambda: ways.timed["plain"]() * math.nan,
        lambda: ways.timed["plain"]()[:-1],
    ):
        ways.timed["ours"] = wrong
        object.__setattr__(case, "build", lambda device: ways)
        row = gpu.row_of("rows", case, "cpu", RATES, called.append)
        assert row["failed"].startswith("WrongAnswer"), row
    assert not called


def test_a_wrong_rival_is_left_out_and_said(bench, gpu):
    case = first(bench)
    ways = case.build("cpu")
    ways.timed["other"] = lambda: ways.timed["plain"]() + 1
    object.__setattr__(case, "build", lambda device: ways)
    row = gpu.row_of("rows", case, "cpu", RATES, lambda way: way() is None or 0.5)
    assert row["left_out"]["other"].startswith("off by")
    assert row["seconds"].keys() == {"ours", "plain"}


def run(monkeypatch, gpu, *options):
    monkeypatch.setattr(sys, "argv", ["gpu.py", *options])
    try:
        gpu.main()
    except SystemExit as end:
        return end.code
    return 0


def test_without_a_gpu_nothing_is_measured(monkeypatch, gpu, capsys, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(gpu, "RESULT", tmp_path / "gpu.json")
    assert run(monkeypatch, gpu) == 0
    assert capsys.readouterr().out == "gpu: no CUDA device is at hand, so nothing was measured\n"
    assert not list(tmp_path.iterdir())


def test_the_list_has_every_row(monkeypatch, bench, gpu, capsys):
    assert run(monkeypatch, gpu, "--list") == 0
    listed = capsys.readouterr().out
    for family in FAMILIES:
        for case in bench("gpu_cases").cases(family):
            assert f"{case}: " in listed


def test_rows_of_other_families_stay(monkeypatch, gpu, tmp_path, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(gpu, "describe", lambda: {"commit": "a"})
    out = tmp_path / "gpu.json"
    for family in ("heads", "rows", "heads"):
        options = ("--small", "--only", family, "--out", str(out), "--minutes", "0")
        assert run(monkeypatch, gpu, *options) == 0
    rows = json.loads(out.read_text())["results"]
    assert [row["family"] for row in rows] == ["rows"] * 27 + ["heads"] * 24
    assert {row["not_measured"] for row in rows} == {"no time was left"}
    monkeypatch.setattr(gpu, "describe", lambda: {"commit": "b"})
    assert run(monkeypatch, gpu, *options) == 0
    rows = json.loads(out.read_text())["results"]
    assert {row["family"] for row in rows} == {"heads"}, "another commit's rows were kept"


def test_where_the_device_is_lost_a_new_process_goes_on(monkeypatch, gpu, tmp_path, capsys):
    def broken(*_):
        raise RuntimeError("an illegal memory access was encountered\nand more")

    begun = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(gpu, "measure", broken)
    monkeypatch.setattr(gpu, "is_lost", lambda device: True)
    monkeypatch.setattr(gpu.os, "execv", lambda program, command: begun.append(command))
    monkeypatch.setattr(gpu, "describe", lambda: {"commit": "a"})
    out = tmp_path / "gpu.json"
    options = ("--small", "--only", "rows", "catalogues", "heads", "--out", str(out))
    assert run(monkeypatch, gpu, *options) == 1
    assert begun[0][2:5] == ["--only", "catalogues", "heads"]
    row, *rest = json.loads(out.read_text())["results"]
    assert row["failed"] == "RuntimeError: an illegal memory access was encountered"
    assert len(rest) == 26
    assert {each["not_measured"] for each in rest} == {"the device was lost"}


def test_the_page_has_a_table_where_there_are_results(monkeypatch, bench, gpu, tmp_path):
    tables = bench("tables.__main__")
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    monkeypatch.setattr(tables, "DOCS", tmp_path)
    inserts = {"GPU rows": tables.INSERTS["cuda"]["GPU rows"]}
    monkeypatch.setattr(tables, "INSERTS", {"cuda": inserts})
    marks = "<!-- GPU rows: made by python benchmarks/tables -->\n<!-- end of GPU rows -->\n"
    (tmp_path / "cuda.md").write_text(f"before\n{marks}after\n", encoding="utf-8")
    assert "Not measured yet" in tables.inserted("cuda")
    cases = list(bench("gpu_cases").cases("rows", small=True))
    row = gpu.row_of("rows", cases[1], "cpu", RATES, lambda way: way() is None or 0.5)
    rows = [
        row | {"peak_bytes": {"ours": 3_000_000, "plain": 9_000_000}},
        gpu.facts("rows", cases[2]) | {"failed": "WrongAnswer: off by 1"},
    ]
    record = {
        "command": "python benchmarks/gpu.py", "machine": gpu.describe(), "limits": RATES,
        "gpu": {"name": "A made-up GPU", "bytes": 1 << 30}, "results": rows,
    }  # fmt: skip
    (tmp_path / "gpu.json").write_text(json.dumps(record), encoding="utf-8")
    page = tables.inserted("cuda")
    assert page.startswith("before\n")
    assert page.endswith("after\n")
    assert "On A made-up GPU, 1 GiB" in page
    name = "300,000 × 2,048, 1 vector"
    assert (
        f"| `row_dots` | {name} | bfloat16 | 500 | 0% | 0% | 1.00 | 1.00 (plain) | 3 | 9 |" in page
    )
    assert f"- `row_dots`, {name}, int8: failed, WrongAnswer: off by 1" in page
