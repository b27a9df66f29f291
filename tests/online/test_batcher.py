"""The queue in front of the student."""

import asyncio
import threading
import time

import pytest
from students_for_tests import some_pairs, write_student
from students_online import Gated, pair, until

from lore.judge.ask import RAISED, TOO_LONG
from lore.online.batcher import ENCODED_PAIRS, Batcher
from lore.student.scorer import open_student

LATER = 600.0


@pytest.fixture(scope="module")
def scorer(tmp_path_factory):
    return open_student(write_student(tmp_path_factory.mktemp("student") / "model"))


@pytest.fixture
def student(scorer) -> Gated:
    return Gated(scorer)


def run(student: Gated, test, **options):
    """Runs test(batcher) in an event loop."""

    async def inside():
        batcher = Batcher(student, **options)
        await batcher.start()
        try:
            return await test(batcher)
        finally:
            student.gate.set()
            await batcher.close()

    return asyncio.run(inside())


async def busy(batcher: Batcher, student: Gated):
    """Keeps the only thread busy until the gate is opened."""
    student.gate.clear()
    ticket = batcher.submit([pair("first")], time.monotonic() + LATER)
    await until(lambda: student.batches)
    return ticket


async def queued(*tickets) -> None:
    await until(lambda: all(ticket.rows and not ticket.pieces for ticket in tickets))


def test_requests_get_the_answers_of_their_own_pairs_in_order(student):
    pairs = some_pairs() * 3
    expected = [verdict.tier for verdict in student.scorer.score(pairs)]

    async def test(batcher):
        tickets = [batcher.submit(pairs[at : at + 5], time.monotonic() + LATER) for at in range(0, 15, 5)]
        await asyncio.gather(*(ticket.done for ticket in tickets))
        assert all({"encode", "queue", "model"} <= ticket.seconds.keys() for ticket in tickets)
        return [verdict for ticket in tickets for verdict in ticket.verdicts]

    found = run(student, test, batch_tokens=100)
    assert [verdict.tier for verdict in found] == expected
    assert [verdict.pair_id for verdict in found] == [one.pair_id for one in pairs]
    assert max(student.tokens) <= 100 and len(student.batches) < 15


def test_a_row_longer_than_the_budget_is_a_batch_by_itself(student):
    async def test(batcher):
        ticket = batcher.submit(some_pairs(), time.monotonic() + LATER)
        await ticket.done
        return ticket.verdicts

    assert all(verdict.tier for verdict in run(student, test, batch_tokens=1))
    assert [len(batch) for batch in student.batches] == [1] * 5


def test_the_earliest_deadline_goes_first(student):
    async def test(batcher):
        await busy(batcher, student)
        now = time.monotonic()
        tickets = [batcher.submit([pair(name)], now + due) for name, due in (("c", 300), ("a", 100), ("b", 200))]
        await queued(*tickets)
        student.gate.set()
        await asyncio.gather(*(ticket.done for ticket in tickets))

    run(student, test, batch_tokens=1)
    assert student.batches == [["first"], ["a"], ["b"], ["c"]]


def test_callers_that_left_and_pairs_past_their_deadline_cost_nothing(student):
    clock = [time.monotonic()]

    async def test(batcher):
        first = await busy(batcher, student)
        gone = batcher.submit([pair("gone")] * 5, clock[0] + LATER)
        past = batcher.submit([pair("past")] * 5, clock[0] + 1)
        stays = batcher.submit([pair("stays")], clock[0] + LATER)
        await queued(gone, past, stays)
        batcher.leave(gone)
        clock[0] += 2
        student.gate.set()
        await asyncio.gather(first.done, stays.done)
        assert past.verdicts == gone.verdicts == [None] * 5

    run(student, test, clock=lambda: clock[0])
    assert student.batches == [["first"], ["stays"]]


def test_a_batch_that_would_end_after_the_deadline_is_not_begun_except_to_measure_again(student):
    clock = [time.monotonic()]

    async def test(batcher):
        first = await busy(batcher, student)
        batcher.batch_seconds = 10.0
        soon = batcher.submit([pair("soon")], clock[0] + 15)
        fresh = batcher.submit([pair("fresh")], clock[0] + 31)
        await queued(soon, fresh)
        clock[0] += 8  # soon has 7 s left and fresh 23 s
        student.gate.set()
        await asyncio.gather(first.done, fresh.done)
        batcher.batch_seconds = 1000.0
        await batcher.submit([pair("last")], clock[0] + 31).done
        assert soon.verdicts == [None]

    run(student, test, clock=lambda: clock[0])
    assert student.batches == [["first"], ["fresh"], ["last"]]


def test_the_wait_counts_what_is_ahead_by_deadline(student):
    async def test(batcher):
        now = time.monotonic()
        assert batcher.wait_seconds(now + LATER) == 0.0  # nothing was measured
        await busy(batcher, student)
        ticket = batcher.submit([pair("q", "red red red")] * 4, now + 100)
        await queued(ticket)
        batcher.tokens_per_second, batcher._tokens_per_pair = 10.0, 5.0
        assert batcher.wait_seconds(now + 200) == 4 * 5 / 10
        assert batcher.wait_seconds(now + 200, 6) == 10 * 5 / 10
        assert batcher.wait_seconds(now + 50, 6) == 0.0  # nothing goes first
        batcher.leave(ticket)
        assert batcher.wait_seconds(now + 200) == 0.0

    run(student, test)


def test_a_pair_that_raises_fails_alone_and_its_words_stay_inside(student):
    student.broken = {"a bad mug"}

    async def test(batcher):
        ticket = batcher.submit([pair("a"), pair("bad", "a bad mug"), pair("b")], time.monotonic() + LATER)
        await ticket.done
        again = batcher.submit([pair("c")], time.monotonic() + LATER)
        await again.done
        return [*ticket.verdicts, *again.verdicts]

    good, bad, other, later = run(student, test)
    assert good.tier and other.tier and later.tier
    assert bad.failure == RAISED and bad.tier is None and bad.pair_id == "bad" and bad.judge_id == student.judge_id
    assert "ValueError" in bad.detail and "secret" not in bad.detail


def test_a_pair_that_cannot_be_tokenized_fails_alone(student, monkeypatch):
    rows = student.scorer.encoder.rows

    def raises(pairs):
        if any(one.title == "bad" for one in pairs):
            raise RuntimeError
        return rows(pairs)

    monkeypatch.setattr(student.scorer.encoder, "rows", raises)

    async def test(batcher):
        ticket = batcher.submit([pair("a"), pair("b", "bad"), pair("c", query="mug " * 100)], time.monotonic() + LATER)
        await ticket.done
        return ticket.verdicts

    good, bad, long = run(student, test)
    assert good.tier and bad.failure == RAISED and long.failure == TOO_LONG


def test_a_large_request_is_tokenized_in_pieces_between_which_others_go(student, monkeypatch):
    pieces, rows = [], student.scorer.encoder.rows
    monkeypatch.setattr(student.scorer.encoder, "rows", lambda pairs: pieces.append(pairs[0].pair_id) or rows(pairs))

    async def test(batcher):
        large = batcher.submit([pair("large")] * (3 * ENCODED_PAIRS + 1), time.monotonic() + LATER)
        small = batcher.submit([pair("small")], time.monotonic() + LATER)
        await asyncio.gather(large.done, small.done)
        assert all(verdict.tier for verdict in large.verdicts)

    run(student, test, batch_tokens=2000)
    assert pieces == ["large", "small", "large", "large", "large"]


def test_an_empty_request_is_done(student):
    async def test(batcher):
        await batcher.submit([], time.monotonic() + LATER).done

    run(student, test)
    assert student.batches == []


def test_rows_that_nobody_waits_for_any_more_get_no_verdict(student):
    """The thread comes to a batch late, when its rows were dropped: a caller that still waits must not get an empty verdict."""

    async def test(batcher):
        held = threading.Event()
        batcher._threads.submit(held.wait, 20)  # the only thread
        ticket = batcher.submit(some_pairs(), time.monotonic() + LATER)
        await until(lambda: not batcher._free)
        batcher.leave(ticket)
        held.set()
        await until(lambda: batcher._free)
        assert not student.batches and ticket.verdicts == [None] * len(ticket.pairs) and not ticket.done.done()

    run(student, test)
