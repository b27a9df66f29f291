"""The losses of a student, each a small pure function of tensors.

N pairs of a batch, K tiers, worst first. log_p [N, K]: the student's log-probabilities (lore.student.head). target [N, K]: rows
sum to 1. weight [N]: of each pair. All losses divide by N and not by the sum of the weights, so that gradient accumulation adds up.

sentence-transformers has no loss that joins K tiers with a margin within a query: its pairwise and listwise losses want one output
per pair.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity


class Parts(NamedTuple):
    """The terms of a batch's loss, each before its weight."""

    tiers: Tensor
    margin: Tensor
    cumulative: Tensor
    grade: Tensor


def tier_divergence(log_p: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Weighted mean of KL(target || student). 0 if the student gives the target; Hinton et al. 2015 (arXiv 1503.02531) without
    their factor for the temperature, since only the target is tempered."""
    divergence = torch.xlogy(target, target).sum(dim=1) - (target * log_p).sum(dim=1)
    return (weight * divergence).mean()


def margin_error(log_p: Tensor, target: Tensor, gains: Tensor, query: Tensor, weight: Tensor) -> Tensor:
    """MarginMSE (Hofstätter et al. 2020, arXiv 2010.02666) on the expected gain within a query: for each pair, the mean squared
    difference between the student's margin over the other items of its query and the target's. gains [K]; query [N]: an integer per
    query. Pairs that are alone in the batch add nothing."""
    error = log_p.exp() @ gains - target @ gains
    other = (query[:, None] == query[None, :]) & ~torch.eye(len(query), dtype=torch.bool, device=query.device)
    share = other * weight[None, :]
    share = share / share.sum(dim=1, keepdim=True).clamp_min(1e-12)
    return (weight * (share * (error[:, None] - error[None, :]) ** 2).sum(dim=1)).mean()


def cumulative_error(log_p: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Ranked probability score: mean squared difference of the K - 1 cumulative probabilities (Epstein 1969; as the squared earth
    mover's distance in Hou et al. 2016, arXiv 1611.05916). A verdict two tiers off costs more than one next to the label."""
    below = (log_p.exp() - target).cumsum(dim=1)[:, :-1]
    return (weight * (below**2).mean(dim=1)).mean()


def grade_error(log_p: Tensor, target: Tensor, gains: Tensor, weight: Tensor) -> Tensor:
    """Squared error of the expected gain, the usual loss of a distilled regression: a baseline of the studies."""
    return (weight * (log_p.exp() @ gains - target @ gains) ** 2).mean()


def rationale_distance(features: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Mean cosine distance between features [N, D] of an auxiliary head and embeddings [N, D] of the rationales. A pair without
    a rationale has a zero row and adds nothing."""
    known = target.abs().sum(dim=1) > 0
    return (weight * known * (1 - cosine_similarity(features, target, dim=1))).mean()


def human_share(progress: float, first: float, last: float, rises_from: float) -> float:
    """Share of the human labels in the loss at `progress` in [0, 1] of the training: `first` until `rises_from`, then rising evenly
    to `last` at the end. Raters have the last word, and the judge's many labels come before it."""
    if progress <= rises_from:
        return first
    return first + (last - first) * min((progress - rises_from) / (1 - rises_from), 1.0)


def mixed_targets(
    judge: Tensor, judge_weight: Tensor, human: Tensor, human_weight: Tensor, share: float
) -> tuple[Tensor, Tensor]:
    """(target [N, K], weight [N]) of judge and raters together, with `share` for the raters. A missing label has weight 0 and a
    target of zeros. weight times the cross-entropy to this target is the weighted sum of the cross-entropies to both."""
    judge_weight, human_weight = (1 - share) * judge_weight, share * human_weight
    weight = judge_weight + human_weight
    summed = judge_weight[:, None] * judge + human_weight[:, None] * human
    even = torch.full_like(summed, 1 / summed.shape[1])
    return torch.where(weight[:, None] > 0, summed / weight[:, None].clamp_min(1e-12), even), weight


def loss_parts(log_p: Tensor, target: Tensor, weight: Tensor, gains: Tensor, query: Tensor) -> Parts:
    """All terms. gains [K], query [N] as in `margin_error`."""
    return Parts(
        tier_divergence(log_p, target, weight),
        margin_error(log_p, target, gains, query, weight),
        cumulative_error(log_p, target, weight),
        grade_error(log_p, target, gains, weight),
    )
