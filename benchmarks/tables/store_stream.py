"""Products with a store that is streamed from disk."""

from tables.shared import machine, rows

PAGE = "results"
RESULTS = ("store_stream",)


def render(record: dict) -> list[str]:
    """What a request's product takes beside reading alone."""
    found, bandwidth = record["request"], record["bandwidth"]
    body = [
        ("product with four vectors, from disk", found["gram_from_disk_gb_per_s"]),
        ("reading the files from disk, turn by turn with it", found["disk_gb_per_s"]),
        ("product with four vectors, from the page cache", found["gram_gb_per_s"]),
        ("dot products, from the page cache", found["dots_gb_per_s"]),
        ("weighted sum, from the page cache", found["sum_gb_per_s"]),
        ("reading the files from the page cache", bandwidth["read_gb_per_s"]),
        ("summing an array in memory", bandwidth["memory_gb_per_s"]),
    ]
    return [
        "## A store larger than memory",
        "",
        f"A store of {record['store_gb']:.1f} GB in bfloat16, read in windows. From disk the "
        f"product runs at {record['share_of_disk_bandwidth']:.0%} of the speed of reading the "
        f"files alone (asked: 60%), and the process never held more than {found['peak_gb']:.2f} GB "
        "(asked: 4). The first product, which compares every shard with its checksum, took "
        f"{found['first_gram_seconds_with_checksums']:.1f} s from the page cache. There the four "
        "vectors' multiply-adds are the limit, not memory.",
        "",
        machine(record),
        "",
        *rows(("", "GB/s"), ((name, f"{value:.2f}") for name, value in body)),
    ]
