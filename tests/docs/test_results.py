"""docs/results.md says what the result files say, and nothing else in its tables."""

import re

import figures
import pytest
import rows

PAGE = (rows.ROOT / "docs" / "results.md").read_text(encoding="utf-8")
ROWS = {topic.__name__: topic() for topic in figures.TOPICS}
REMOVED = "f4df18f"


@pytest.mark.parametrize("topic", ROWS)
def test_the_page_has_the_files_figures(topic):
    for row in ROWS[topic]:
        assert row in PAGE.splitlines(), f"docs/results.md lacks or misquotes: {row}"


def test_no_row_with_a_figure_is_written_by_hand():
    known = {row for each in ROWS.values() for row in each}
    lines = PAGE.splitlines()
    for place, line in enumerate(lines):
        heading = place + 1 < len(lines) and lines[place + 1].startswith("|---")
        if line.startswith("| ") and re.search(r"\d", line) and not heading:
            assert line in known, f"add the row to tests/docs/figures.py: {line}"


def test_every_result_file_is_named_with_a_script_that_is_there_or_was():
    for path in rows.RESULTS.glob("*.json"):
        script = rows.result(path.stem)["command"].split()[1]
        assert (rows.ROOT / script).is_file() or REMOVED in PAGE, path.name
        name = re.sub("^experiment_.*", "experiment_NAME", path.stem)
        assert re.search(rf"`{name}(\.json)?`", PAGE), f"docs/results.md does not name {path.name}"
