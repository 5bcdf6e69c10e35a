"""The emulator notices seeded bugs, and nothing where there is none."""

import pytest
from emulation import build, separately
from seeded_bugs import BUGS

# For each bug, which variants must notice it, and what they say.
EXPECTED = {
    "no barrier after the load": {"plain": "values", "check": "race"},
    "no barrier at the tile's end": {"plain": "values", "check": "race"},
    "no barrier after the reduction": {"plain": "values", "check": "race"},
    "shuffle in a branch": {"plain": "error: threads wait for each other"},
    "barrier in a branch": {"plain": "error: divergent barrier"},
    "global overrun": {"plain": "values", "sanitize": "heap-buffer-overflow"},
    "shared overrun": {"sanitize": "heap-buffer-overflow|index 64 out of bounds"},
    "unwritten output": {"plain": "values"},
    "wrong fragment": {"plain": "values"},
    "two blocks, one output": {"plain": "values", "check": "race: write after write"},
    "no barrier in a warp": {"plain": "values", "check": "race"},
}
CASES = [(bug, variant, said) for bug in BUGS for variant, said in EXPECTED.get(bug, {}).items()]


def noticed(bug, variant, orders, seeds=20):
    """What is printed and complained of; a race must show under one orderly schedule."""
    done = separately(
        "seeded_bugs.py", str(BUGS.index(bug)), variant, orders, str(seeds), variant=variant
    )
    return done.stdout + done.stderr


def test_every_bug_is_expected():
    assert set(EXPECTED) == set(BUGS[1:])


@pytest.mark.parametrize("variant", ["plain", "check", "sanitize"])
def test_no_bug_no_complaint(variant):
    build(f"seeded_{variant}")
    assert noticed("none", variant, "forward,reverse,random").strip() == "clean"


@pytest.mark.parametrize(("bug", "variant", "said"), CASES)
def test_bug_is_noticed(bug, variant, said):
    build(f"seeded_{variant}")
    if variant == "plain":
        heard = noticed(bug, variant, "forward,reverse,random")
    else:
        heard = noticed(bug, variant, "forward", 1)
    assert any(words in heard for words in said.split("|")), heard
