"""The circuit breaker to the judge."""

from hypothesis import given, settings
from hypothesis import strategies as st

from lore.online.breaker import Breaker

OPEN_SECONDS = 10.0
REPORTS = ("success", "failure", "left")
STEPS = st.lists(
    st.one_of(
        st.just(("admit", 0.0)),
        st.tuples(st.sampled_from(REPORTS), st.integers(0, 3)),
        st.tuples(st.just("wait"), st.floats(0.1, 15.0)),
        st.just(("trip", 0.0)),
    ),
    max_size=80,
)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@settings(max_examples=50)
@given(STEPS, st.integers(1, 3))
def test_open_admits_nothing_half_open_one_and_closed_everything(steps, failures):
    clock = Clock()
    breaker = Breaker(failures, OPEN_SECONDS, clock)
    under_way: list[tuple[int, bool]] = []  # (ticket, whether it tries the server)
    opened, since_closed = None, []
    for step, value in steps:
        was = breaker.state
        if step == "wait":
            clock.now += value
        elif step == "trip":
            breaker.trip()
        elif step == "admit":
            ticket = breaker.admit()
            tries = any(one for _, one in under_way)
            assert (ticket is not None) == (was == "closed" or (was == "half_open" and not tries))
            if ticket is not None:
                under_way.append((ticket, was == "half_open"))
                since_closed += [ticket] if was == "closed" else []
        elif under_way:
            ticket, tries = under_way.pop(int(value) % len(under_way))
            getattr(breaker, step)(ticket)
            if tries:
                assert breaker.state == {"success": "closed", "failure": "open", "left": "half_open"}[step]
            elif was != "closed":
                assert breaker.state == was  # a request of before says nothing about now
        now = breaker.state
        if now == "open" and (was != "open" or step == "trip"):
            opened = clock.now
            under_way = [(ticket, False) for ticket, _ in under_way]
        if now != "closed":
            assert (now == "open") == (clock.now < opened + OPEN_SECONDS)


@settings(max_examples=50)
@given(st.lists(st.sampled_from(REPORTS), max_size=30), st.integers(1, 4))
def test_it_opens_at_the_first_run_of_failures(reports, failures):
    breaker = Breaker(failures, OPEN_SECONDS, Clock())
    in_a_row = 0
    for report in reports:
        getattr(breaker, report)(breaker.admit())
        in_a_row = {"success": 0, "failure": in_a_row + 1, "left": in_a_row}[report]
        assert (breaker.state == "open") == (in_a_row == failures)
        if breaker.state == "open":
            return


def test_a_trial_that_leaves_lets_the_next_one_try():
    clock = Clock()
    breaker = Breaker(1, OPEN_SECONDS, clock)
    breaker.trip()
    clock.now = OPEN_SECONDS
    breaker.left(breaker.admit())
    assert breaker.admit() is not None and breaker.admit() is None
