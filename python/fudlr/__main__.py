"""The `fudlr` command, which says so where the libraries that it needs are not installed."""

import sys

from fudlr import MISSING


def main() -> None:
    """Run the command line."""
    try:
        from fudlr.cli import main as run  # noqa: PLC0415  (the engine is installed without it)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in ("fudlr", "fudlr_ext"):
            raise
        sys.exit(MISSING.format(error.name))
    run()


if __name__ == "__main__":
    main()
