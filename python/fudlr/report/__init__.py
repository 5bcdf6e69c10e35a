"""The report of a run for a person: one self-contained page, and a table on the terminal.

It knows summaries and tables, never tensors of the model, so that it can be made again from the
files of a finished run: `write_report(folder, load_report_data(folder))`.
"""

from fudlr.report.data import ReportData, load_report_data, save_report_data
from fudlr.report.page import model_card, render_report, write_report
from fudlr.report.terminal import print_checks, print_summary

__all__ = [
    "ReportData",
    "load_report_data",
    "model_card",
    "print_checks",
    "print_summary",
    "render_report",
    "save_report_data",
    "write_report",
]
