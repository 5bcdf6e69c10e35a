"""A mask and an adapter for each occupation: whose lists profit from a mask of their own?

fudlr train --data ml-100k --out run
python examples/occupations.py run                 # or another run, and a user column of its data
"""

from __future__ import annotations

import sys

import fudlr
from fudlr.groups import debias_groups, sets_of_column


def main(folder: str, column: str = "occupation", objective: str = "arp") -> None:
    run = fudlr.load_run(folder)
    sets = sets_of_column(run.interactions, column)
    config = run.config.debias.model_copy(update={"objective": objective, "budget": 0.05})
    found = debias_groups(run, sets, config)
    key = f"{objective}_soft"
    print("users  own mask  95% interval       everyone's  overlap  set")
    for one in found.found:
        first = one.before[key]
        _, low, high = one.change[key]
        own, shared = one.after[key] / first - 1, one.shared[key] / first - 1
        print(
            f"{one.users[1]:5d}  {own:+8.1%}  {low / first:+7.1%} to {high / first:+7.1%}"
            f"  {shared:+10.1%}  {found.overlap(one):7.2f}  {one.name}"
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
