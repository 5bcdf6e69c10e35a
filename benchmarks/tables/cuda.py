"""What is known of the GPU kernels without a GPU: emulated runs, and the compiled code."""

from statistics import median

from tables.shared import machine, rows

ARCHITECTURES = ("sm_80", "sm_90", "sm_100")
NOT_RUN = "not run yet"
ENDED = "ended by a report"


def _cells(record: dict, op: str) -> tuple[str, str, str, str]:
    """What the three variants found of an op, and their seconds."""
    variants = ("plain", "check", "sanitize")
    runs = [record["pieces"].get(f"{variant} {op}") for variant in variants]
    forms = (
        "{disagreements} of {cases} × {schedules}",
        "{races} in {cases}",
        "{disagreements} in {cases}",
    )
    found = (
        NOT_RUN if run is None else ENDED if "crash" in run else form.format(**run)
        for run, form in zip(runs, forms, strict=True)
    )
    times = (f"{run['seconds']:.0f}" if run and "seconds" in run else "–" for run in runs)
    return *found, " / ".join(times)


def built(record: dict) -> list[str]:
    """What compiling for GPUs adds to a build, and what the emulated tests take."""

    def line(name: str, seconds: dict, bar: str) -> tuple[str, str, str, str]:
        return name, f"{seconds['wall']:.0f}", f"{seconds['cpu']:.0f}", bar

    def judged(added: float, bar: float, met: bool) -> str:
        return f"{added:.0f} of at most {bar:.0f} s ({'met' if met else 'missed'})"

    lines = [
        line(f"build, CUDA {cuda}", {key: median(t[key] for t in times) for key in times[0]}, "–")
        for cuda, times in record["builds"].items()
    ]
    added = judged(record["added_seconds"], record["build_bar"], record["build_met"])
    lines.append(("added by CUDA", "", "", added))
    if "tests" in record:
        wall = record["tests"]["wall"]
        bar = judged(wall, record["tests_bar"], record["tests_met"])
        lines.append(line("emulated tests (`tests/emu`)", record["tests"], bar))
    longest = sorted(record["sources"].items(), key=lambda item: -item[1])
    return [
        "",
        machine(record),
        "",
        f"Builds in fresh clones, in turn; medians of {len(record['builds']['ON'])} of each.",
        "",
        *rows(("what", "wall, s", "CPU, s", "bar"), lines),
        "",
        "Of single files, wall seconds beside another one: "
        + ", ".join(f"{name} {seconds:.0f}" for name, seconds in longest)
        + ".",
        "",
    ]


def emulated(record: dict) -> list[str]:
    """What every variant found of every op, and the traffic of the fused products kernel."""
    found = [op for op in record["ops"] if op not in record["without_kernel"]]
    traffic = [
        (
            f"{row['shape']}, {row['dtype'].removeprefix('torch.')}",
            row["must_bytes"],
            row["moved_bytes"],
            f"{row['ratio']:.3f} ({'met' if row['ratio'] <= record['asked_ratio'] else 'missed'})",
        )
        for row in record["traffic"]
    ]
    head = (
        "op",
        "disagreements, cases × schedules",
        "races, cases",
        "sanitizer reports, cases",
        "seconds of the three",
    )
    return [
        "",
        machine(record),
        "",
        *rows(head, ((f"`{op}`", *_cells(record, op)) for op in found)),
        "",
        "`sample_dots`, bytes of global memory: what it must move (factors, vectors and products "
        "once), and the 32-byte sectors that its warps asked for; at most "
        f"{record['asked_ratio']:g} times as many are wanted.",
        "",
        *rows(("case", "must move", "asked for", "ratio"), traffic),
        "",
    ]


def static(record: dict) -> list[str]:
    """Every kernel on every architecture."""
    table = record["kernels"]
    body = []
    for name in dict.fromkeys(row["kernel"] for row in table):
        of = [row for row in table if row["kernel"] == name]
        keys = ("registers", "shared", "wide_loads", "tensor")
        cells = [" / ".join(str(row[key]) for row in of) for key in keys]
        share = " / ".join(f"{row['occupancy']:.0%}" for row in of)
        body.append((f"`{name}`", cells[0], cells[1], share, *cells[2:]))
    head = ("kernel", "registers", "shared, bytes", "occupancy", "128-bit loads", "tensor products")
    return [
        "",
        machine(record),
        "",
        f"On {' / '.join(ARCHITECTURES)}; no kernel spills on any of them.",
        "",
        *rows(head, body),
        "",
    ]
