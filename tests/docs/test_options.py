"""docs/options.md is what `python -m fudlr.config` makes of the configuration."""

from pathlib import Path

from fudlr.config import field_names
from fudlr.config.__main__ import page

PAGE = Path(__file__).parents[2] / "docs" / "options.md"


def test_the_options_page_is_current():
    made = page()
    assert PAGE.read_text(encoding="utf-8") == made, "run `make docs`"
    lacking = [name for name in field_names() if "." in name and f"`{name}`" not in made]
    assert not lacking
