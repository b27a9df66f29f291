"""The order in which training visits its rows: fixed before step 0 and the same for any number of processes.

The rows of a step are drawn at random and then sorted by length, so the micro-batches of a step have rows of similar length and
little padding, while the gradient is that of a random batch. The order is a list of row numbers. A resumed run skips to its
position, and two processes that share a global batch see the same rows as a single process.
"""

import numpy as np


def training_order(
    lengths: list[int],
    batch_size: int,
    steps: int,
    seed: int,
    repeats: list[int] | None = None,
    *,
    shuffle: bool = True,
    groups: list[str] | None = None,
    run: int = 1,
) -> np.ndarray:
    """Row numbers [steps * batch_size] for `steps` batches. Reshuffles the rows every epoch; longest row first within a batch.

    lengths: tokens per row; repeats: how often each row occurs per epoch, default once; shuffle: false keeps the given order
    of the rows. groups, run: the group of each row, of which `run` rows in a row are drawn together, such as a micro-batch with
    one rule book.
    """
    rng = np.random.default_rng(seed)
    lengths_N = np.asarray(lengths)
    rows = np.arange(len(lengths_N)) if repeats is None else np.repeat(np.arange(len(lengths_N)), repeats)
    epochs = -(-steps * batch_size // len(rows))
    one_group = groups is None or len(set(groups)) == 1

    def epoch() -> np.ndarray:
        visited = rng.permutation(rows) if shuffle else rows
        return visited if one_group or not shuffle else in_runs(visited, np.asarray(groups)[visited], run, rng)

    visited = np.concatenate([epoch() for _ in range(epochs)])
    drawn = visited[: steps * batch_size].reshape(steps, batch_size)
    longest_first = np.argsort(-lengths_N[drawn], axis=1, kind="stable")
    return np.take_along_axis(drawn, longest_first, axis=1).reshape(-1)


def in_runs(visited: np.ndarray, groups_N: np.ndarray, run: int, rng: np.random.Generator) -> np.ndarray:
    """Rows in another order: `run` rows of one group, then `run` of another; at the end what is left of each group. The order of
    groups is random in both parts."""
    sorted_N = visited[np.argsort(groups_N, kind="stable")]
    ends = np.cumsum(np.unique(groups_N, return_counts=True)[1])
    members = np.split(sorted_N, ends[:-1])
    whole = [group[at : at + run] for group in members for at in range(0, len(group) - run + 1, run)]
    left = [group[len(group) - len(group) % run :] for group in members]
    return np.concatenate([part[at] for part in (whole, left) for at in rng.permutation(len(part))])


def balanced_repeats(labels: list[str]) -> list[int]:
    """Repeats per row and epoch that make every label about as frequent as the most frequent one."""
    names, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
    return np.maximum(1, np.round(counts.max() / counts))[inverse].astype(int).tolist()
