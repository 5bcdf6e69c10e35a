"""The tables of docs/results.md, benchmarks.md and limits.md: a file and a line here make one.

A table is a module with

    PAGE      "results", "benchmarks" or "limits"
    RESULTS   names of its files in benchmarks/results/, without ending
    render(*records) -> list of Markdown lines, from the files' contents in that order
    plot(*records) -> dict of name to matplotlib figure; optional, written to docs/plots/NAME.svg

A table whose files are not there is left out of the page, and said so on the terminal.
"""

from collections.abc import Callable
from types import ModuleType

from tables import (
    bed,
    candidates,
    catalogue,
    closer,
    compare,
    cross_entropy,
    cuda,
    curvature_products,
    curvatures,
    damping,
    early_stop,
    full_parameters,
    gpu,
    lambdas,
    lds,
    llm,
    llm_clean,
    llm_path,
    llm_scorings,
    loop,
    not_differentiable,
    occupations,
    planted,
    record_dims,
    record_kills,
    record_once,
    record_staleness,
    replay,
    row_products,
    scale,
    scoring,
    scoring_memory,
    steering,
    store_stream,
    stream_of_days,
    terms,
)

TABLES: tuple[ModuleType, ...] = (
    loop,
    lds,
    compare,
    record_once,
    record_dims,
    record_staleness,
    record_kills,
    store_stream,
    terms,
    candidates,
    catalogue,
    stream_of_days,
    planted,
    lambdas,
    scale,
    not_differentiable,
    full_parameters,
    bed,
    curvatures,
    closer,
    damping,
    early_stop,
    replay,
    steering,
    occupations,
    scoring,
    curvature_products,
    scoring_memory,
    llm,
    llm_path,
    llm_scorings,
    llm_clean,
    row_products,
    cross_entropy,
)
"""In the order of the pages."""

INSERTS: dict[str, dict[str, tuple[Callable[[dict], list[str]], str]]] = {
    "method": {"bed": (bed.method, "bed")},
    "cuda": {
        "cost of the build": (cuda.built, "cuda_build"),
        "emulated runs": (cuda.emulated, "emu"),
        "static evidence": (cuda.static, "cuda_static"),
        "GPU rows": (gpu.measured, "gpu"),
    },
}
"""Tables inside written pages: page, mark, and the function with its result file.

Where the file is not there, the page says so in the table's place.
"""
