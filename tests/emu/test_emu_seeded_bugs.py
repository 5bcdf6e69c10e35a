"""The emulator notices seeded bugs, and nothing where there is none."""

import json

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


ORDERS = ("forward", "reverse", "random")


@pytest.fixture(scope="module")
def noticed():
    """What is printed and complained of, by variant and bug, all of a variant in one go."""
    found = {}

    def get(variant, bug):
        if variant not in found:
            build(f"seeded_{variant}")
            # A race must show under one orderly schedule.
            few = (ORDERS, 20) if variant == "plain" else (ORDERS[:1], 1)
            asked = [(each, *few) for each, of, _ in CASES if of == variant]
            asked += [("none", ORDERS, 20)]
            done = separately("seeded_bugs.py", variant, json.dumps(asked), variant=variant)
            assert done.returncode == 0, done.stdout + done.stderr
            found[variant] = json.loads(done.stdout)
        return found[variant][bug]

    return get


def test_every_bug_is_expected():
    assert set(EXPECTED) == set(BUGS[1:])


@pytest.mark.parametrize("variant", ["plain", "check", "sanitize"])
def test_no_bug_no_complaint(noticed, variant):
    assert noticed(variant, "none").strip() == "clean"


@pytest.mark.parametrize(("bug", "variant", "said"), CASES)
def test_bug_is_noticed(noticed, bug, variant, said):
    heard = noticed(variant, bug)
    assert any(words in heard for words in said.split("|")), heard
