"""JSON files that were written here, held to a form: what is damaged is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from fudlr.common.errors import DataError

T = TypeVar("T")


def read_json(path: Path, form: type[T], remedy: str = "Restore it, or make it again") -> T:
    """Read what `write_json` wrote, and hold it to a form.

    Args:
        path: A regular file.
        form: A pydantic model or a type such as `dict[str, Any]`; what a model does not name is
            left out.
        remedy: What to do about a file that cannot be read.

    Raises:
        DataError: The file is missing, no regular file, no JSON, has a key twice, NaN, or another
            form; with its place in the file.
    """
    asked = f"{path} was to be read"
    try:
        if not path.is_file() and path.exists():
            raise DataError(asked, "it is no regular file", remedy)
        value = json.loads(
            path.read_bytes(), parse_constant=_no_constant, object_pairs_hook=_distinct
        )
        return TypeAdapter(form).validate_python(value, strict=True)
    except OSError as error:
        raise DataError(asked, error.strerror or "it cannot be read", remedy) from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "it"
        found = f"{place}: {first['msg'].lower().removeprefix('value error, ')}"
        raise DataError(asked, f"it has not the form expected ({found})", remedy) from error
    except (ValueError, RecursionError) as error:
        reason = "nested too deep" if isinstance(error, RecursionError) else str(error)
        raise DataError(asked, f"it is damaged ({reason})", remedy) from error


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"a key twice: {next(n for n in names if names.count(n) > 1)!r}")
    return values
