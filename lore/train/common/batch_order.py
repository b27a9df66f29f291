"""The order in which training visits its rows: fixed before step 0 and the same for any number of processes.

The rows of a step are drawn at random and then sorted by length, so the micro-batches of a step have rows of similar length and
little padding, while the gradient is that of a random batch. The order is a list of row numbers. A resumed run skips to its
position, and two processes that share a global batch see the same rows as a single process.
"""

import numpy as np


def training_order(
    lengths: list[int], batch_size: int, steps: int, seed: int, repeats: list[int] | None = None, *, shuffle: bool = True
) -> np.ndarray:
    """Row numbers [steps * batch_size] for `steps` batches. Reshuffles the rows every epoch; longest row first within a batch.

    lengths: tokens per row; repeats: how often each row occurs per epoch, default once; shuffle: false keeps the given order
    of the rows.
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
    """Repeats per row and epoch that make every label about as frequent as the most frequent one."""
    names, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
    return np.maximum(1, np.round(counts.max() / counts))[inverse].astype(int).tolist()
