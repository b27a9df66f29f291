"""Reads ahead: the next item is made in a thread while the caller works on the one before.

It pays where making an item is mostly work of Arrow, numpy or a disk, which let other threads of Python run.
"""

import threading
from collections.abc import Iterable, Iterator
from queue import Queue
from typing import TypeVar

T = TypeVar("T")


def read_ahead(items: Iterable[T]) -> Iterator[T]:
    """Yields `items` in their order. At most two of them wait: one in the queue, and one that is ready for it.

    An error of `items` is raised where its item would have been. When the caller stops early, so does the thread, after the item
    under way.
    """
    queue: Queue[tuple[bool, T | BaseException | None]] = Queue(maxsize=1)
    stopped = threading.Event()

    def read() -> None:
        try:
            for item in items:
                queue.put((True, item))
                if stopped.is_set():
                    break
            end = None
        except BaseException as error:  # raised in the caller's thread
            end = error
        finally:
            if hasattr(items, "close"):
                items.close()  # in this thread, which has opened its files
        queue.put((False, end))

    thread = threading.Thread(target=read, name="read ahead", daemon=True)
    thread.start()
    try:
        while (found := queue.get())[0]:
            yield found[1]
        if found[1] is not None:
            raise found[1]
    finally:
        stopped.set()
        while thread.is_alive():
            while not queue.empty():
                queue.get()
            thread.join(0.01)
