"""The benchmark's rows in 16 bits: the CPU refuses them, and the emulated kernels take them.

All other rows: tests/fudlr/test_gpu_cases.py.
"""

import json

from emulation import build, separately


def test_ways_agree_in_16_bits():
    build("emulated_plain")
    done = separately("gpu_rows.py", variant="plain")
    assert done.returncode == 0, done.stderr[-4000:]
    rows = json.loads(done.stdout)
    assert {name.partition(",")[0] for name in rows} == {
        "attention", "attention_tangent", "attention_backward",
        "sample_dots", "sample_grads", "grad_sum",
    }  # fmt: skip
    for name, (errors, left_out) in rows.items():
        assert not left_out, name
        assert 0 < errors["ours"] < 5e-3, name
