"""The order in which training visits its rows: fixed before step 0, the same for any number of processes.

Batches hold rows of similar length, which saves the padding. The order is a list of row numbers, so a resumed run skips to its place
and two processes that share a global batch see together what one process sees.
"""

import numpy as np

MEGA_BATCHES = 20  # batches that are sorted by length together; more saves padding, fewer mixes better


def training_order(lengths: list[int], batch_size: int, steps: int, seed: int, repeats: list[int] | None = None) -> np.ndarray:
    """Row numbers for `steps` batches of `batch_size`, epoch after epoch.

    lengths: tokens per row; repeats: how often a row stands in one epoch (once where not given). Every epoch is shuffled anew,
    cut into mega-batches, sorted by length inside each, and its batches are shuffled again.
    """
    rng = np.random.default_rng(seed)
    lengths_N = np.asarray(lengths)
    rows = np.arange(len(lengths_N)) if repeats is None else np.repeat(np.arange(len(lengths_N)), repeats)
    needed, order = steps * batch_size, []
    left_over = np.zeros(0, dtype=np.int64)
    while sum(map(len, order)) < needed:
        epoch = np.concatenate([left_over, rng.permutation(rows)])
        whole = len(epoch) // batch_size * batch_size
        if whole == 0:  # fewer rows than one batch: fill it from the next epochs
            left_over = epoch
            continue
        epoch, left_over = epoch[:whole], epoch[whole:]
        mega = MEGA_BATCHES * batch_size
        batches = []
        for start in range(0, whole, mega):
            part = _by_length(epoch[start:start + mega], lengths_N)
            batches += np.split(part, len(part) // batch_size)
        rng.shuffle(batches)
        order += batches
    return np.concatenate(order)[:needed]


def _by_length(rows, lengths):
    return rows[np.argsort(-lengths[rows], kind="stable")]


def balanced_repeats(labels: list[str]) -> list[int]:
    """How often each row has to stand in an epoch for every label to be about as frequent as the most frequent one."""
    names, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
    return np.maximum(1, np.round(counts.max() / counts))[inverse].astype(int).tolist()
