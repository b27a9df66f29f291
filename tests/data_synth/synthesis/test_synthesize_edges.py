"""The stage synthesize where something is odd: a budget of one token, a wrong rubric, a server that refuses, damaged photos."""

import asyncio
import json
from dataclasses import replace

import pyarrow.parquet as pq
import pytest
import synthesis_for_tests
import yaml
from openai_server import Answer, error, reply, serve
from synthesis_for_tests import MODEL, make_shop, run_that_accepts_nothing, traces_of, write_recipe
from teacher_server import ShopServer, step_of

from lore.data.images import load_image
from lore.data.parquet import PairWriter, read_pairs
from lore.data_synth.synthesis.budget import Budget, RequestGate, Spent
from lore.data_synth.synthesis.config import BudgetSection
from lore.data_synth.synthesis.journal import Journal
from lore.engines.engine import Usage
from lore.run.run_folder import RunFolder
from lore.run.runner import run_recipe
from lore.support.errors import LoreError


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    return make_shop(tmp_path_factory.mktemp("shop"), 24)


@pytest.fixture
def recipe(shop, runs, tmp_path):
    """recipe("a", change=f, teacher={...}) writes a recipe over the shop's pairs, each brought to f(pair)."""

    def write(run="edge", change=None, **more):
        data = {"path": str(shop / "pairs"), "rubric": "shop"}
        if change is not None:
            data["path"] = str(tmp_path / f"{run}.parquet")
            with PairWriter(data["path"]) as writer:
                for pair in read_pairs(shop / "pairs"):
                    writer.write(change(pair))
        return write_recipe(tmp_path, run, shop, **{"data": data, "chunk_pairs": 10, **more})

    return write


def endpoint(server, **more):
    quick = {"max_concurrency": 4, "max_down_seconds": 5.0} | more.pop("endpoint", {})
    return synthesis_for_tests.endpoint(server, endpoint=quick, **more)


def test_a_budget_that_ends_before_the_first_chunk_says_so(recipe):
    with serve(ShopServer().answer) as server:
        path = recipe("poor", teacher=endpoint(server), budget={"max_tokens": 1})
        with pytest.raises(LoreError, match=r"budget.max_tokens is 1(.|\n)*0 pairs have a trace"):
            run_recipe(path)
        assert server.requests == []


def test_labels_of_another_rubric_stop_before_anything_is_asked(recipe):
    with serve(ShopServer().answer) as server:
        path = recipe("foreign", lambda pair: replace(pair, label="Exact"), teacher=endpoint(server))
        with pytest.raises(LoreError, match="'Exact' is not a tier of rubric shop"):
            run_recipe(path)
        assert server.requests == []


def test_a_server_that_refuses_everything_stops_the_run(recipe, runs):
    with serve(lambda request: error(400, "temperature 0.7 is not supported by this model")) as server:
        with pytest.raises(LoreError, match=r"20 requests in a row got no answer(.|\n)*temperature 0.7 is not supported"):
            run_recipe(recipe("refused", teacher=endpoint(server, temperature=0.7), attempts={"most": 8, "most_hard": 8}))
    assert not (runs / "refused" / "done").exists()


def test_halves_of_characters_in_a_verdict_reject_the_pair_alone(recipe):
    teacher = ShopServer()

    def odd(request):
        answer = teacher.answer(request)
        if step_of(request) == "rules":
            message = answer.body["choices"][0]["message"]
            message["content"] = message["content"].replace('"verdict": "L', '"verdict": "\\ud800L')
        return answer

    with serve(odd) as server:
        folder = run_that_accepts_nothing(recipe("odd", teacher=endpoint(server)))
    assert {trace.tier for trace in traces_of(folder)} <= {f"\ufffdL{tier}" for tier in range(1, 5)}


def test_a_critic_may_say_odd_things(recipe):
    teacher = ShopServer()

    def odd(request):
        good = step_of(request) != "critic"
        return teacher.answer(request) if good else reply('{"accept": false, "why": "\\ud800"}', model=MODEL)

    with serve(odd) as server:
        folder = run_that_accepts_nothing(recipe("critic", teacher=endpoint(server), critic=endpoint(server)))
    assert {check.why for trace in traces_of(folder) for check in trace.checks if check.name == "critic"} == {"\ufffd"}


def test_a_chunk_that_cannot_be_written_stops_the_run(recipe, runs, monkeypatch):
    from lore.judge.chunk_store import ChunkStore

    def full(store, number, rows):
        if store.path(number).name == "part-000000.parquet":
            raise OSError("no space left on device")
        write(store, number, rows)

    write = ChunkStore.write
    monkeypatch.setattr(ChunkStore, "write", full)
    with pytest.raises(OSError, match="no space"):
        run_recipe(recipe("full"))
    assert not (runs / "full" / "done").exists()
    monkeypatch.setattr(ChunkStore, "write", write)
    assert run_recipe(recipe("full")).summary["pairs"] == 24


def test_a_damaged_photo_rejects_its_pair_alone(recipe):
    folder = run_recipe(recipe("photo", lambda pair: replace(pair, image=pair.image and {"bytes": b"no image", "path": None})))
    traces = traces_of(folder)
    damaged = [trace for trace in traces if trace.failure]
    assert damaged and all("an image" in trace.failure for trace in damaged)
    assert any(trace.accepted for trace in traces)


def test_a_damaged_photo_is_not_paid_for_again(recipe):
    teacher = ShopServer()
    with serve(teacher.answer) as server:
        change = {"change": lambda pair: replace(pair, image={"bytes": b"no image", "path": None})}
        change |= {"unanswered": {"max_in_a_row": None, "max_share": None}}
        change |= {"teacher": endpoint(server, temperature=0.7), "attempts": {"hint": "after_failure"}}
        folder = run_that_accepts_nothing(recipe("once", **change))
    assert teacher.asked == {"knowledge": len(server.requests)}
    assert all(len(trace.attempts) == 1 and "an image" in trace.failure for trace in traces_of(folder))


def test_tasks_need_no_photo_that_cannot_be_opened(recipe):
    path = recipe("tasks", lambda pair: replace(pair, image={"bytes": b"no image", "path": None}), tasks=["multimodal"])
    folder = run_recipe(path)
    rows = pq.read_table(folder / "tasks" / "multimodal.parquet").to_pylist()
    assert len(rows) == folder.summary["accepted"] > 0 and all(row["image"] is None for row in rows)


def test_a_photo_that_lies_in_a_file_is_read(recipe, shop, tmp_path):
    def as_file(pair):
        if pair.image is None:
            return pair
        path = tmp_path / f"{pair.pair_id}.png"
        path.write_bytes(pair.image["bytes"])
        return replace(pair, image={"bytes": None, "path": str(path)})

    folder = run_recipe(recipe("files", as_file))
    assert folder.summary["accepted"] == 24
    for path in tmp_path.glob("*.png"):
        path.unlink()
    photos = [pair.image for pair in read_pairs(folder / "pairs", image_roots=()) if pair.image]
    assert photos and all(load_image(photo) for photo in photos)  # the set holds them


@pytest.mark.parametrize("split", ["../../out", ".hidden", "a/b", "..", "训练"])
def test_any_split_becomes_a_file_that_datasets_finds(recipe, split):
    import datasets

    folder = run_recipe(recipe("split", lambda pair: replace(pair, split=split)))
    assert len(list((folder / "pairs").glob("*.parquet"))) == 1
    loaded = datasets.load_dataset(str(folder / "pairs"), cache_dir=str(folder / "cache"))
    assert [len(rows) for rows in loaded.values()] == [24]


def test_a_split_that_keeps_nothing_leaves_no_old_file(recipe, runs):
    stale = runs / "stale" / "pairs" / "dev.parquet"

    def with_stale(request):
        stale.parent.mkdir(parents=True, exist_ok=True)
        stale.write_bytes(b"of an earlier start")
        return reply("no", model=MODEL)

    with serve(with_stale) as server:
        run_that_accepts_nothing(recipe("stale", teacher=endpoint(server)))
    assert not stale.exists()


def test_a_captioners_server_may_move(recipe, runs):
    teacher = ShopServer()
    with serve(teacher.answer) as server:
        first = recipe("moved", teacher=endpoint(server), captioner=endpoint(server), photos="caption", budget={"max_tokens": 9000})
        with pytest.raises(LoreError, match="budget.max_tokens"):
            run_recipe(first)
    with serve(teacher.answer) as server:
        urls = [f"{role}.endpoint.url={server.url}" for role in ("teacher", "captioner")]
        assert run_recipe(first, [*urls, "budget.max_tokens=10000000"]).summary["accepted"] == 24


def test_samples_that_cannot_differ_are_a_conflict(recipe):
    with pytest.raises(LoreError, match="3 samples of a program"):
        run_recipe(recipe("same", attempts={"samples": 3, "hint": "never"}))


def test_the_card_holds_no_path_of_this_machine(recipe, tmp_path):
    own = tmp_path / "own-prompts"
    own.mkdir()
    (own / "rules.en.md").write_text("a\n=== user\nb")
    folder = run_recipe(recipe("paths", prompts=str(own), reuse=[]))
    text = (folder / "pairs" / "README.md").read_text(encoding="utf-8")
    assert str(tmp_path) not in text and "own-prompts" in text


def test_a_journal_that_cannot_be_written_holds_no_budget(tmp_path):
    class Full(Journal):
        def _append(self, entry):
            raise OSError("no space left on device")

    async def ask():
        budget = Budget(BudgetSection(max_tokens=100))
        gate = RequestGate(budget, None, Full(tmp_path / "a.jsonl"), "key")
        with pytest.raises(OSError, match="no space"):
            await gate.admit(Usage(60, 10))
        assert (budget.in_flight, budget.held) == (0, Spent())
        await budget.hold(Spent(70))
        with pytest.raises(OSError, match="no space"):
            gate.settle((0, Spent(70)), Usage(20, 5))
        assert (budget.in_flight, budget.held.tokens, budget.spent.tokens) == (0, 0, 25)

    asyncio.run(ask())


def test_a_program_cannot_follow_a_free_rubric(recipe, tmp_path):
    from lore.rubric.rubric import load_rubric

    body = json.loads(load_rubric("shop").model_copy(update={"aggregate": "free"}).model_dump_json())
    (tmp_path / "free-rubric.yaml").write_text(yaml.safe_dump(body), encoding="utf-8")
    path = recipe("free")
    with pytest.raises(LoreError, match="aggregate: free"):
        run_recipe(path, [f"data.rubric={tmp_path / 'free-rubric.yaml'}"])


@pytest.mark.parametrize("place", ["prompts", "prompts/nothing"])
def test_a_folder_without_prompts_is_no_prompts_folder(recipe, tmp_path, place):
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts" / "rules.md").write_text("misnamed")
    with pytest.raises(LoreError, match=r"prompts(.|\n)*rules.en.md"):
        run_recipe(recipe("own", prompts=str(tmp_path / place)))


@pytest.mark.parametrize(
    "section",
    [{"key_variable": "sk-very-secret"}, {"url": "http://me:sk-very-secret@host/v1"}, {"extra": {"api_key": "sk-very-secret"}}],
)
def test_a_key_in_a_recipe_is_refused_and_not_repeated(recipe, section):
    teacher = {"kind": "endpoint", "endpoint": {"url": "http://127.0.0.1:9/v1", "model": "m"} | section}
    with pytest.raises(LoreError) as refused:
        run_recipe(recipe("secret", teacher=teacher))
    assert "key_variable" in str(refused.value) and "sk-very-secret" not in str(refused.value)
    with pytest.raises(LoreError) as refused:
        teacher["endpoint"] = {"url": "http://127.0.0.1:9/v1", "model": "m"}
        run_recipe(recipe("typed", teacher=teacher), ["teacher.endpoint.key_variable=sk-very-secret"])
    assert "sk-very-secret" not in str(refused.value)


MISPLACED = [
    {"api_key": "hunter2hunter2"},
    {"headers": {"Authorization": "hunter2hunter2"}},
    [{"api_key": "hunter2hunter2"}],
    {"url": "http://127.0.0.1:9/v1", "model": "m", "token": "hunter2hunter2"},
    {"url": "http://127.0.0.1:9/v1?x=hunter2hunter2", "model": "m"},
    {"url": "http://127.0.0.1:9/v1#hunter2hunter2", "model": "m"},
    {"url": "http://127.0.0.1:9/v1", "model": "sk-hunter2hunter2"},
    "sk-hunter2hunter2",
]


@pytest.mark.parametrize("section", MISPLACED, ids=str)
def test_a_key_in_the_wrong_place_is_refused_and_not_repeated(recipe, section):
    path = recipe("misplaced", teacher={"kind": "endpoint", "endpoint": section})
    written = yaml.safe_dump({"endpoint": section}, default_flow_style=True, width=10_000).strip()
    for overrides in ([], [f"teacher={written}"], ["teacher.endpoint.api_key=hunter2hunter2"], ["teacher.api_key=hunter2hunter2"]):
        with pytest.raises(LoreError) as refused:
            run_recipe(path, overrides)
        assert "hunter2" not in str(refused.value)
    twice = path.with_name("twice.yaml")
    twice.write_text(path.read_text() + "api_key: hunter2hunter2\napi_key: hunter2hunter3\n")
    doubled = ["api_key=hunter2hunter2", "api_key=hunter2hunter3"]
    for more in ([], doubled, ["seed.api_key=hunter2hunter2"], ["api_key:hunter2hunter2"]):
        with pytest.raises(LoreError) as refused:
            run_recipe(twice, more)
        assert "hunter2" not in str(refused.value)


def test_a_key_that_an_earlier_version_stored_is_not_shown_by_a_resume(recipe, runs):
    with serve(ShopServer().answer) as server:
        teacher = endpoint(server, endpoint={"extra": {"service_tier": "flex", "metadata": {"token_kind": "x"}}})
        folder = run_recipe(recipe("old", teacher=teacher))
        stored = folder.recipe_path.read_text().replace("service_tier: flex", "auth: hunter2\n      service_tier: flex")
        folder.recipe_path.write_text(stored.replace("token_kind: x", "access_token: hunter2"))
        with pytest.raises(LoreError, match="extra.auth: was 'a value that is not shown") as refused:
            run_recipe(recipe("old", teacher=teacher))
    assert "hunter2" not in str(refused.value)
    # The additional fields are part of a teacher's identity; what is published has their hash.
    teachers = {reply.teacher for trace in traces_of(folder) for reply in trace.replies}
    assert len(teachers) == 1 and "flex" not in teachers.pop()
    assert "flex" not in "".join(path.read_text() for path in (folder / "answers").glob("*.jsonl"))


def test_a_task_that_is_named_twice_is_written_once(recipe):
    folder = run_recipe(recipe("twice", tasks=["rules", "rules"]))
    assert pq.read_table(folder / "tasks" / "rules.parquet").num_rows == 24


def test_chinese_words_are_found_inside_longer_runs():
    from lore.data.pair import Pair
    from lore.data_synth.synthesis.program_words import WordsProgram
    from lore.rubric.rubric import load_rubric

    program = WordsProgram(load_rubric("crowdflower"), "zh")
    pair = Pair(pair_id="p", query="红椅子", title="大红色木椅子")
    found = program.multimodal(pair, program.knowledge(pair, []), [])
    assert {(evidence.found, evidence.source) for evidence in found} == {("红", "title"), ("椅", "title"), ("子", "title")}


def test_pairs_far_apart_share_what_is_known_of_their_query(recipe, shop, tmp_path):
    """In shuffled data a query comes back in another chunk, and after another start."""
    pairs = sorted(read_pairs(shop / "pairs"), key=lambda pair: pair.pair_id)
    with PairWriter(tmp_path / "shuffled.parquet") as writer:
        for pair in pairs:
            writer.write(pair)
    teacher = ShopServer()
    data = {"path": str(tmp_path / "shuffled.parquet"), "rubric": "shop"}
    with serve(teacher.answer) as server:
        section = endpoint(server, endpoint={"max_concurrency": 1})
        path = recipe("apart", data=data, teacher=section, chunk_pairs=2, budget={"max_tokens": 25_000})
        with pytest.raises(LoreError, match="budget.max_tokens"):
            run_recipe(path)
        folder = run_recipe(path, ["budget.max_tokens=10000000"])
    assert folder.summary["accepted"] == 24
    assert teacher.asked["knowledge"] == len({pair.query for pair in pairs}) < 24
    assert folder.summary["tokens"] == teacher.tokens


def cut_inside(opening):
    """A teacher that is cut in its reasoning, after a draft of every step's answer."""
    teacher = ShopServer()

    def answer(request):
        whole = teacher.answer(request)
        choice = whole.body["choices"][0]
        choice["message"]["content"] = f"{opening}Maybe {choice['message']['content']}, but wait"
        choice["finish_reason"] = "length"
        return whole

    return answer


@pytest.mark.parametrize("opening", ["<think>", "[THINK]", "<|channel|>analysis<|message|>", ""])
def test_a_draft_inside_reasoning_that_was_cut_is_no_trace(recipe, opening):
    off = {"unanswered": {"max_in_a_row": None, "max_share": None}}
    with serve(cut_inside(opening)) as server:
        folder = run_that_accepts_nothing(recipe("cut", teacher=endpoint(server), **off))
    assert all("knowledge: the answer was cut at max_tokens" in trace.failure for trace in traces_of(folder))


def test_reasoning_that_does_not_end_is_no_trace_whatever_the_server_says(recipe):
    teacher = ShopServer()

    def answer(request):
        whole = teacher.answer(request)
        message = whole.body["choices"][0]["message"]
        message["content"] = f"{message['content']}\n<thinking>No, that is wrong"
        return whole

    with serve(answer) as server:
        path = recipe("open", teacher=endpoint(server))
        with pytest.raises(LoreError, match=r"of 10 requests of a chunk got no answer(.|\n)*knowledge: the reasoning does not end"):
            run_recipe(path)


def test_a_teacher_whose_answers_are_cut_stops_and_the_next_start_asks_the_cut_ones_again(recipe, runs):
    teacher, cut = ShopServer(), cut_inside("<think>")
    works = []
    with serve(lambda request: (teacher.answer if works else cut)(request)) as server:
        path = recipe("short", teacher=endpoint(server))
        for _ in range(2):  # a second start does not turn the stop into rejected pairs
            with pytest.raises(LoreError, match=r"got no answer(.|\n)*cut"):
                run_recipe(path)
        assert not list((runs / "short" / "traces").glob("part-*"))
        works.append(True)
        assert run_recipe(path).summary["accepted"] > 12


ODD = [error(500, "boom"), error(403, "firewall"), Answer(body=b"[]")]


@pytest.mark.parametrize("odd", ODD, ids=["500", "403", "200"])
def test_prompts_that_a_server_cannot_answer_are_no_server_that_is_down(recipe, runs, odd, monkeypatch):
    for name, value in {"BREAKER_FAULTS": 3, "FIRST_WAIT_SECONDS": 0.01, "FIRST_PROBE_SECONDS": 0.01}.items():
        monkeypatch.setattr(f"lore.engines.http.throttle.{name}", value)
    teacher, bad = ShopServer(), set()

    def sick(request):
        if step_of(request) == "multimodal" and len(bad) < 3:
            bad.add(request.text)
        return odd if request.text in bad else teacher.answer(request)

    with serve(sick) as server:
        path = recipe("sick", teacher=endpoint(server, endpoint={"max_attempts": 4, "max_down_seconds": 0.1}))
        if odd.status != 403:
            with pytest.raises(LoreError, match="3 pairs got no usable answer"):
                run_recipe(path)
        folder = run_recipe(path)
    lost = [trace for trace in traces_of(folder) if not trace.accepted]
    assert folder.summary["accepted"] == 21 and len(lost) == 3
    assert all("multimodal: refused: " in trace.failure for trace in lost)


def test_a_teacher_that_refuses_one_step_loses_every_pair_and_stops(recipe, runs):
    teacher = ShopServer()

    def answer(request):
        return error(400, "no photos on this plan") if step_of(request) == "multimodal" else teacher.answer(request)

    with serve(answer) as server:
        with pytest.raises(LoreError, match=r"got no answer(.|\n)*no photos on this plan"):
            run_recipe(recipe("step", teacher=endpoint(server)))
    assert not list((runs / "step" / "traces").glob("part-*"))


@pytest.mark.parametrize("limit", [1, 3])
def test_few_pairs_without_any_answer_are_no_result(recipe, shop, limit):
    data = {"path": str(shop / "pairs"), "rubric": "shop", "split": "train", "limit": limit}
    with serve(lambda request: error(400, "paused")) as server:
        with pytest.raises(LoreError, match=rf"none of {limit} requests got an answer(.|\n)*paused"):
            run_recipe(recipe("few", teacher=endpoint(server), attempts={"most": 1, "most_hard": 1, "hint": "never"}, data=data))


def choice(message: dict, reason: str = "stop"):
    answer = reply("", model=MODEL)
    answer.body["choices"] = [{"index": 0, "finish_reason": reason, "message": {"role": "assistant", **message}}]
    return answer


@pytest.mark.parametrize(
    ("message", "reason"), [({"content": ""}, "stop"), ({"tool_calls": [{"id": "1"}]}, "tool_calls"), ({"content": None}, "stop")]
)
def test_a_teacher_whose_answers_hold_nothing_stops_the_run(recipe, runs, message, reason):
    with serve(lambda request: choice(message, reason)) as server:
        with pytest.raises(LoreError, match=rf"got no answer(.|\n)*knowledge: .*empty answer, finish_reason {reason}"):
            run_recipe(recipe("empty", teacher=endpoint(server)))
    assert not (runs / "empty" / "done").exists() and not list((runs / "empty" / "traces").glob("part-*"))


def test_a_teacher_that_declines_every_pair_makes_no_finished_set(recipe):
    with serve(lambda request: reply("I'm sorry, I can't help with that.", model=MODEL)) as server:
        path = recipe("sorry", teacher=endpoint(server))
        said = r"24 pairs was accepted(.|\n)*unreadable 24(.|\n)*For example: knowledge: no JSON object"
        with pytest.raises(LoreError, match=said):
            run_recipe(path)


def quota(teacher, **after):
    """A teacher that refuses each of these steps from a request of that step on."""
    asked = dict.fromkeys(after, 0)

    def answer(request):
        step = step_of(request)
        asked[step] = asked.get(step, 0) + 1
        return error(400, "quota exceeded") if asked[step] > after.get(step, 10**6) else teacher.answer(request)

    return answer


def test_refused_pairs_below_the_bound_are_told_apart_and_their_words_are_printed(recipe, capsys):
    with serve(quota(ShopServer(), rules=16)) as server:
        unbounded = {"max_in_a_row": None, "max_share": None}
        attempts = {"most": 1, "most_hard": 1, "hint": "never"}
        folder = run_recipe(recipe("few", teacher=endpoint(server), unanswered=unbounded, attempts=attempts))
    lost = [trace for trace in traces_of(folder) if trace.failed == ["refused"]]
    assert 4 < len(lost) == 24 - folder.summary["accepted"]
    assert {trace.failure for trace in lost} == {"rules: refused: 400 Bad Request: quota exceeded"}
    said = capsys.readouterr().out
    assert f"{len(lost)} pairs got no answer: {len(lost)} x rules: 400 Bad Request: quota exceeded" in said
    assert f"rejected pairs failed refused {len(lost)};" in said
    assert not any(trace.failed == ["unreadable"] for trace in traces_of(folder))


def test_answers_to_other_steps_do_not_hide_a_step_that_is_refused(recipe):
    more = {"attempts": {"most": 1, "most_hard": 1, "hint": "never"}, "unanswered": {"max_in_a_row": 5, "max_share": None}}
    with serve(quota(ShopServer(), rules=8)) as server:
        with pytest.raises(LoreError, match=r"5 requests in a row got no answer(.|\n)*rules: 400 Bad Request: quota exceeded"):
            run_recipe(recipe("step", teacher=endpoint(server, endpoint={"max_concurrency": 1}), **more))


@pytest.mark.parametrize(("step", "after"), [("rules", 6), ("critic", 6)])
def test_pairs_refused_before_a_stop_are_asked_again_and_none_stays_rejected(recipe, runs, step, after):
    """The chunk in which an outage begins is stored; the next start does not keep its pairs as rejected."""
    teacher, works = ShopServer(), []
    limited = quota(teacher, **{step: after})

    def answer(request):
        if step_of(request) == "critic":
            teacher_says = reply('{"accept": true}', model=MODEL)
            return teacher_says if works or step != "critic" else crowded(request, teacher_says)
        return teacher.answer(request) if works else limited(request)

    critics = []

    def crowded(request, good):
        critics.append(request)
        return error(400, "quota exceeded") if len(critics) > after else good

    attempts = {"most": 1, "most_hard": 1, "hint": "never"}
    with serve(answer) as server:
        one = {"max_concurrency": 1}
        roles = {"teacher": endpoint(server, endpoint=one), "critic": endpoint(server, endpoint=one)}
        path = recipe("outage", **roles, attempts=attempts, unanswered={"max_share": 0.6, "max_in_a_row": None}, chunk_pairs=10)
        with pytest.raises(LoreError, match="quota exceeded"):
            run_recipe(path)
        stored = [trace.failed for trace in traces_of(RunFolder(runs / "outage"))]
        assert ["refused"] in stored and len(stored) < 24
        works.append(True)
        before = len(server.requests)
        folder = run_recipe(path)
        assert len(server.requests) > before
    assert folder.summary["pairs"] == folder.summary["accepted"] == 24


def test_pairs_that_stay_refused_do_not_stop_the_next_start(recipe):
    """The teacher refuses every second pair: with four at most in a row, the refused ones of stored chunks are no outage."""
    teacher, down, titles = ShopServer(), [40], {}

    def answer(request):
        if request.number >= down[0]:
            return error(401, "no such key")
        if step_of(request) == "rules":
            titles.setdefault(request.text, len(titles))
            if titles[request.text] % 2:
                return error(400, "withheld")
        return teacher.answer(request)

    attempts = {"most": 1, "most_hard": 1, "hint": "never"}
    with serve(answer) as server:
        more = {"attempts": attempts, "unanswered": {"max_in_a_row": 4, "max_share": None}, "chunk_pairs": 10}
        path = recipe("filter", teacher=endpoint(server, endpoint={"max_concurrency": 1}), **more)
        with pytest.raises(LoreError, match="key"):
            run_recipe(path)
        down[0] = 10**6
        folder = run_recipe(path)
    lost = [trace for trace in traces_of(folder) if trace.failed == ["refused"]]
    assert len(lost) >= 8 and len(lost) + folder.summary["accepted"] == 24


def test_the_advice_of_an_error_comes_once(recipe):
    with serve(lambda request: error(500, "boom")) as server:
        quick = {"max_attempts": 1, "max_concurrency": 1, "max_down_seconds": 2.0}
        with pytest.raises(LoreError) as caught:
            run_recipe(recipe("boom", teacher=endpoint(server, endpoint=quick)))
    assert "boom" in str(caught.value) and str(caught.value).count("same command") == 1
