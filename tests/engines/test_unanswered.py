"""The bound on requests without an answer: in a row, by share, never, and switched off."""

import pytest

from lore.engines.config import UnansweredSection
from lore.engines.unanswered import AnswerWatch, TooManyUnanswered

WHY = "refused: 400 Bad Request: this deployment is paused"


def watch(**bound) -> AnswerWatch:
    return AnswerWatch(UnansweredSection(**bound), "judge server")


def test_twenty_in_a_row_stop_with_the_servers_words_and_an_answer_starts_anew():
    found = watch()
    for why in [*[WHY] * 19, None, *[WHY] * 19]:
        found.add(why)
    said = r"judge server: 20 requests in a row(.|\n)*this deployment is paused(.|\n)*max_in_a_row"
    with pytest.raises(TooManyUnanswered, match=said):
        found.add(WHY)


@pytest.mark.parametrize(("failed", "pairs", "stops"), [(5, 8, 1), (4, 8, 0), (7, 7, 0), (129, 256, 1), (128, 256, 0)])
def test_more_than_half_of_a_chunk_stops_and_small_chunks_say_nothing(failed, pairs, stops):
    whys = [WHY] * failed + [None] * (pairs - failed)
    found = watch(max_in_a_row=None)
    if not stops:
        return found.chunk(whys)
    with pytest.raises(TooManyUnanswered, match=rf"{failed} of {pairs} requests of a chunk got no answer"):
        found.chunk(whys)


def test_null_turns_the_bounds_off():
    found = watch(max_in_a_row=None, max_share=None)
    found.chunk([WHY] * 100)
    assert found.off and not watch().off


def test_each_step_has_its_own_row_of_failures():
    found = watch(max_in_a_row=3)
    for _ in range(2):
        found.add(WHY, "knowledge")
        found.add(None, "rules")
    with pytest.raises(TooManyUnanswered, match="3 requests in a row"):
        found.add(WHY, "knowledge")


def test_no_answer_at_all_is_an_error_at_the_end_and_one_answer_is_enough():
    found = watch()
    found.chunk([WHY, WHY])
    assert not found.may_store
    with pytest.raises(TooManyUnanswered, match="none of 2 requests got an answer"):
        found.end()
    found.chunk([WHY, None])
    assert found.may_store
    found.end()
