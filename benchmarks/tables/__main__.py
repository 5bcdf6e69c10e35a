"""Write docs/results.md, docs/limits.md and the tables inside other pages from the result files.

    python benchmarks/tables [--check]

With --check nothing is written; exit code 1 where a page is not what the files give.
"""

import argparse
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

from tables import INSERTS, TABLES  # noqa: E402
from tables.shared import save_plot  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
DOCS = ROOT / "docs"
INTRODUCTION = Path(__file__).parent / "pages"


def page(name: str, draw: bool) -> str:
    """The page `name`: its introduction, then every table of it whose files are there."""
    lines = [(INTRODUCTION / f"{name}.md").read_text(encoding="utf-8").rstrip(), ""]
    for table in TABLES:
        if name != table.PAGE:
            continue
        paths = [RESULTS / f"{each}.json" for each in table.RESULTS]
        missing = [path.name for path in paths if not path.is_file()]
        if missing:
            print(f"{table.__name__}: left out, {', '.join(missing)} is not there")
            continue
        records = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
        lines += [*table.render(*records), ""]
        if draw and hasattr(table, "plot"):
            for plot, figure in table.plot(*records).items():
                save_plot(figure, DOCS / "plots" / f"{plot}.svg")
    return "\n".join(lines).rstrip() + "\n"


def inserted(name: str) -> str:
    """The page `name` with its marked tables made anew; what stands around them stays."""
    text = (DOCS / f"{name}.md").read_text(encoding="utf-8")
    for mark, (table, results) in INSERTS[name].items():
        start, end = f"<!-- {mark}: made by python benchmarks/tables -->", f"<!-- end of {mark} -->"
        before, found, rest = text.partition(start)
        _, closed, after = rest.partition(end)
        if not (found and closed):
            raise SystemExit(f"docs/{name}.md has no place marked for the table {mark}")
        path = RESULTS / f"{results}.json"
        lines = ["", f"Not measured yet: `benchmarks/results/{path.name}` is not there.", ""]
        if path.is_file():
            lines = table(json.loads(path.read_text(encoding="utf-8")))
        text = "\n".join([before + start, *lines, end + after])
    return text


def main() -> int:
    """Write the pages, or compare them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    stale = []
    texts = {name: page(name, draw=not check) for name in ("results", "benchmarks", "limits")}
    texts |= {name: inserted(name) for name in INSERTS}
    for name, text in texts.items():
        path = DOCS / f"{name}.md"
        if check and (not path.is_file() or path.read_text(encoding="utf-8") != text):
            stale.append(path.name)
        elif not check:
            path.write_text(text, encoding="utf-8")
    if stale:
        print(f"not what the result files give: {', '.join(stale)}; run python benchmarks/tables")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
