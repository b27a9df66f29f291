"""The order in which training visits its rows: fixed before step 0, the same for any number of processes.

A step's rows are drawn at random and then sorted by length, so that the forward passes of one step (micro-batches, processes) hold
rows of similar length and little padding, while the gradient stays that of a random batch. The order is a list of row numbers: a
resumed run skips to its place, and two processes that share a global batch see together what one process sees.
"""

import numpy as np


def training_order(
    lengths: list[int], batch_size: int, steps: int, seed: int, repeats: list[int] | None = None, *, shuffle: bool = True
) -> np.ndarray:
    """Row numbers for `steps` batches of `batch_size`, epoch after epoch, each shuffled anew; longest first inside a batch.

    lengths: tokens per row; repeats: how often a row stands in one epoch (once where not given); shuffle: false leaves the
    rows of an epoch in their own order.
    """
    rng = np.random.default_rng(seed)
    lengths_N = np.asarray(lengths)
    rows = np.arange(len(lengths_N)) if repeats is None else np.repeat(np.arange(len(lengths_N)), repeats)
    epochs = -(-steps * batch_size // len(rows))
    visited = np.concatenate([rng.permutation(rows) if shuffle else rows for _ in range(epochs)])
    drawn = visited[: steps * batch_size].reshape(steps, batch_size)
    longest_first = np.argsort(-lengths_N[drawn], axis=1, kind="stable")
    return np.take_along_axis(drawn, longest_first, axis=1).reshape(-1)


def balanced_repeats(labels: list[str]) -> list[int]:
    """How often each row has to stand in an epoch for every label to be about as frequent as the most frequent one."""
    names, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
    return np.maximum(1, np.round(counts.max() / counts))[inverse].astype(int).tolist()
