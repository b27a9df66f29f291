"""The folder in which the workers of one service keep their metrics. prometheus_client reads its name when it is imported, so the
folder has to be there before the workers start, and this module does not import it."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

VARIABLE = "PROMETHEUS_MULTIPROC_DIR"


@contextmanager
def shared_metrics(workers: int) -> Iterator[None]:
    """Inside the block, processes that are started keep their metrics together. For one worker, or inside another such block,
    nothing changes."""
    if workers < 2 or os.environ.get(VARIABLE):
        yield
        return
    with tempfile.TemporaryDirectory(prefix="lore-metrics-") as folder:
        os.environ[VARIABLE] = folder
        try:
            yield
        finally:
            del os.environ[VARIABLE]


def forget_worker(process: int) -> None:
    """Removes what was true of a worker that has ended, such as its queue; its counters stay. Call it where workers are started."""
    from prometheus_client.multiprocess import mark_process_dead  # reads the folder's name when it is imported

    if folder := os.environ.get(VARIABLE):
        mark_process_dead(process, folder)
