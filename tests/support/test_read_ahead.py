import threading
import time
from contextlib import closing

import pytest

from lore.support.read_ahead import read_ahead


def test_items_come_in_order_and_are_made_in_one_other_thread():
    threads = set()

    def items():
        for number in range(50):
            threads.add(threading.current_thread())
            yield number

    assert list(read_ahead(items())) == list(range(50))
    assert len(threads) == 1 and threading.current_thread() not in threads


def test_at_most_two_items_wait():
    made = []

    def items():
        for number in range(10):
            made.append(number)
            yield number

    with closing(read_ahead(items())) as ahead:
        assert next(ahead) == 0
        wait_for(lambda: len(made) >= 3)
        time.sleep(0.05)
        assert len(made) == 3


def test_an_error_is_raised_where_its_item_would_have_been():
    def items():
        yield from (1, 2)
        raise OSError("the disk is gone")

    seen = []
    with pytest.raises(OSError, match="the disk is gone"):
        for item in read_ahead(items()):
            seen.append(item)
    assert seen == [1, 2]


def test_a_caller_that_stops_ends_the_thread_and_closes_the_items():
    closed = []

    def items():
        try:
            yield from range(1000)
        finally:
            closed.append(threading.current_thread())

    before = threading.active_count()
    with closing(read_ahead(items())) as ahead:
        next(ahead)
    assert threading.active_count() == before
    assert len(closed) == 1 and closed[0] is not threading.current_thread()


def wait_for(condition):
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)
