"""Losses of a student: worked by hand, and their gradients at the target."""

from math import log

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lore.distill.losses import (
    cumulative_error,
    grade_error,
    human_share,
    loss_parts,
    margin_error,
    mixed_targets,
    rationale_distance,
    tier_divergence,
)

GAINS = torch.tensor([0.0, 0.5, 1.0])
P = torch.tensor([[0.5, 0.25, 0.25], [0.2, 0.2, 0.6]])
T = torch.tensor([[1.0, 0.0, 0.0], [0.25, 0.25, 0.5]])
W = torch.tensor([1.0, 3.0])
SAME = torch.tensor([7, 7])


def test_the_divergence_is_the_kl_from_the_target():
    second = 0.25 * log(0.25 / 0.2) * 2 + 0.5 * log(0.5 / 0.6)
    assert tier_divergence(P.log(), T, W).item() == pytest.approx((log(2) + 3 * second) / 2)
    assert tier_divergence(P.log(), P, W).item() == pytest.approx(0, abs=1e-7)


def test_a_target_without_mass_on_a_tier_has_finite_gradients():
    logits = torch.tensor([[20.0, -200.0, 0.0]], requires_grad=True)
    tier_divergence(logits.log_softmax(dim=1), torch.tensor([[1.0, 0.0, 0.0]]), torch.ones(1)).backward()
    assert torch.isfinite(logits.grad).all()


def test_the_margin_compares_the_items_of_a_query_with_each_other():
    # Expected gains: student .375 and .7, target 0 and .625. The margins differ by .3, both ways.
    error = (0.375 - 0) - (0.7 - 0.625)
    assert margin_error(P.log(), T, GAINS, SAME, W).item() == pytest.approx((1 * error**2 + 3 * error**2) / 2)
    assert margin_error(P.log(), T, GAINS, torch.tensor([1, 2]), W).item() == 0


def test_three_items_of_a_query_weigh_their_partners():
    p = torch.tensor([[1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0]])
    target = torch.tensor([[1.0, 0, 0], [1.0, 0, 0], [1.0, 0, 0]])  # errors of the gain: 0, .5, 1
    weight = torch.tensor([1.0, 1.0, 2.0])
    rows = [(1 * 0.25 + 2 * 1) / 3, (1 * 0.25 + 2 * 0.25) / 3, (1 * 1 + 1 * 0.25) / 2]
    found = margin_error(p.log(), target, GAINS, torch.zeros(3, dtype=torch.long), weight)
    assert found.item() == pytest.approx((rows[0] + rows[1] + 2 * rows[2]) / 3)


def test_a_shift_of_all_items_of_a_query_costs_no_margin():
    p, target = torch.tensor([[0.6, 0.4, 0], [0.4, 0.4, 0.2]]), torch.tensor([[0.4, 0.4, 0.2], [0.2, 0.4, 0.4]])
    assert margin_error(p.log(), target, GAINS, SAME, W).item() == pytest.approx(0, abs=1e-12)
    assert tier_divergence(p.log(), target, W).item() > 0.1


def test_the_cumulative_error_counts_the_distance_of_the_tiers():
    certain, one = torch.eye(3), torch.ones(1)
    near = cumulative_error(certain[1:2].log(), certain[2:], one).item()
    far = cumulative_error(certain[:1].log(), certain[2:], one).item()
    assert (near, far) == (0.5, 1.0)
    # Cumulative probabilities: student (.5, .75) and (.2, .4), target (1, 1) and (.25, .5).
    assert cumulative_error(P.log(), T, W).item() == pytest.approx((0.3125 / 2 + 3 * (0.0025 + 0.01) / 2) / 2)


def test_the_grade_error_is_that_of_the_expected_gain():
    assert grade_error(P.log(), T, GAINS, W).item() == pytest.approx((0.375**2 + 3 * 0.075**2) / 2)


def test_a_pair_without_a_rationale_adds_nothing():
    features = torch.tensor([[1.0, 0.0], [1.0, 1.0], [3.0, 4.0]], requires_grad=True)
    target = torch.tensor([[0.0, 2.0], [0.0, 0.0], [3.0, 4.0]])
    loss = rationale_distance(features, target, torch.ones(3))
    assert loss.item() == pytest.approx(1 / 3)
    loss.backward()
    assert torch.isfinite(features.grad).all() and features.grad[1].abs().sum() == 0


def test_human_labels_gain_weight_at_the_end():
    assert [human_share(at, 0.2, 0.8, 0.5) for at in (0, 0.5, 0.75, 1.0)] == pytest.approx([0.2, 0.2, 0.5, 0.8])
    assert human_share(1.0, 0.2, 0.8, 1.0) == 0.2


def test_mixed_targets_are_the_weighted_sum_of_both_losses():
    judge = torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.0, 0.0], [0.2, 0.8, 0.0]])
    human = torch.tensor([[0.0, 0, 1], [1, 0, 0], [0, 0, 0]])
    target, weight = mixed_targets(judge, torch.tensor([2.0, 0, 1]), human, torch.tensor([1.0, 1, 0]), share=0.25)
    assert weight.tolist() == pytest.approx([1.75, 0.25, 0.75])
    assert target[0].tolist() == pytest.approx([0.75 / 1.75, 0.75 / 1.75, 0.25 / 1.75])
    assert target[1:].tolist() == [[1, 0, 0], pytest.approx([0.2, 0.8, 0])]
    nothing, zero = mixed_targets(judge, torch.zeros(3), human, torch.zeros(3), share=0.25)
    assert zero.tolist() == [0, 0, 0] and torch.isfinite(nothing).all()


@given(st.integers(0, 2**31))
@settings(max_examples=20, deadline=None)
def test_at_the_target_every_term_is_zero_and_so_is_its_gradient(seed):
    torch.manual_seed(seed)
    logits = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    target, query = logits.detach().softmax(dim=1), torch.randint(0, 3, (6,))
    weight, gains = torch.rand(6, dtype=torch.float64), torch.tensor([0, 0.2, 0.7, 1.0], dtype=torch.float64)
    parts = loss_parts(logits.log_softmax(dim=1), target, weight, gains, query)
    assert [part.item() for part in parts] == pytest.approx([0] * 4, abs=1e-12)
    sum(parts).backward()
    assert logits.grad.abs().max() < 1e-8


@given(st.integers(0, 2**31))
@settings(max_examples=20, deadline=None)
def test_the_loss_of_a_batch_is_the_mean_over_its_parts(seed):
    """As gradient accumulation needs it, where no query is cut."""
    torch.manual_seed(seed)
    log_p, target = torch.randn(8, 3).log_softmax(dim=1), torch.randn(8, 3).softmax(dim=1)
    weight, query = torch.rand(8), torch.tensor([0, 0, 0, 0, 1, 1, 2, 2])
    whole = loss_parts(log_p, target, weight, GAINS, query)
    halves = [loss_parts(log_p[cut], target[cut], weight[cut], GAINS, query[cut]) for cut in (slice(0, 4), slice(4, 8))]
    for name in whole._fields:
        mean = (getattr(halves[0], name) + getattr(halves[1], name)) / 2
        assert getattr(whole, name).item() == pytest.approx(mean.item(), rel=1e-4, abs=1e-7)
