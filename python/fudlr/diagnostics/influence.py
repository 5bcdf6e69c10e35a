"""Influence that tells no samples apart: no gradient, a gap that is chance's, noise of the users.

**Noise.** The validation users are put into K = 16 parts at random, b_k being what part k adds to
the objective's gradient. If the gradient were noise of the users, each part's would be as likely
with the opposite sign. So the energy of the influences, with the identity for H⁻¹,

    T(ε) = ‖G Σ_k ε_k b_k‖²,   ε ∈ {−1, 1}^K up to the common sign

is compared over all 2¹⁵ choices of signs: p is the share of them with T(ε) ≥ T(1, …, 1), an exact
randomisation test (Fisher 1935; Lehmann, Romano, "Testing statistical hypotheses", chapter 15). It
costs one product with the rows, and no solve.

**Chance.** A gap between groups is compared with that of permuted groups, on the prompts that the
gradient comes from.
"""

import torch

from fudlr.diagnostics.base import Facts, Finding, Severity, graded
from fudlr.metrics import permutation_null

PARTS = 16
"""With fewer, p depends on which users were put together."""
DOUBTFUL, CHANCE = 0.05, 0.2
"""p of either test beyond which it warns, and beyond which nothing is removed: as much would come
about by chance in one case of five."""
PERMUTATIONS = 300
FLAT = 1e-6
"""Relative change of the metric along a shift as long as training's way, at most."""


def no_gradient(facts: Facts) -> Finding | None:
    """‖∇F‖ ‖θ* − θ₀‖ / |F| of the flattest metric; refused where the whole objective is flat."""
    assert facts.gradients is not None
    way = facts.trained_way
    slopes = {
        name: float(each.gradient.norm()) * way / max(abs(each.value), 1e-12)
        for name, each in facts.gradients.items()
    }
    flat = [name for name, slope in slopes.items() if slope <= FLAT]
    steering = [name for name in facts.plan.objective.names if name in flat]
    dead = len(steering) == len(facts.plan.objective.names)
    name = steering[0] if steering else min(slopes, key=slopes.__getitem__)
    return graded(
        "no_gradient",
        slopes[name],
        {Severity.WARN: FLAT, **({Severity.REFUSE: FLAT} if dead else {})},
        found=f"{', '.join(flat) or name} {'has no gradient' if flat else 'is flattest'}: a shift "
        f"as long as training's whole way changes it by at most {slopes[name]:.1e} of itself",
        reason="Without a gradient no sample has influence on a metric: its value does not depend "
        "on the adapter, or every score is saturated.",
        advice="Choose another metric or objective.",
        smaller=True,
    )


def noise(facts: Facts) -> Finding | None:
    """p of the influences' energy under random signs of the users' parts."""
    assert facts.space is not None
    if facts.plan.config.lambda_fair == 0:
        return None
    parts = facts.objective_parts()
    if parts is None or len(parts) < PARTS:
        return None
    space = facts.space
    vectors = parts
    if facts.plan.update == "unrolled":  # whose rows keep products: scores ask for these next
        assert facts.gradients is not None
        assert facts.gradients.parts is not None
        halves = facts.gradients.parts.unflatten(0, (2, -1)).sum(1)
        vectors = torch.cat([parts, halves.flatten(0, 1)])
    influences = space.rows.dots(space.project(vectors))[:, : len(parts)].double()
    p = sign_test(influences.T @ influences)
    return graded(
        "noise",
        p,
        {Severity.WARN: DOUBTFUL, Severity.KEEP: CHANCE},
        found=f"the influences on {facts.plan.objective} are as strong with random signs of the "
        f"users' parts in {p:.1%} of the cases",
        reason=f"Beyond {DOUBTFUL:.0%} they may be noise of the users, beyond {CHANCE:.0%} they do "
        "not stand out from it, and a mask would follow the noise.",
        advice="Use more users, or another objective; --force removes all the same.",
    )


def sign_test(gram: torch.Tensor) -> float:
    """Share of the sign choices ε, ε_1 = 1, with εᵀ Gram ε at least as large as with all ones."""
    choices = torch.arange(2 ** (len(gram) - 1))[:, None]
    matrix = 1.0 - 2.0 * (choices >> torch.arange(len(gram)) & 1).double()  # the last is 1 in all
    energy = ((matrix @ gram.double()) * matrix).sum(1)
    return float((energy >= energy[0] * (1 - 1e-9)).double().mean())


def chance(facts: Facts) -> Finding | None:
    """p of the steered gaps under permuted groups; the best of them, where there are several."""
    assert facts.gradients is not None
    plan, side = facts.plan, facts.plan.valid.side
    terms = [term.metric for term in plan.objective.terms]
    if not all(metric.needs_groups for metric in terms):
        return None  # what is no gap stands on its own
    nulls = permutation_null(facts.gradients.scores, side, PERMUTATIONS, plan.seed, metrics=terms)
    found = {m.name: nulls[m.soft_key] for m in terms if m.soft_key in nulls}
    if not found:
        return None
    name = min(found, key=lambda each: found[each].p_value)
    null = found[name]
    return graded(
        "chance",
        null.p_value,
        {Severity.WARN: DOUBTFUL, Severity.KEEP: CHANCE},
        found=f"the gap {name} is {null.observed:.3g}, and with permuted groups {null.mean:.3g} "
        f"on average and as large in {null.p_value:.0%} of the cases",
        reason=f"Beyond {DOUBTFUL:.0%} it may be chance's, beyond {CHANCE:.0%} there is no sign "
        "that it is anything else.",
        advice="Use more users or another grouping; --force removes all the same.",
    )
