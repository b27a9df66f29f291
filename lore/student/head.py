"""From the outputs of a student's head to tier probabilities.

softmax: one logit per tier. ordinal: one logit per border between two tiers; sigmoid(logit k) is the probability that a pair is
above border k if it is above all lower ones (CORN, Shi, Cao and Raschka 2021, arXiv 2111.08851). The probability of being above a
border is the product of those up to it, so it never rises from border to border, whatever the logits.
"""

from typing import Any

import numpy as np

from lore.student.section import Head, VerdictRule


def outputs_of(head: Head, tiers: int) -> int:
    """Number of outputs of a head over this many tiers."""
    return tiers if head == "softmax" else tiers - 1


def tier_probabilities(logits: np.ndarray, head: Head) -> np.ndarray:
    """Probabilities [N, K] of logits [N, outputs], in float64."""
    logits = np.asarray(logits, dtype=np.float64)
    if head == "softmax":
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        return powers / powers.sum(axis=1, keepdims=True)
    above = np.cumsum(-np.logaddexp(0, -logits), axis=1)
    begins = np.concatenate([np.zeros((len(logits), 1)), above], axis=1)
    stays = np.concatenate([-np.logaddexp(0, logits), np.zeros((len(logits), 1))], axis=1)
    return np.exp(begins + stays)


def verdict_tiers(probabilities: np.ndarray, rule: VerdictRule) -> np.ndarray:
    """[N] tier index of each verdict, from probabilities [N, K].

    most_probable: right most often, if the probabilities are those of the label. median: the best tier that is reached with a
    probability of one half or more. It is off by the fewest tiers, agrees at every border with the probability of being above it,
    and is what a label stands for that is the median of several raters.
    """
    if rule == "most_probable":
        return probabilities.argmax(axis=1)
    reached = probabilities[:, ::-1].cumsum(axis=1)[:, ::-1]
    return (reached[:, 1:] >= 0.5 * reached[:, :1]).sum(axis=1)


def tier_log_probabilities(logits: Any, head: Head) -> Any:
    """Log-probabilities [N, K] of logits [N, outputs], as torch tensors with gradients."""
    import torch  # the probabilities alone need no torch
    from torch.nn.functional import log_softmax, logsigmoid

    if head == "softmax":
        return log_softmax(logits.float(), dim=-1)
    logits = logits.float()
    zero = torch.zeros_like(logits[:, :1])
    return torch.cat([zero, logsigmoid(logits).cumsum(dim=1)], dim=1) + torch.cat([logsigmoid(-logits), zero], dim=1)
