"""Table rows of docs/results.md about commands as a whole: what they cost and survive."""

from __future__ import annotations

from rows import result, row


def hostile() -> list[str]:
    found = result("hostile_disk")["disturbances"]
    names = {
        "full": "full disk",
        "read-only": "read-only disk, or no permission",
        "output": "stdout is full",
        "interrupt": "SIGINT, SIGTERM, SIGHUP",
        "kill": "SIGKILL",
    }
    return [row(name, found[key]["attempts"], found[key]["wrong"]) for key, name in names.items()]


def wait() -> list[str]:
    found = result("wait")
    cpu, known = found["cpu_seconds"], found["request_cpu_seconds"]
    parts = [
        ("the request's own stages", known),
        ("figures before and after", cpu["evaluate before"] + cpu["evaluate after"]),
        ("updates of the curve and for held-out users", cpu["further updates"]),
        ("figures of the trade-off curve", cpu["trade-off curve"]),
        ("figures of held-out users", cpu["held-out users"]),
        ("intervals", cpu["intervals"]),
        ("the whole command", found["command_cpu_seconds"]),
    ]
    return [row(name, f"{value:.1f}", f"{value / known:.2f}") for name, value in parts]


def startup() -> list[str]:
    cpu = result("startup")["cpu_seconds"]
    imports = cpu["libraries"]
    parts = [
        ("Python alone", cpu["python"]),
        ("`import typer`", cpu["typer"]),
        ("`fudlr --help`", cpu["help"]),
        ("importing torch, transformers and peft", imports),
        ("importing its other modules", cpu["modules"] - imports),
        ("the request with all its figures", cpu["request"]),
        ("reading the run, writing the result", cpu["debias"] - cpu["modules"] - cpu["request"]),
        ("`fudlr debias`", cpu["debias"]),
    ]
    return [row(name, f"{value:.2f}", f"{value / imports:.2f}") for name, value in parts]
