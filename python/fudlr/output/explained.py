"""Explained recommendations as a section of a result's report."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from fudlr.query import Answers, answer_tables
from fudlr.report import ReportData, load_report_data, save_report_data, write_report
from fudlr.report.page import explained
from fudlr.run import Run
from fudlr.run.binding import check_result


def check_report(result: Path, run: Run) -> ReportData:
    """The result's data; refuse before long work one of another run.

    Raises:
        DataError: It is none, damaged, or was made from something else.
    """
    data = load_report_data(result)
    asked = f"the report of {result} was to be added to"
    check_result(asked, data.summary.get("binding"), run.identity())
    return data


def add_to_report(result: Path, answers: Answers, count: int) -> None:
    """Write the strongest `count` samples of each side into the summary, and the report again; an
    earlier table of the same title is replaced."""
    data = check_report(result, answers.run)
    tables = {each["title"]: each["rows"] for each in explained(data.summary)}
    tables |= dict(answer_tables(answers, count))
    known = [{"title": title, "rows": rows} for title, rows in tables.items()]
    data = replace(data, summary={**data.summary, "explained": known})
    save_report_data(result, data)
    write_report(result, data)
