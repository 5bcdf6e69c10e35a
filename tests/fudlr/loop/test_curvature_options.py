"""Every update rule through `fudlr debias`."""

import json

import pytest
from fudlr.cli import app
from fudlr.common.errors import UsageError
from typer.testing import CliRunner


def debiased(run_folder, tmp_path, damping="0.1", **options):
    result = CliRunner().invoke(
        app,
        ["debias", str(run_folder), "--out", str(tmp_path / "r"), "--damping", damping,
         *(word for name, value in options.items() for word in ("--set", f"debias.{name}={value}")),
         "--set", "debias.max_steps=3", "--set", "debias.curve=[]",
         "--set", "debias.heldout=false"],
        catch_exceptions=False,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    return json.loads((tmp_path / "r" / "summary.json").read_text())


@pytest.mark.parametrize("update", ["kept_curvature", "series", "newton"])
def test_other_updates_can_be_chosen(run_folder, tmp_path, update):
    # The series is for an optimum, which this short training is not: a damping makes up for it.
    options = (
        {"curvature": "hessian", "series_order": 2, "damping": "2.0"}
        if update == "series"
        else {"slope": "descend"}
    )
    summary = debiased(run_folder, tmp_path, update=update, **options)
    assert summary["update"]["rule"] == update
    if update == "newton":
        first, second = summary["update"]["newton"]
        assert second["value"] < first["value"]


def test_an_update_without_layers_needs_its_calibration(run_folder, tmp_path):
    for options in (["calibration=0"], ["update=newton"]):
        settings = ["--set", "debias.curvature=kfac", "--set", f"debias.{options[0]}"]
        arguments = ["debias", str(run_folder), "--out", str(tmp_path / "r"), *settings]
        with pytest.raises(UsageError, match="entries between layers"):
            CliRunner().invoke(app, arguments, catch_exceptions=False)
        assert not (tmp_path / "r").exists()
