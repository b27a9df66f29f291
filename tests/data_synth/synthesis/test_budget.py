"""Limits are never passed, whatever is in flight; journals survive being cut anywhere."""

import asyncio
import random

import pytest
from traces_for_tests import make_trace

from lore.data_synth.synthesis.budget import Budget, BudgetReached, RequestGate, Spent, cost
from lore.data_synth.synthesis.config import BudgetSection, PriceSection
from lore.data_synth.synthesis.journal import Earlier, Journal, Shared, totals
from lore.data_synth.synthesis.synthesize import spent_before
from lore.data_synth.synthesis.trace import Reply, read_traces, trace_store
from lore.engines.engine import Usage
from lore.run.run_folder import RunFolder
from lore.support.errors import LoreError

PRICE = PriceSection(prompt_usd=1.0, completion_usd=3.0)


def reply(key: str, text: str = "t") -> Reply:
    return Reply("knowledge", key, "hash", "teacher", text, 5, 7, 0.1)


def test_cost_counts_a_million_tokens():
    assert cost(Usage(1_000_000, 0), PRICE).usd == 1.0 and cost(Usage(0, 2_000_000), PRICE).usd == 6.0
    assert cost(Usage(3, 4), None) == Spent(7, 0.0)


@pytest.mark.parametrize("seed", range(5))
def test_no_order_of_requests_passes_the_limit(seed, tmp_path):
    rng = random.Random(seed)

    async def main():
        budget = Budget(BudgetSection(max_tokens=10_000, max_usd=0.02))
        journal = Journal(tmp_path / "answers" / "000000.jsonl")
        most, refused = Spent(), 0

        async def one(number: int):
            nonlocal refused
            gate = RequestGate(budget, PRICE, journal, str(number))
            bound = Usage(rng.randint(1, 600), rng.randint(1, 400))
            try:
                ticket = await gate.admit(bound)
            except BudgetReached:
                refused += 1
                return
            assert budget.spent.tokens + budget.held.tokens <= 10_000
            assert budget.spent.usd + budget.held.usd <= 0.02 + 1e-9
            await asyncio.sleep(rng.random() / 200)
            part = rng.random()
            gate.settle(ticket, None if part < 0.2 else Usage(int(bound.prompt_tokens * part), int(bound.completion_tokens * part)))

        await asyncio.gather(*(one(number) for number in range(200)))
        most.tokens, most.usd = budget.spent.tokens, budget.spent.usd
        journal.close()
        return most, refused, budget

    most, refused, budget = asyncio.run(main())
    assert refused > 0 and budget.in_flight == 0 and budget.held.tokens == 0
    assert 9_000 < most.tokens <= 10_000 or most.usd > 0.018
    found = totals(tmp_path / "answers")
    assert (found.tokens, found.unsettled) == (most.tokens, 0) and found.usd == pytest.approx(most.usd)


def test_seconds_are_a_limit_too():
    budget = Budget(BudgetSection(max_seconds=5), Spent(seconds=6.0))
    with pytest.raises(BudgetReached, match=r"budget.max_seconds is 5; 6 seconds are spent"):
        asyncio.run(budget.hold(Spent(1)))


def test_what_was_under_way_when_a_process_died_counts_at_its_bound(tmp_path):
    journal = Journal(tmp_path / "000000.jsonl")
    first = journal.asked("a", 100, 0.5)
    journal.asked("b", 70, 0.25)
    journal.settled(first, 40, 0.2)
    journal.answered("pair", reply("a"))
    journal.close()
    found = totals(tmp_path)
    assert (found.tokens, found.usd, found.requests, found.answers, found.unsettled) == (110, pytest.approx(0.45), 2, 1, 1)


def test_a_journal_cut_anywhere_keeps_its_whole_lines(tmp_path):
    path = tmp_path / "000000.jsonl"
    journal = Journal(path)
    for number in range(5):
        journal.settled(journal.asked(str(number), 10, 0.0), 9, 0.0)
        journal.answered(f"pair {number}", reply(str(number), "café " * number))
    journal.close()
    whole = path.read_bytes()
    for cut in range(0, len(whole), 7):
        path.write_bytes(whole[:cut])
        again = Journal(path)
        kept = list(again.replies)
        assert kept == [str(number) for number in range(len(kept))]
        again.answered("later", reply("later"))
        again.close()
        assert list(Journal(path).replies) == [*kept, "later"]


def test_damage_in_the_middle_is_an_error(tmp_path):
    (tmp_path / "000000.jsonl").write_bytes(
        b'{"ask": 0, "key": "a", "tokens": 1, "usd": 0}\nnot json\n{"took": 0, "tokens": 1, "usd": 0}\n'
    )
    with pytest.raises(LoreError, match=r"000000.jsonl, line 2 is not JSON"):
        Journal(tmp_path / "000000.jsonl")


def test_an_answer_costs_its_first_asker_alone(tmp_path):
    journal = Journal(tmp_path / "000000.jsonl")
    journal.answered("one", reply("k"))
    assert journal.known("k", "one").completion_tokens == 7
    assert journal.known("k", "two").completion_tokens == 0 and journal.known("k", "two").text == "t"
    assert journal.known("x", "one") is None


def test_answers_of_other_runs_are_found_by_key(tmp_path):
    for number in range(3):
        journal = Journal(tmp_path / "run" / "answers" / f"00000{number}.jsonl")
        journal.asked("x", 1, 0.0)
        journal.answered("pair", reply(f"key {number}", f"text {number}"))
        journal.close()
    earlier = Earlier([str(tmp_path / "run")])
    assert len(earlier) == 3 and earlier.get("key 2").text == "text 2" and earlier.get("other") is None
    with pytest.raises(LoreError, match="not a run of stage synthesize"):
        Earlier([str(tmp_path)])


def test_parts_belong_to_what_they_were_made_of(tmp_path):
    store = trace_store(tmp_path, "stamp")
    path = store.path(3)
    traces = [make_trace(pair_id=str(number)) for number in range(4)]
    store.write(3, [trace.row() for trace in traces])
    assert store.is_current(3) and not trace_store(tmp_path, "other").is_current(3)
    assert list(read_traces(store, 3)) == list(read_traces(trace_store(tmp_path), 3)) == traces
    assert path.name == "part-000003.parquet" and list((tmp_path / "traces").iterdir()) == [path]
    with pytest.raises(LoreError, match="made with stamp and this run is other: its traces are"):
        list(read_traces(trace_store(tmp_path, "other"), 3))


def test_a_server_that_counts_more_than_was_held_is_believed(capsys):
    async def main():
        budget = Budget(BudgetSection(max_tokens=1000))
        most = Spent(100)
        await budget.hold(most)
        budget.settle(most, Spent(250))
        taken = 0
        while True:
            try:
                await budget.hold(most)
            except BudgetReached:
                return budget.spent.tokens, taken
            budget.settle(most, Spent(250))
            taken += 1

    assert asyncio.run(main()) == (1000, 3)
    assert "took 250 tokens, but only 100 were reserved" in capsys.readouterr().out


DIGITS = "9" * 4000


@pytest.mark.parametrize("count", ["1e30", "true", "-1", DIGITS, DIGITS * 2, "NaN", "Infinity", '"many"', "null", "[1]"])
def test_a_journal_with_an_impossible_count_can_be_used_again(tmp_path, count, capsys):
    path = tmp_path / "run" / "answers" / "000000.jsonl"
    path.parent.mkdir(parents=True)
    named = '"step": "knowledge", "key": "a", "prompt_hash": "h", "teacher": "t", "finish_reason": "stop"'
    counts = f'"prompt_tokens": {count}, "completion_tokens": {count}, "usd": {count}'
    path.write_text(
        '{"ask": 0, "key": "a", "tokens": 100, "usd": 0.5}\n'
        f'{{"took": 0, "tokens": {count}, "usd": {count}}}\n'
        f'{{"pair_id": "p \\ud83d", "reply": {{{named}, "text": "x \\ud83d", {counts}}}}}\n'
        f'{{"ask": {count}, "key": "b", "tokens": {count}, "usd": 0}}\n'
        '{"unknown": 1}\n'
    )
    found = totals(path.parent)
    assert (found.tokens, found.usd, found.answers, found.unsettled) == (100, 0.5, 1, 1)
    assert "3 lines hold impossible values and are left out, the first is line 2" in capsys.readouterr().out
    journal = Journal(path)
    assert journal.replies["a"] == Reply("knowledge", "a", "h", "t", "x \ufffd") == Earlier([str(tmp_path / "run")]).get("a")
    assert journal.asked("c", 1, 0.0) == 1
    store = trace_store(tmp_path)
    store.write(0, [make_trace(replies=[journal.replies["a"]]).row()])
    journal.close()


@pytest.mark.parametrize("line", ["[1, 2]", "5", "[" * 100_000, '{"took": 0, "took": 1}'])
def test_a_line_that_is_no_entry_names_the_file_and_the_line(tmp_path, line):
    (tmp_path / "000000.jsonl").write_text('{"failed": "a", "by": "p"}\n' + line + "\n")
    with pytest.raises(LoreError, match="000000.jsonl, line 2 is not JSON"):
        totals(tmp_path)


DAMAGED = ['{"seconds": 1', '{"seconds": NaN}', '{"seconds": "1"}', "[]", '{"seconds": true}', '{"seconds": -1}', "\xff"]


@pytest.mark.parametrize("text", DAMAGED)
def test_damaged_seconds_are_named(tmp_path, text):
    folder = RunFolder(tmp_path)
    (tmp_path / "answers").mkdir()
    (tmp_path / "answers" / "seconds.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(LoreError, match="seconds.json cannot be read .* Delete it"):
        spent_before(folder, Shared())
