"""The page says all that the summary holds and what is missing; it is safe and stands alone."""

from __future__ import annotations

import io
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from fudlr.common.errors import DataError
from fudlr.report import (
    ReportData,
    load_report_data,
    print_summary,
    render_report,
    save_report_data,
    write_report,
)
from fudlr.report.cost import stage_rows
from fudlr.report.numbers import label
from fudlr.report.rows import metric_rows, objective_metrics, worse
from fudlr.report.svg import write_svg
from fudlr.report.words import agreement_sentences, headline, worse_sentence
from made_up_run import make_curve, make_mask
from matplotlib.figure import Figure
from polars.testing import assert_frame_equal
from rich.console import Console

VOID = {"meta", "br", "img", "link", "hr", "input"}


class Page(HTMLParser):
    """Checks that elements nest and ids are unique; gathers visible text and references."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.tags: list[str] = []
        self.references: list[str] = []
        self.images: list[str | None] = []
        self.pieces: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []
        self.text = " ".join(" ".join(self.pieces).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        values = dict(attrs)
        if values.get("id"):
            self.ids.append(str(values["id"]))
        self.references += [str(v) for k, v in attrs if k in {"href", "src", "xlink:href"}]
        if values.get("role") == "img" and tag == "svg":
            self.images.append(values.get("aria-label"))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.pieces.append(data)


def test_every_metric_figure_warning_and_setting_is_there(data: ReportData) -> None:
    html = render_report(data)
    page = Page(html)
    for name in data.summary["before"]:
        assert f'data-metric="{name}"' in html
        assert label(name) in page.text
    for figure in ("229.4", "208.3", "209.9", "−9.2%", "−8.5%", "204.1–212.5", "p = 0.002"):
        assert figure in page.text
    for warning in data.summary["warnings"]:
        assert warning in page.text
    assert "would give NDCG@10 0.03120; this model 0.06274 before and 0.06071 after" in page.text
    assert "301.5" in page.text
    for stage in ("Metric gradients", "Sample gradients", "Retraining", "14.7 s", "39%"):
        assert stage in page.text
    for signature in ("small groups", "0.1650", "has 12 of 943", "passed"):
        assert signature in page.text
    for setting in ("debias.objective", "train.learning_rate", "torch", "2.13.0"):
        assert setting in page.text


def test_removed_samples_are_shown_lowest_score_first(
    data: ReportData, without_plots: None
) -> None:
    page = Page(render_report(data))
    best = data.removed.sort("score").row(0, named=True)
    after = page.text[page.text.index("most wants gone") :]
    assert after.index(best["target_title"]) < 200
    assert best["user_id"] in after


def test_page_stands_alone_and_is_well_formed(data: ReportData) -> None:
    html = render_report(data)
    page = Page(html)
    assert html.startswith("<!DOCTYPE html>")
    assert all(reference.startswith("#") for reference in page.references)
    targets = set(re.findall(r"url\(#([^)]+)\)", html)) | {r[1:] for r in page.references}
    assert targets <= set(page.ids)
    assert "http" not in html
    assert "@import" not in html
    assert "script" not in page.tags
    assert len(page.ids) == len(set(page.ids))


def test_plots_have_words_and_both_curves(data: ReportData) -> None:
    images = [str(words) for words in Page(render_report(data)).images]
    assert len(images) == 3
    curve = next(words for words in images if words.startswith("Trade-off"))
    assert "budget 5% measured: ARP 215.8, Validation loss 6.040" in curve
    assert "budget 1% predicted: ARP 225.1" in curve
    assert "budget 1% measured" not in curve


def test_a_drawing_is_the_same_file_each_time(tmp_path):
    for name in ("one", "two"):
        figure = Figure()
        figure.subplots().plot([1, 2], [3, 1], "o")
        write_svg(tmp_path / name, figure)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_text_from_data_stays_text(summary: dict[str, Any]) -> None:
    evil = '<script>alert("x")</script>'
    summary["warnings"] = [evil]
    summary["versions"] = {evil: evil}
    summary["before"][evil] = 1.0
    mask = make_mask().with_columns(
        pl.lit(evil).alias("target_title"), pl.lit(evil).alias("user_id")
    )
    html = render_report(ReportData(summary, mask, make_curve()))
    page = Page(html)
    assert "script" not in page.tags
    assert evil in page.text
    # Also inside the plots, where matplotlib writes the labels.
    assert "<script" not in html


def test_only_what_is_required(tmp_path: Path) -> None:
    least = ReportData(
        {"before": {"arp": 2.0}, "after": {"arp": 1.0}},
        pl.DataFrame({"sample_id": [0, 1], "mask": [1.0, 0.0]}),
    )
    page = Page(write_report(tmp_path, least).read_text(encoding="utf-8"))
    assert "Not measured in this run: retraining" in page.text
    assert "held-out users" in page.text
    assert "by chance" not in page.text.partition("Glossary")[0].lower()
    assert "−50.0%" in page.text


OPTIONAL = ["retrained", "most_popular", "heldout", "null", "intervals", "predicted", "seconds",
            "cost", "config", "versions", "directions", "warnings", "seed"]  # fmt: skip


def test_each_part_may_be_missing(data: ReportData, without_plots: None) -> None:
    for part in OPTIONAL:
        summary = {name: value for name, value in data.summary.items() if name != part}
        page = Page(render_report(ReportData(summary, data.mask, data.curve)))
        assert "ARP" in page.text, part
        assert "None" not in page.text, part


def test_every_part_may_be_none(data: ReportData) -> None:
    summary = {**data.summary, **dict.fromkeys(OPTIONAL)}
    page = Page(render_report(ReportData(summary, data.mask, data.curve)))
    assert "ARP" in page.text
    assert "None" not in page.text


def test_what_is_no_number_is_called_not_measured(data: ReportData, without_plots: None) -> None:
    for value in (math.nan, None, math.inf, "n/a"):
        data.summary["after"]["hr@10"] = value
        row = next(row for row in metric_rows(data.summary) if row.name == "hr@10")
        assert row.after.text == row.change.text == "not measured"
        page = Page(render_report(data))
        assert "not measured" in page.text
        assert not re.search(r"\b(nan|inf)\b", page.text)


def test_mask_columns_may_lack(data: ReportData) -> None:
    for column in set(data.mask.columns) - {"sample_id", "mask"}:
        page = Page(render_report(ReportData(data.summary, data.mask.drop(column), data.curve)))
        assert "most wants gone" in page.text


def test_nothing_removed(data: ReportData, without_plots: None) -> None:
    mask = data.mask.with_columns(pl.lit(0.0).alias("mask"))
    page = Page(render_report(ReportData(data.summary, mask)))
    assert "Nothing was removed: all 2,000 training samples were kept." in page.text


def test_headline_says_what_changed_and_at_what_cost(data: ReportData) -> None:
    assert headline(data) == (
        "Taking out 200 of 2,000 training samples (10%) lowered ARP by 9.4% (better) and lowered "
        "NDCG@10 by 3.4% (within noise) for users that it did not look at, in 39% of the time of "
        "retraining."
    )
    # Without held-out figures, those of everybody, and not a word of held-out users.
    del data.summary["heldout"]
    assert "lowered ARP by 9.2% (better)" in headline(data)
    assert "look at" not in headline(data)


def test_headline_names_every_metric_of_the_objective(data: ReportData) -> None:
    data.summary["config"]["debias"]["objective"] = "arp + 0.5*hellinger"
    assert objective_metrics(data.summary) == [("arp",), ("hellinger",)]
    assert "lowered Hellinger (catalogue) by 4.5%" in headline(data)


def test_lists_come_before_their_catalogue_twin(summary: dict[str, Any]) -> None:
    summary["config"]["data"]["k"] = 5
    summary["config"]["debias"]["objective"] = "hellinger"
    summary["before"] |= {"hellinger@5": 0.2, "hellinger": 0.1}
    summary["after"] |= {"hellinger@5": 0.1, "hellinger": 0.2}
    assert objective_metrics(summary) == [("hellinger@5", "hellinger")]
    kinds = {row.name: row.kind for row in metric_rows(summary)}
    assert kinds["hellinger@5"] == "lists"
    assert kinds["hellinger"] == "catalogue"
    assert kinds["val_loss"] == "other"


def test_what_got_worse_beyond_noise_is_said(data: ReportData, without_plots: None) -> None:
    summary = data.summary
    assert worse(summary) == []
    summary["after"]["gini"] = 0.9
    summary["intervals"]["change"]["gini"] = [0.01, 0.03]
    del summary["heldout"]
    assert worse_sentence(summary) == "Got worse beyond its noise: Gini +2.1%."
    assert "Got worse beyond its noise: Gini +2.1%." in Page(render_report(data)).text
    # Within noise it is not said, nor without an interval.
    summary["intervals"]["change"]["gini"] = [-0.01, 0.03]
    assert worse_sentence(summary) == ""
    summary["intervals"]["change"]["gini"] = None
    assert worse_sentence(summary) == ""


def test_a_sentence_says_how_much_of_retraining_the_update_is(summary: dict[str, Any]) -> None:
    # (208.3 - 229.4) / (209.9 - 229.4) = 1.08
    assert list(agreement_sentences(summary)) == [
        "Retraining without the same samples changed ARP by −8.5%; the update by −9.2% "
        "(1.08 of it)."
    ]
    summary["intervals"]["retrained_change"]["arp"] = [-30.0, 1.0]
    assert "within noise" in next(agreement_sentences(summary))
    del summary["retrained"]
    assert list(agreement_sentences(summary)) == []
    before, after = (summary[state]["arp"] for state in ("before", "after"))
    summary["expected"] = {"arp": [(after - before) * 1.0, (after - before) * 0.71]}
    assert list(agreement_sentences(summary)) == [
        "Retraining without the same samples is expected to change ARP by −9.2% to −6.5% "
        "(90% interval); the update did by −9.2%."
    ]


def test_the_next_step_depends_on_what_is_missing(data: ReportData, without_plots: None) -> None:
    def commands() -> str:
        return Page(render_report(data)).text.partition("All figures")[0]

    assert "fudlr verify" not in commands()
    assert "did not clearly improve" not in commands()
    del data.summary["retrained"]
    assert "fudlr verify" in commands()
    data.summary["heldout"]["intervals"]["change"]["arp"] = [-40.0, 3.0]
    assert "did not clearly improve" in commands()
    assert "Load the adapter" not in commands()


def test_verdict() -> None:
    for direction, after, interval, verdict in (
        ("lower", 1.0, [-1.2, -0.8], "better"),
        ("lower", 3.0, [0.8, 1.2], "worse"),
        ("higher", 3.0, [0.8, 1.2], "better"),
        ("higher", 1.0, None, "worse"),
        ("higher", 1.0, [-1.2, 0.1], "within noise"),
        ("lower", 2.0, None, "unchanged"),
        ("", 1.0, None, ""),
    ):
        summary = {"before": {"m": 2.0}, "after": {"m": after}, "directions": {"m": direction}}
        summary["intervals"] = {"change": {"m": interval}}
        assert metric_rows(summary)[0].change.verdict == verdict


def test_cost_leaves_measuring_out(summary: dict[str, Any]) -> None:
    summary["seconds"] |= {"held-out users": 40.0}
    needed = ["metric gradients", "sample gradients", "solve", "update"]
    summary["cost"] = {"seconds": 5.65, "training_seconds": 99.0, "stages": needed}
    rows = list(stage_rows(summary))
    names = [row.name for row in rows]
    assert names[4:6] == ["The request in all", "Retraining"]
    assert "Held-out users (measuring)" in names[6:]
    assert rows[4].share == "39%"


def test_cost_against_training_where_nothing_was_retrained(data: ReportData) -> None:
    del data.summary["seconds"]["retraining"]
    data.summary["cost"] = {"seconds": 5.0, "training_seconds": 20.0, "stages": []}
    assert headline(data).endswith(", in 25% of the time of training.")


def test_saved_results_make_the_same_report(tmp_path: Path, data: ReportData) -> None:
    data.summary["after"]["hr@10"] = math.nan
    save_report_data(tmp_path, data)
    again = load_report_data(tmp_path)
    assert again.summary["after"]["hr@10"] is None
    assert_frame_equal(again.mask, data.mask)
    assert render_report(again) == render_report(data)


def test_damaged_results_are_refused(tmp_path: Path, data: ReportData) -> None:
    for name in ("summary.json", "mask.parquet", "curve.json"):
        save_report_data(tmp_path, data)
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(DataError, match=name):
            load_report_data(tmp_path)
    (tmp_path / "summary.json").unlink()
    with pytest.raises(DataError, match="finished run"):
        load_report_data(tmp_path)


def test_data_of_another_form_is_refused() -> None:
    for summary, columns, curve, word in (
        ({"before": {}}, ["sample_id", "mask"], [], "after"),
        ({"before": {}, "after": 3}, ["sample_id", "mask"], [], "after"),
        ({"before": {}, "after": {}}, ["sample_id"], [], "mask"),
        ({"before": {}, "after": {}}, ["sample_id", "mask"], [{"budget": 1}], "predicted"),
    ):
        with pytest.raises(DataError, match=word):
            ReportData(summary, pl.DataFrame({name: [0.0] for name in columns}), curve)


def test_terminal_table(summary: dict[str, Any]) -> None:
    console = Console(record=True, width=120, file=io.StringIO())
    print_summary(summary, console)
    text = console.export_text()
    for name in summary["before"]:
        assert name in text
    for piece in ("−9.2%", "209.9", "39% of retraining", "1.08 of it", *summary["warnings"]):
        assert piece in text
