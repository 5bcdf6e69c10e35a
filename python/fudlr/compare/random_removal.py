"""Random removal: what taking out as many samples does, whichever they are."""

from fudlr.compare.base import Point, Rival, Setting
from fudlr.verify import random_removals


def _points(setting: Setting) -> list[Point]:
    share = setting.room / setting.n
    (mask,) = random_removals(setting.n, 1, share, setting.config.seed)
    return setting.retrained([(f"{share:.0%} removed", 1 - mask)], "random removal")


RIVAL = Rival("random removal", "as many samples removed at random; retrained", _points)
