"""What the shared tests of ops do not ask of a softmax over a catalogue."""

import time

import pytest
import torch
from torch.autograd import forward_ad

from fudlr_ext import ops, reference


@pytest.fixture
def given():
    torch.manual_seed(0)
    users, items = torch.randn(3, 8), torch.randn(700, 8)
    return users, items, torch.rand(700, 2)


def nothing_but(*kept):
    """Seen items of three users: all but `kept`, two (one of them twice), none."""
    first = [m for m in range(700) if m not in kept]
    seen = torch.tensor([*first, 9, 4, 9])
    return torch.tensor([0, len(first), len(seen), len(seen)]), seen


def test_top_puts_the_lower_of_equal_items_first_and_leaves_out_what_was_seen(given):
    users, _, _ = given
    scores, top = ops.catalogue_top(users, torch.ones(700, 8), 3, nothing_but(650, 20))
    assert top.tolist() == [[20, 650, -1], [0, 1, 2], [0, 1, 2]]
    assert scores[0, 2] == -torch.inf
    torch.testing.assert_close(scores[1:], users[1:].sum(1, keepdim=True).expand(2, 3))
    _, top = ops.catalogue_top(users, torch.ones(700, 8), 6, nothing_but(0))
    assert top[1].tolist() == [0, 1, 2, 3, 5, 6]


def test_a_list_has_no_derivatives(given):
    users, items, _ = given
    wanted, _ = ops.catalogue_top(users, items, 3)
    found, _ = ops.catalogue_top(users.clone().requires_grad_(), items, 3)
    assert not found.requires_grad
    assert torch.equal(found, wanted)
    with forward_ad.dual_level():
        found, _ = ops.catalogue_top(forward_ad.make_dual(users, users), items, 3)
        assert forward_ad.unpack_dual(found).tangent is None
    gradient = torch.func.grad(lambda x: (ops.catalogue_top(x, items, 3)[0] * x[:, :3]).sum())
    torch.testing.assert_close(gradient(users)[:, :3], wanted)


def test_log_sum_alone_has_second_derivatives_in_users(given):
    users, items, _ = (x.double() for x in given)
    seen = nothing_but(650, 20, 3)

    def log_sum(x):
        return ops.catalogue_mean(x, items, items[:, :0], 0.7, seen)[1]

    assert torch.autograd.gradgradcheck(log_sum, users.requires_grad_())


def test_the_last_unseen_item_has_all_probability(given):
    mean, _ = ops.catalogue_mean(*given, seen=nothing_but(650))
    torch.testing.assert_close(mean[0], given[2][650])
    share = ops.catalogue_share(*given[:2], torch.eye(3), seen=nothing_but(650))
    assert share[650, 0] == 1
    assert share[:, 0].count_nonzero() == 1
    assert not share[[9, 4], 1].any()
    torch.testing.assert_close(share.sum(0), torch.ones(3))


def test_far_scores_neither_overflow_nor_vanish(given):
    users, items, values = given
    for scale in (1e4, -1e4):
        mean, lse = ops.catalogue_mean(users, items, values, scale)
        best = (scale * users @ items.t()).argmax(1)
        torch.testing.assert_close(mean, values[best])
        torch.testing.assert_close(lse, (scale * users @ items.t()).amax(1))


def test_nan_comes_through_and_stays_with_its_user(given):
    users, items, values = given
    plain, _ = ops.catalogue_mean(*given)
    users = users.clone()
    users[1, 3] = torch.nan
    mean, lse = ops.catalogue_mean(users, items, values)
    assert mean[1].isnan().all()
    assert lse[1].isnan()
    assert torch.equal(mean[[0, 2]], plain[[0, 2]])


def test_gradients_of_mean_distributions_of_groups(given):
    users, items, _ = (x.double() for x in given)
    group = torch.tensor([[0.5, 0.0], [0.5, 0.0], [0.0, 1.0]], dtype=torch.float64)

    def gap(op):
        leaves = [x.clone().requires_grad_() for x in (users, items, group)]
        shares = op(*leaves)
        return torch.autograd.grad((shares[:, 0] - shares[:, 1]).square().sum(), leaves)

    for got, expected in zip(gap(ops.catalogue_share), gap(reference.catalogue_share), strict=True):
        torch.testing.assert_close(got, expected)


WRONG = {
    "seen_offsets and seen_items go together": (torch.tensor([0, 0, 0, 0]), None),
    "must have the shape": (torch.tensor([0, 0, 0]), torch.tensor([1])),
    "seen_offsets must never fall": (torch.tensor([0, 1, 0, 1]), torch.tensor([1])),
    "must lie in 0 to 1": (torch.tensor([0, 1, 1, 2]), torch.tensor([1])),
    "rows of items, 0 to 699": (torch.tensor([0, 1, 1, 1]), torch.tensor([700])),
    "seen_items must be Long": (torch.tensor([0, 1, 1, 1]), torch.tensor([1]).int()),
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_seen_items_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        ops.catalogue_mean(*given, seen=WRONG[message])


def test_wrong_arguments_are_refused(given):
    users, items, values = given
    with pytest.raises(ValueError, match="M > 0"):
        ops.catalogue_mean(users, items[:0], values[:0])
    with pytest.raises(ValueError, match="users must have the shape"):
        ops.catalogue_share(users[:, :-1], items, torch.eye(3))
    with pytest.raises(ValueError, match="values must be Float where items are BFloat16"):
        ops.catalogue_mean(users, items.bfloat16(), values.bfloat16())
    with pytest.raises(ValueError, match="float32, float64 or bfloat16"):
        ops.catalogue_mean(users.half(), items.half(), values.half())
    with pytest.raises(ValueError, match="k must lie in 0 to 700, the number of items: it is 701"):
        ops.catalogue_top(users, items, 701)
    with pytest.raises(ValueError, match="on one device"):
        ops.catalogue_top(users.to("meta"), items, 5)


def test_the_whole_catalogue_as_a_list_takes_no_square_of_its_length():
    """Rising scores, each of which goes to the front of the list; k · M moves would be 64 times."""

    def seconds(m):
        items = torch.arange(m, dtype=torch.float32)[:, None]
        taken = []
        for _ in range(3):
            start = time.process_time()
            scores, top = ops.catalogue_top(torch.ones(1, 1), items, m)
            taken.append(time.process_time() - start)
        assert torch.equal(top[0], torch.arange(m - 1, -1, -1))
        assert torch.equal(scores[0], items.flip(0)[:, 0])
        return min(taken)

    assert seconds(2**16) < 25 * seconds(2**13)
