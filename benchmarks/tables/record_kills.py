"""Kills of real recordings, each resumed and compared with an undisturbed one."""

from tables.shared import machine, rows

PAGE = "results"
RESULTS = ("record_kills",)
NAMES = {
    "record": "`fudlr record`, started again",
    "loop": "a loop of one's own with a `Recorder`, from the same checkpoint",
    "train": "`fudlr train`, from the beginning",
}


def render(record: dict) -> list[str]:
    """One row a kind of process."""

    def line(kind: str) -> list:
        found = [each for each in record["rounds"] if each["process"] == kind]
        equal = all(each["content_equal"] and each["files_equal"] for each in found)
        stored = [n for each in found for n in each["rows_stored_after_each_kill"]]
        return [
            NAMES[kind],
            len(found),
            sum(each["kills"] for each in found),
            sum(each["kills_with_a_file_in_the_making"] for each in found),
            sum(0 < n < found[0]["rows"] for n in stored),
            "equal, byte for byte" if equal else "different",
        ]

    head = ("process", "stores", "kills", "a file in the making", "a part stored", "in the end")
    return [
        "## Kills of recordings",
        "",
        "SIGKILL at random moments of real recordings on the demo's small data, each resumed to "
        "the end, in every second store on a disk made slow; then content and all files against "
        "an undisturbed recording's.",
        "",
        machine(record),
        "",
        *rows(head, (line(kind) for kind in record["kills"])),
    ]
