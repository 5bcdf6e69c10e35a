"""What is known of the GPU kernels without a GPU: emulated runs, and the compiled code."""

from tables.shared import machine, rows

ARCHITECTURES = ("sm_80", "sm_90", "sm_100")
NOT_RUN = "not run yet"


def _cells(record: dict, op: str) -> tuple[str, str, str]:
    """What the three variants found of an op."""
    plain, check, sanitize = (
        record["pieces"].get(f"{variant} {op}") for variant in ("plain", "check", "sanitize")
    )
    return (
        f"{plain['disagreements']} of {plain['cases']} × {plain['schedules']}"
        if plain
        else NOT_RUN,
        f"{check['races']} in {check['cases']}" if check else NOT_RUN,
        f"{sanitize['disagreements']} in {sanitize['cases']}" if sanitize else NOT_RUN,
    )


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
    head = ("op", "disagreements, cases × schedules", "races, cases", "sanitizer reports, cases")
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
