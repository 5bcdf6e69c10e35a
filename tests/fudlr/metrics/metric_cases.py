"""A small problem, and for every metric a plain-Python truth and a fairer matrix of scores."""

import math

import torch
from fudlr.metrics import Side

N, M, G, K = 24, 30, 3, 4


def problem(dtype=torch.float64, seed=0):
    """Return scores [N, M] and their side information, with groups that differ."""
    rng = torch.Generator().manual_seed(seed)
    popularity = torch.randint(1, 200, (M,), generator=rng).double()
    membership = torch.rand(M, G, generator=rng).double()
    membership[membership < 0.4] = 0
    membership[0] = 0  # an item of unknown group
    membership /= membership.sum(1, keepdim=True).clamp_min(1e-9)
    target = torch.randint(M, (N,), generator=rng)
    seen = torch.rand(N, M, generator=rng) < 0.3
    seen[torch.arange(N), target] = False
    group = torch.arange(N) % 3
    group[-2:] = -1
    history = torch.rand(N, G, generator=rng).double()
    side = Side(
        popularity=popularity,
        tail=popularity < popularity.quantile(0.7),
        item_groups=membership,
        target=target,
        seen=seen,
        user_group=group,
        k=K,
        history_groups=history / history.sum(1, keepdim=True),
        group_labels=("a", "b", "c"),
    )
    scores = torch.randn(N, M, generator=rng, dtype=torch.float64)
    scores += 0.5 * membership[:, group.clamp_min(0)].T + popularity / 200
    # Ties must be taken the same way by everyone.
    return scores.round(decimals=1).to(dtype) if dtype != torch.float64 else scores, side


def lists(scores, side):
    """Top K by Python's stable sort: the truth that `top_k` is held to."""
    result = []
    for row, seen in zip(scores.tolist(), side.seen.tolist(), strict=True):
        unseen = [i for i in range(len(row)) if not seen[i]]
        result.append(sorted(unseen, key=lambda i: -row[i])[: side.k])
    return result


def _counts(top):
    counts = [0] * M
    for row in top:
        for item in row:
            counts[item] += 1
    return counts


def _gini(top, side):
    x = _counts(top)
    pairs = sum(abs(a - b) for a in x for b in x)
    return pairs / (2 * len(x) * sum(x))


def _entropy(top, side):
    q = [c / sum(_counts(top)) for c in _counts(top)]
    return -sum(p * math.log(p) for p in q if p)


def _mean(values):
    values = list(values)
    return sum(values) / len(values)


def _exposure(row, side):
    rows = [side.item_groups[item].tolist() for item in row]
    return [_mean(r[g] for r in rows) for g in range(G)]


def _by_group(top, side, feature):
    """Mean of feature(row number) in each user group."""
    groups = side.user_group.tolist()
    means = []
    for u in range(side.n_groups):
        rows = [feature(i) for i in range(len(top)) if groups[i] == u]
        if rows:
            means.append([_mean(r[c] for r in rows) for c in range(len(rows[0]))])
    return means


def _shares(top, side):
    means = _by_group(top, side, lambda i: _exposure(top[i], side))
    return [[value / sum(mean) for value in mean] for mean in means]


def _hellinger(top, side):
    shares = _shares(top, side)
    return max(
        math.sqrt(sum((math.sqrt(a) - math.sqrt(b)) ** 2 for a, b in zip(p, q, strict=True)) / 2)
        for p in shares
        for q in shares
    )


def _range(means):
    return max(max(column) - min(column) for column in zip(*means, strict=True))


def _unfairness(top, side):
    history = side.history_groups.tolist()
    rows = [_exposure(row, side) for row in top]
    return [_mean(rows[i][g] - history[i][g] for i in range(len(top))) for g in range(G)]


def _ranks(top, side):
    targets = side.target.tolist()
    return [row.index(t) + 1 if t in row else None for row, t in zip(top, targets, strict=True)]


def _hit_gap(top, side):
    ranks = _ranks(top, side)
    return _range(_by_group(top, side, lambda i: [float(ranks[i] is not None)]))


TRUTH = {
    "arp": lambda top, side: _mean(_mean(side.popularity[i].item() for i in r) for r in top),
    "aplt": lambda top, side: _mean(_mean(float(side.tail[i]) for i in r) for r in top),
    "gini": _gini,
    "coverage": lambda top, side: sum(c > 0 for c in _counts(top)) / M,
    "entropy": _entropy,
    "hellinger": _hellinger,
    "dp": lambda top, side: _range(_shares(top, side)),
    "hit_gap": _hit_gap,
    "mgu": lambda top, side: _mean(abs(u) for u in _unfairness(top, side)),
    "dgu": lambda top, side: max(_unfairness(top, side)) - min(_unfairness(top, side)),
    "hr": lambda top, side: _mean(float(r is not None) for r in _ranks(top, side)),
    "ndcg": lambda top, side: _mean(1 / math.log2(1 + r) if r else 0 for r in _ranks(top, side)),
    "mrr": lambda top, side: _mean(1 / r if r else 0 for r in _ranks(top, side)),
}


def _popularity_ranking(side, sign):
    return (sign * side.popularity.log()).expand(N, M).clone()


def _everyone_the_same(side):
    return torch.zeros(N, M, dtype=torch.float64)


def _own_taste(side):
    """Group u is recommended item group u."""
    return 6 * side.item_groups[:, side.user_group.clamp_min(0)].T


def _spread(side):
    """Each user's list starts at another item."""
    place = (torch.arange(M)[None] - 5 * torch.arange(N)[:, None]) % M
    return 6.0 * (place < 6).double() - 0.01 * place


def _on_target(side, chosen):
    scores = torch.linspace(1, 0, M, dtype=torch.float64).expand(N, M).clone()
    rows = chosen.nonzero()[:, 0]
    scores[rows, side.target[rows]] = 8.0
    rest = (~chosen).nonzero()[:, 0]
    scores[rest, side.target[rest]] = -8.0
    return scores


def _like_history(side):
    """Item group g as likely as in the histories' mean."""
    wanted = side.history_groups.mean(0) / (side.item_groups.mean(0) + 1e-9)
    return (side.item_groups @ wanted).clamp_min(1e-3).log().expand(N, M).clone()


def better_and_worse(name, side):
    """Return scores that are plainly better and plainly worse in the metric's own direction."""
    everyone = torch.ones(N, dtype=torch.bool)
    one_group = side.user_group == 1
    return {
        "arp": lambda: (_popularity_ranking(side, -1), _popularity_ranking(side, 1)),
        "aplt": lambda: (_popularity_ranking(side, -1), _popularity_ranking(side, 1)),
        "gini": lambda: (_spread(side), 3 * _popularity_ranking(side, 1)),
        "coverage": lambda: (_spread(side), 3 * _popularity_ranking(side, 1)),
        "entropy": lambda: (_spread(side), 3 * _popularity_ranking(side, 1)),
        "hellinger": lambda: (_everyone_the_same(side), _own_taste(side)),
        "dp": lambda: (_everyone_the_same(side), _own_taste(side)),
        "hit_gap": lambda: (_on_target(side, everyone), _on_target(side, one_group)),
        "mgu": lambda: (_like_history(side), 9 * side.item_groups[:, 0].expand(N, M)),
        "dgu": lambda: (_like_history(side), 9 * side.item_groups[:, 0].expand(N, M)),
        "hr": lambda: (_on_target(side, everyone), _on_target(side, one_group)),
        "ndcg": lambda: (_on_target(side, everyone), _on_target(side, one_group)),
        "mrr": lambda: (_on_target(side, everyone), _on_target(side, one_group)),
    }[name]()
