"""Who answers which pair, and what goes out at the deadline."""

import asyncio
import time
from dataclasses import replace

import pytest
from students_for_tests import write_student
from students_online import Gated, pair, until

from lore.judge.verdict import Verdict
from lore.online.answer import TOO_LATE, Cached, Draining, Overloaded, TooManyPairs, band_of
from lore.online.batcher import Batcher
from lore.online.config import RouteSection
from lore.online.router import TURN_SECONDS, Router
from lore.student.scorer import open_student

LATER = 600.0
ROUTE = RouteSection(head_from=100, torso_from=10)
SEARCHES = {"head": 1000.0, "torso": 50.0, "tail": 1.0}


@pytest.fixture(scope="module")
def scorer(tmp_path_factory):
    return open_student(write_student(tmp_path_factory.mktemp("student") / "model"))


@pytest.fixture
def student(scorer) -> Gated:
    return Gated(scorer)


class Judge:
    """Answers when the test says so. refuses: cannot be asked."""

    def __init__(self, *, ask_below=1.0, deadline_seconds=LATER, refuses=False, typical_seconds=0.0):
        self.ask_below, self.deadline_seconds, self.refuses = ask_below, deadline_seconds, refuses
        self.typical_seconds = typical_seconds
        self.asked: dict[str, asyncio.Future] = {}

    def ask(self, pair, content):
        if self.refuses:
            return None
        self.asked[pair.pair_id] = asyncio.get_running_loop().create_future()
        return self.asked[pair.pair_id]

    def says(self, pair_id: str, tier: str = "L3") -> None:
        self.asked[pair_id].set_result(Verdict(pair_id, tier, [0.0, 0.0, 1.0, 0.0], judge_id="judge"))


class Cache:
    def __init__(self, known=(), seconds: float = 0.0):
        self.known = {one: Cached(Verdict("", "L2", judge_id="judge"), time.time() - 60) for one in known}
        self.seconds = seconds

    async def get(self, contents):
        await asyncio.sleep(self.seconds)
        return [self.known.get(content) for content in contents]


def run(student: Gated, test, **options):
    """Runs test(router) in an event loop."""

    async def inside():
        batcher = Batcher(student)
        await batcher.start()
        router = Router(
            batcher,
            options.pop("route", ROUTE),
            **{
                "deadline_seconds": LATER,
                "max_pairs": 100,
                "frequency": lambda query, slices: SEARCHES.get(query),
                "key": lambda pair: pair.title.encode(),
            }
            | options,
        )
        try:
            return await test(router)
        finally:
            student.gate.set()
            await batcher.close()

    return asyncio.run(inside())


def test_each_band_is_answered_by_its_own_steps(student):
    judge, cache = Judge(), Cache([b"known"])
    pairs = [pair(f"{query} {title}", title, query) for query in ("head", "torso", "tail") for title in ("known", "new")]
    pairs.append(pair("unknown query", "new", "unknown"))

    async def test(router):
        seconds = {}
        asking = asyncio.ensure_future(router.answer(pairs, seconds=seconds))
        await until(lambda: len(judge.asked) == 2)
        for pair_id in judge.asked:
            judge.says(pair_id)
        answers = await asking
        assert {"cache", "student", "judge", "encode", "queue"} <= seconds.keys()
        return answers

    answers = run(student, test, judge=judge, cache=cache)
    assert [answer.source for answer in answers] == ["cache", "student", "cache", "student", "cache", "judge", "judge"]
    assert [answer.band for answer in answers] == ["head", "head", "torso", "torso", "tail", "tail", "tail"]
    assert [answer.verdict.pair_id for answer in answers] == [one.pair_id for one in pairs]
    assert not any(answer.late for answer in answers)
    assert answers[0].score == 1 / 3 and answers[5].score == 2 / 3 and 59 < answers[0].age_seconds < 90
    assert answers[1].verdict.judge_id == student.judge_id and answers[1].age_seconds is None


def test_at_the_deadline_the_student_answers_for_the_judge_and_is_marked_late(student):
    judge = Judge()

    async def test(router):
        return await router.answer([pair("a"), pair("b")], 1.5)

    first, second = run(student, test, judge=judge)
    assert first.late and second.late and first.source == "student" and first.verdict.tier
    assert not judge.asked["a"].done()  # its answer may still come, for the cache


def test_the_judges_own_deadline_is_kept_where_the_request_has_more_time(student):
    async def test(router):
        return await router.answer([pair("a")])

    (answer,) = run(student, test, judge=Judge(deadline_seconds=0.05))
    assert answer.late and answer.source == "student"


def test_an_answer_of_the_judge_does_not_wait_for_the_student(student):
    judge = Judge()

    async def test(router):
        student.gate.clear()
        asking = asyncio.ensure_future(router.answer([pair("a")]))
        await until(lambda: judge.asked)
        judge.says("a")
        return await asking

    (answer,) = run(student, test, judge=judge)
    assert answer.source == "judge" and not answer.late


@pytest.mark.parametrize("judge", [Judge(refuses=True), None])
def test_without_the_judge_the_student_answers(student, judge):
    async def test(router):
        return await router.answer([pair("a")])

    (answer,) = run(student, test, judge=judge)
    assert answer.source == "student" and answer.late == (judge is not None)


def test_a_judge_without_an_answer_leaves_the_pair_to_the_student(student):
    judge = Judge()

    async def test(router):
        asking = asyncio.ensure_future(router.answer([pair("a"), pair("b")]))
        await until(lambda: len(judge.asked) == 2)
        judge.asked["a"].set_result(None)
        judge.says("b")
        return await asking

    first, second = run(student, test, judge=judge)
    assert first.source == "student" and first.late and second.source == "judge" and not second.late


def confidence(student: Gated, one) -> float:
    return max(student.scorer.score([one])[0].probabilities)


@pytest.mark.parametrize("typical_seconds", [0.0, 2 * LATER])  # one after the other, and both at once
def test_the_judge_is_not_waited_for_where_the_student_is_sure(student, typical_seconds):
    pairs = [pair("a", "red mug"), pair("b", "a blue lamp for children"), pair("c", "green"), pair("d", "kitchen shoe of lumo")]
    sure = {one.pair_id: confidence(student, one) for one in pairs}
    limit = sorted(sure.values())[1] + 1e-4  # two below, two above
    judge = Judge(ask_below=limit, typical_seconds=typical_seconds)
    unsure = {pair_id for pair_id, value in sure.items() if value < limit}

    async def test(router):
        asking = asyncio.ensure_future(router.answer(pairs))
        await until(lambda: unsure <= judge.asked.keys())
        for pair_id in unsure:
            judge.says(pair_id)
        return await asking

    answers = run(student, test, judge=judge)
    assert {answer.verdict.pair_id for answer in answers if answer.source == "judge"} == unsure
    assert not any(answer.late for answer in answers)
    assert set(judge.asked) == (unsure if not typical_seconds else set(sure))


def test_a_request_whose_student_is_stuck_is_answered_at_its_deadline_with_failures(student):
    async def test(router):
        student.gate.clear()
        began = time.monotonic()
        answers = await router.answer([pair("a", "known"), pair("b")], 0.05)
        assert time.monotonic() - began >= 0.04
        assert router.pairs_under_way == router.requests_under_way == 0
        return answers

    cached, failed = run(student, test, cache=Cache([b"known"]))
    assert cached.source == "cache" and cached.verdict.tier == "L2"
    assert failed.verdict.failure == TOO_LATE and failed.score is None and failed.verdict.pair_id == "b"


def test_answers_leave_earlier_where_the_event_loop_is_late(student):
    async def test(router):
        student.gate.clear()
        router._lag = 0.4
        began = time.monotonic()
        await router.answer([pair("a")], 1.0)
        assert router._lag < 0.4 or time.monotonic() - began > 1.2  # a machine under load can be as late as it was
        return time.monotonic() - began

    assert run(student, test) >= 0.79  # at most a fifth earlier


def test_a_cache_that_hangs_is_left_at_the_deadline(student):
    async def test(router):
        return await router.answer([pair("a")], 0.05)

    (answer,) = run(student, test, cache=Cache(seconds=LATER))
    assert answer.verdict.failure == TOO_LATE


def test_pairs_of_the_same_content_share_the_judges_answer(student):
    class Sharing(Judge):
        def ask(self, pair, content):
            return next(iter(self.asked.values()), None) or super().ask(pair, content)

    judge = Sharing()

    async def test(router):
        asking = asyncio.ensure_future(router.answer([pair("a"), pair("b")]))
        await until(lambda: judge.asked)
        judge.says("a")
        return await asking

    answers = run(student, test, judge=judge)
    assert [(answer.source, answer.verdict.pair_id) for answer in answers] == [("judge", "a"), ("judge", "b")]


def test_more_pairs_than_may_be_under_way_are_refused_with_a_time_to_come_back(student):
    async def test(router):
        student.gate.clear()
        first = asyncio.ensure_future(router.answer([pair("a")] * 60))
        await until(lambda: student.batches)
        with pytest.raises(Overloaded) as refused:
            await router.answer([pair("b")] * 41)
        assert 0 < refused.value.retry_seconds <= 30
        second = asyncio.ensure_future(router.answer([pair("c")] * 40))
        student.gate.set()
        await asyncio.gather(first, second)
        assert len(await router.answer([pair("d")] * 200)) == 200  # more than the limit, but nothing else is under way
        student.gate.clear()

    run(student, test)


def test_a_request_that_would_wait_past_its_deadline_is_refused(student):
    async def test(router):
        student.gate.clear()
        first = asyncio.ensure_future(router.answer([pair("a")], 50))
        await until(lambda: student.batches)
        waiting = asyncio.ensure_future(router.answer([pair("b")] * 20, 50))
        await until(lambda: router.batcher._queue)
        router.batcher.tokens_per_second, router.batcher._tokens_per_pair = 1.0, 5.0
        with pytest.raises(Overloaded, match="the queue takes 110.000 s, too long for the deadline") as refused:
            await router.answer([pair("c")], 200)  # half of it is left for what the measured rate does not know
        assert 15 >= refused.value.retry_seconds > 9
        cached = await router.answer([pair("d", "known")], 60)  # needs no student
        assert cached[0].source == "cache"
        student.gate.set()
        await asyncio.gather(first, waiting)
        assert (await router.answer([pair("e")], 1.0))[0].verdict.pair_id == "e"  # an empty queue takes everything

    run(student, test, cache=Cache([b"known"]))


@pytest.mark.parametrize("judge", [None, Judge()])
@pytest.mark.parametrize("fresh", [True, False])
def test_a_request_most_of_which_cannot_be_answered_in_time_is_refused(student, judge, fresh):
    """However much time the judge has: the student is to answer in its place."""

    async def test(router):
        batcher = router.batcher
        tokens = student.encoder.rows([pair("a")])[0]["length"]
        most = batcher.batch_tokens // tokens + 1  # more than one batch
        # Ten pairs a second: as measured now, or at best if that is long ago.
        batcher.tokens_per_second, batcher.best_tokens_per_second = (10.0 * tokens, 1e9) if fresh else (tokens, 10.0 * tokens)
        batcher._measured = time.monotonic() - (0.0 if fresh else 1000.0)
        with pytest.raises(TooManyPairs) as refused:
            await router.answer([pair("a")] * most, 0.4 * most / 10)
        assert f"{most:,} pairs take" in str(refused.value) and "10 pairs a second" in str(refused.value)
        assert f"at most {int(0.4 * most):,} pairs at a time" in str(refused.value)
        assert not student.batches and router.pairs_under_way == 0 and router._pairs_per_second is None
        if judge is None:
            for count, seconds in ((most, 0.6 * most / 10), (most - 1, 1.0)):  # more than half of them could be; one batch
                assert all(one.verdict.tier for one in await router.answer([pair("a")] * count, seconds))

    run(student, test, judge=judge, max_pairs=10_000)


def test_a_request_that_takes_too_long_to_tokenize_is_refused(student, monkeypatch):
    rows = student.scorer.encoder.rows
    monkeypatch.setattr(student.scorer.encoder, "rows", lambda pairs: time.sleep(0.02) or rows(pairs))

    async def test(router):
        router.batcher.tokens_per_second, router.batcher._measured = 1e9, time.monotonic()
        with pytest.raises(TooManyPairs):
            await router.answer([pair("a", "mug " * 40)] * 6400, 0.9)  # a hundred pieces of 20 ms

    run(student, test, max_pairs=10_000)


def test_other_requests_get_their_turn_while_contents_are_computed(student):
    def slow(one):
        time.sleep(1.5 * TURN_SECONDS)
        return b""

    async def test(router):
        turns, asking = 0, asyncio.ensure_future(router.answer([pair("a")] * 20))
        while not asking.done():
            await asyncio.sleep(0)
            turns += not student.batches
        return turns

    assert run(student, test, cache=Cache([b""]), key=slow) >= 20


def test_a_draining_router_refuses_and_finishes(student):
    async def test(router):
        student.gate.clear()
        first = asyncio.ensure_future(router.answer([pair("a")]))
        await until(lambda: student.batches)
        router.draining = True
        with pytest.raises(Draining):
            await router.answer([pair("b")])
        student.gate.set()
        assert (await first)[0].verdict.tier

    run(student, test)


def test_a_caller_that_leaves_takes_its_pairs_along(student):
    async def test(router):
        student.gate.clear()
        first = asyncio.ensure_future(router.answer([pair("first")]))
        await until(lambda: student.batches)
        gone = asyncio.ensure_future(router.answer([pair("gone")]))
        await until(lambda: router.batcher._queue)
        gone.cancel()
        await asyncio.wait([gone])
        assert router.pairs_under_way == 1
        student.gate.set()
        await first
        await router.answer([pair("last")])

    run(student, test)
    assert student.batches == [["first"], ["last"]]


def test_bands_begin_at_their_bounds():
    found = [band_of(searches, ROUTE.head_from, ROUTE.torso_from) for searches in (None, 0.0, 9.9, 10.0, 99.9, 100.0)]
    assert found == ["tail", "tail", "tail", "torso", "torso", "head"]


def test_verdicts_of_the_cache_are_copied(student):
    cache = Cache([b"known"])
    before = replace(cache.known[b"known"].verdict)

    async def test(router):
        return await router.answer([pair("a", "known"), pair("b", "known")])

    assert [answer.verdict.pair_id for answer in run(student, test, cache=cache)] == ["a", "b"]
    assert cache.known[b"known"].verdict == before
