"""How much of the unrolled update's change real retraining makes: an interval for requests to come.

    python benchmarks/error_bar.py

Reads the requests of results/unrolled.json, each really retrained. Retraining's shares of
the update's change of the steered surrogate are taken as drawn from one normal distribution; the
interval of a further one is mean ± t s √(1 + 1/n), 90%. Its coverage is counted on requests of
trainings that it was not made from: each training is left out in turn. Requests whose update warns
that the loss bends otherwise get no interval, and are left out. Writes
benchmarks/results/error_bar.json, whose interval `fudlr.debias.expected.SHARES` has.
"""

import json
import statistics
from math import sqrt

from common import RESULTS, write_result
from fudlr.diagnostics.update import BENT
from scipy.stats import t as student

LEVEL = 0.9


def interval(shares: list[float]) -> tuple[float, float]:
    n = len(shares)
    reach = float(student.ppf((1 + LEVEL) / 2, n - 1)) * statistics.stdev(shares) * sqrt(1 + 1 / n)
    return statistics.mean(shares) - reach, statistics.mean(shares) + reach


def main() -> None:
    trainings = json.loads((RESULTS / "unrolled.json").read_text())["trainings"]
    shares = {
        name: [
            1 / request["change_of_retraining"]
            for seed in seeds.values()
            for request in seed["unrolled"].values()
            if request["bend"] <= BENT
        ]
        for name, seeds in trainings.items()
    }
    shares = {name: own for name, own in shares.items() if own}
    covered = {}
    for name, own in shares.items():
        low, high = interval([x for other, xs in shares.items() if other != name for x in xs])
        inside = sum(low <= share <= high for share in own)
        covered[name] = {"interval": [low, high], "inside": inside, "of": len(own)}
    every = [share for own in shares.values() for share in own]
    inside = sum(each["inside"] for each in covered.values())
    write_result(
        RESULTS / "error_bar.json",
        "python benchmarks/error_bar.py",
        level=LEVEL,
        shares=shares,
        interval=interval(every),
        left_out=covered,
        coverage=inside / len(every),
    )


if __name__ == "__main__":
    main()
