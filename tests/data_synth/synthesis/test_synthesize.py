"""The stage synthesize: a set that trains, resumption, budgets, attempts, hints, captions; through a real server on loopback."""

import json
import shutil

import pyarrow.parquet as pq
import pytest
from openai_server import error, reply, serve
from synthesis_for_tests import MODEL, endpoint, make_shop, run_that_accepts_nothing, traces_of, write_recipe
from teacher_server import ShopServer, misbehaving, step_of

from lore.data.parquet import read_pairs
from lore.data_synth.shop.world import World
from lore.data_synth.shop.write import write_pairs
from lore.data_synth.synthesis.journal import totals
from lore.data_synth.synthesis.trace import trace_store
from lore.run.run_folder import RunFolder
from lore.run.runner import run_recipe
from lore.support.errors import LoreError

UNBOUNDED = {"max_in_a_row": None, "max_share": None}


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    return make_shop(tmp_path_factory.mktemp("shop"), 96)


@pytest.fixture
def recipe(shop, runs, tmp_path):
    """recipe(run="a", teacher={...}, **more) writes a recipe and returns its path."""
    return lambda run="synth", **more: write_recipe(tmp_path, run, shop, **more)


def test_the_programs_set_trains_and_loads(recipe, shop):
    folder = run_recipe(recipe())
    given = list(read_pairs(shop / "pairs"))
    pairs = list(read_pairs(folder / "pairs"))
    assert [pair.pair_id for pair in pairs] == [pair.pair_id for pair in given]
    assert [pair.rationale for pair in pairs] == [pair.rationale for pair in given]  # the shop's own truth
    assert [(pair.rules, pair.mismatch) for pair in pairs] == [(pair.rules, pair.mismatch) for pair in given]
    import datasets

    loaded = datasets.load_dataset(str(folder / "pairs"), split="train", cache_dir=str(folder / "cache"))
    assert loaded["rationale"] == [pair.rationale for pair in pairs]
    assert "96" in (folder / "pairs" / "README.md").read_text(encoding="utf-8")
    assert folder.summary["accepted"] == 96


@pytest.mark.parametrize("part", ["knowledge", "photos", "rules"])
def test_a_capability_can_be_left_out(recipe, part):
    folder = run_recipe(recipe(rationale={"leave_out": [part]}))
    text = "\n".join(pair.rationale for pair in read_pairs(folder / "pairs"))
    assert {"knowledge": " = ", "photos": "(photo)", "rules": "L4"}[part] not in text
    assert "category: " in text
    if part == "rules":
        assert not any(pair.rules for pair in read_pairs(folder / "pairs"))


def test_wrong_labels_are_found_out(recipe, tmp_path):
    world = World(12, label_noise=0.2)
    write_pairs(world, "train", 1000, tmp_path / "noisy" / "train.parquet")
    folder = run_recipe(recipe(data={"path": str(tmp_path / "noisy"), "rubric": "shop", "split": "train"}))
    traces = traces_of(folder)
    wrong = [trace for trace in traces if "noise:label" in trace.slices]
    right = [trace for trace in traces if "noise:label" not in trace.slices]
    assert 150 < len(wrong) < 250
    assert sum(not trace.accepted for trace in wrong) >= 0.9 * len(wrong)
    assert sum(trace.accepted for trace in right) >= 0.9 * len(right)
    assert all(trace.failed == ["verdict"] for trace in wrong if not trace.accepted)


def test_a_server_writes_the_same_traces_as_the_program(recipe):
    teacher = ShopServer()
    with serve(teacher.answer) as server:
        folder = run_recipe(recipe("wire", teacher=endpoint(server)))
    assert folder.summary["accepted"] == 96
    program = run_recipe(recipe("program"))
    assert [t.rationale for t in traces_of(folder)] == [t.rationale for t in traces_of(program)]
    queries = len({trace.query for trace in traces_of(folder)})
    assert teacher.asked["knowledge"] == queries  # asked once a query, not once a pair
    assert teacher.asked["multimodal"] == 96 >= teacher.asked["rules"]  # equal findings for one query are judged once
    assert folder.summary["tokens"] == teacher.tokens == totals(folder / "answers").tokens


def test_captions_come_first_where_the_recipe_says_so(recipe):
    teacher = ShopServer()
    with serve(teacher.answer) as server:
        folder = run_recipe(recipe("caption", teacher=endpoint(server), photos="caption"))
    traces = traces_of(folder)
    with_photo = [trace for trace in traces if trace.image]
    assert teacher.asked["caption"] == len(with_photo) > 10
    assert all(trace.caption for trace in with_photo)
    assert all(trace.accepted for trace in traces)
    assert any(demand.source == "photo" for trace in with_photo for demand in trace.demands)


def test_faults_on_the_way_change_nothing(recipe):
    teacher = ShopServer()
    with serve(misbehaving(teacher.answer)) as server:
        folder = run_recipe(recipe("faults", teacher=endpoint(server, endpoint={"timeout_seconds": 1.0})))
    assert folder.summary["accepted"] == 96
    asked = totals(folder / "answers")
    assert asked.answers == len({reply.key for t in traces_of(folder) for reply in t.replies})
    assert asked.requests > asked.answers and asked.unsettled == 0


def test_a_budget_stops_cleanly_and_a_larger_one_goes_on(recipe):
    teacher = ShopServer()
    price = {"prompt_usd": 100.0, "completion_usd": 300.0}
    with serve(teacher.answer) as server:
        path = recipe("budget", teacher=endpoint(server, price=price, max_tokens=200), budget={"max_tokens": 60_000})
        with pytest.raises(LoreError, match=r"budget.max_tokens is 60000.*larger budget.max_tokens"):
            run_recipe(path)
        assert 20_000 < teacher.tokens <= 60_000
        folder = RunFolder.of(_load(path))
        assert not folder.is_done
        card = (folder / "pairs" / "README.md").read_text(encoding="utf-8")
        assert "Incomplete" in card
        before = teacher.tokens
        folder = run_recipe(path, ["budget.max_tokens=10000000", "budget.max_usd=1000"])
    assert teacher.tokens > before
    assert teacher.asked["multimodal"] == 96  # nothing was asked twice
    assert folder.summary["accepted"] == 96
    assert "Incomplete" not in (folder / "pairs" / "README.md").read_text(encoding="utf-8")


def test_a_changed_prompt_redoes_its_own_step(recipe, tmp_path):
    own = tmp_path / "prompts"
    own.mkdir()
    shipped = ShopServer.__module__ and __import__("lore.data_synth.synthesis.teacher_prompts", fromlist=["FOLDER"]).FOLDER
    shutil.copy(shipped / "rules.en.md", own)
    first, second = ShopServer(), ShopServer()
    with serve(first.answer) as server:
        path = recipe("prompts", teacher=endpoint(server), prompts=str(own))
        run_recipe(path)
    text = (own / "rules.en.md").read_text(encoding="utf-8")
    (own / "rules.en.md").write_text(text.replace("the rule book decides", "the rule book says it all"), encoding="utf-8")
    with serve(second.answer) as server:
        folder = run_recipe(path, [f"teacher.endpoint.url={server.url}"])
    assert second.asked == {"rules": first.asked["rules"]}
    assert folder.is_done and folder.summary["accepted"] == 96
    third = ShopServer()
    with serve(third.answer) as server:
        run_recipe(path, [f"teacher.endpoint.url={server.url}"])
    assert third.asked == {}


def test_answers_of_another_run_are_reused(recipe, runs):
    first, second = ShopServer(), ShopServer()
    with serve(first.answer) as server:
        run_recipe(recipe("one", teacher=endpoint(server)))
    with serve(second.answer) as server:
        more = {"reuse": [str(runs / "one")], "rationale": {"leave_out": ["rules"]}, "chunk_pairs": 7}
        folder = run_recipe(recipe("two", teacher=endpoint(server), **more))
    assert second.asked == {}
    assert folder.summary["accepted"] == 96


def test_hints_come_after_failure_and_are_marked(recipe, shop):
    teacher = ShopServer()

    def stubborn(request):
        """Says L4 until it is shown the label."""
        answer = teacher.answer(request)
        if step_of(request) == "rules" and "<rated>" not in request.text:
            message = answer.body["choices"][0]["message"]
            message["content"] = json.dumps(json.loads(message["content"]) | {"verdict": "L4"})
        return answer

    with serve(stubborn) as server:
        attempts = {"most": 2, "most_hard": 2, "hinted": 1}
        folder = run_recipe(recipe("hint", teacher=endpoint(server, temperature=0.5), attempts=attempts))
    traces = traces_of(folder)
    easy = [t for t in traces if t.label == "L4"]
    assert easy and all(t.accepted and not t.hinted and len(t.attempts) == 1 for t in easy)
    hinted = [t for t in traces if t.label != "L4"]
    assert hinted and all(t.accepted and t.hinted and len(t.attempts) == 3 for t in hinted)
    assert all("verdict" in attempt.failed for t in hinted for attempt in t.attempts[:2])


def test_attempts_that_disagree_make_a_pair_hard(recipe):
    teacher = ShopServer()

    def moody(request):
        """The n-th draw of the rules step says another tier than the label."""
        if step_of(request) == "rules" and request.body["seed"] < 3:
            tier = ["L1", "L2", "L3"][request.body["seed"]]
            return reply(json.dumps({"rulings": [{"rule": "x", "tier": tier}], "verdict": tier}), model=MODEL)
        return teacher.answer(request)

    with serve(moody) as server:
        attempts = {"most": 2, "most_hard": 5, "hint": "never"}
        folder = run_recipe(recipe("moody", teacher=endpoint(server, temperature=1.0), attempts=attempts))
    traces = traces_of(folder)
    assert all(t.accepted and len(t.attempts) == 4 for t in traces)


def test_self_consistency_refuses_a_minority(recipe):
    teacher = ShopServer()

    def mostly_wrong(request):
        if step_of(request) == "rules" and request.body["seed"] != 1:
            return reply('{"rulings": [{"rule": "category-other", "tier": "L1"}], "verdict": "L1"}', model=MODEL)
        return teacher.answer(request)

    with serve(mostly_wrong) as server:
        attempts = {"samples": 3, "most": 3, "most_hard": 3, "hint": "never"}
        folder = run_recipe(recipe("self", teacher=endpoint(server, temperature=1.0), attempts=attempts))
    others = [t for t in traces_of(folder) if t.label != "L1"]
    assert others and not any(t.accepted for t in others)
    assert all([attempt.failed for attempt in t.attempts if attempt.draw == 1] == [["agreement"]] for t in others)


def test_a_critic_may_refuse(recipe):
    teacher = ShopServer()
    with serve(teacher.answer) as server:
        folder = run_recipe(recipe("critic", teacher=endpoint(server), critic=endpoint(server)))
    traces = traces_of(folder)
    assert {t.accepted for t in traces if t.label == "L1"} == {False}
    assert {t.accepted for t in traces if t.label != "L1"} == {True}
    assert all(t.failed == ["critic"] for t in traces if t.label == "L1")


def test_garbage_is_rejected_with_its_reason(recipe):
    with serve(lambda request: reply("I would say it is fine.", model=MODEL)) as server:
        folder = run_that_accepts_nothing(recipe("garbage", teacher=endpoint(server)))
    traces = traces_of(folder)
    assert len(traces) == 96 and not any(t.accepted for t in traces)
    assert all(t.failure.startswith("knowledge: no JSON object") for t in traces)
    assert not list((folder / "pairs").glob("*.parquet"))


def test_unexplained_pairs_can_keep_their_label(recipe):
    with serve(lambda request: reply("no", model=MODEL)) as server:
        folder = run_recipe(recipe("keep", teacher=endpoint(server), unexplained="keep"))
    pairs = list(read_pairs(folder / "pairs"))
    assert len(pairs) == 96 and all(pair.label and not pair.rationale and not pair.demands for pair in pairs)


def test_plain_distillation_takes_the_teachers_verdict(recipe):
    teacher = {"kind": "program", "program": "shop", "errors": 0.4}
    attempts = {"most": 1, "most_hard": 1, "hint": "never"}
    folder = run_recipe(recipe("plain", teacher=teacher, checks=[], label="teacher", attempts=attempts))
    traces = {trace.pair_id: trace for trace in traces_of(folder)}
    pairs = list(read_pairs(folder / "pairs"))
    assert any(pair.label != traces[pair.pair_id].label for pair in pairs)
    assert all(pair.label == traces[pair.pair_id].tier for pair in pairs)


def test_the_teachers_key_is_written_nowhere(recipe, monkeypatch):
    monkeypatch.setenv("SHOP_KEY", "sk-very-secret-1234567890")
    teacher = ShopServer()
    with serve(teacher.answer) as server:
        folder = run_recipe(recipe("key", teacher=endpoint(server, endpoint={"key_variable": "SHOP_KEY"})))
        assert server.requests[0].headers["Authorization"] == "Bearer sk-very-secret-1234567890"
    for path in folder.path.rglob("*"):
        if path.is_file():
            assert b"sk-very-secret" not in path.read_bytes(), path


def test_part_files_say_what_they_were_made_of(recipe):
    folder = run_recipe(recipe("parts"))
    store = trace_store(folder.path)
    names = [store.path(number).name for number in store.numbers()]
    assert names == [f"part-{n:06d}.parquet" for n in range(5)]
    assert pq.read_table(folder / "traces" / names[-1]).num_rows == 16


def _load(path):
    from lore.config.stages import load_recipe

    return load_recipe(path)


def test_a_model_in_this_process_is_asked_in_batches(recipe, tiny, tmp_path):
    """Random weights say nothing that can be read; what is asked, counted and kept is the same as with a good model."""
    long = with_positions(tiny.vision, 8192, tmp_path / "long")
    model = {"kind": "transformers", "model": {"name": str(long)}, "max_tokens": 16, "temperature": 0.0}
    more = {"data": {"path": str(tiny.pairs), "rubric": "shop", "split": "train", "limit": 12}, "facts": None}
    more |= {"unanswered": UNBOUNDED, "unexplained": "keep"}
    folder = run_recipe(recipe("model", teacher=model, **more))
    traces = traces_of(folder)
    assert len(traces) == 12 and all(t.failure.startswith("knowledge: the answer was cut at max_tokens") for t in traces)
    assert {reply.finish_reason for trace in traces for reply in trace.replies} == {"length"}
    found = totals(folder / "answers")
    queries = {trace.query for trace in traces}
    assert found.requests == found.answers == len(queries) and found.unsettled == 0
    assert folder.summary["tokens"] == found.tokens > 12 * 16
    again = run_recipe(recipe("model", teacher=model, **more), [])
    assert totals(again / "answers").requests == found.requests


def with_positions(model, positions: int, folder):
    """A copy of a tiny model with another number of positions."""
    shutil.copytree(model, folder)
    config = json.loads((folder / "config.json").read_text())
    config.get("text_config", config)["max_position_embeddings"] = positions
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_a_teacher_without_room_for_an_answer_is_not_opened(recipe, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("lore.data_synth.synthesis.open_teachers.open_engine", lambda *_, **__: pytest.fail("opened"))
    short = {"name": str(with_positions(tiny.text, 1000, tmp_path / "short"))}
    teacher = {"kind": "transformers", "model": short, "max_tokens": 16}
    told = r"dry pass of synthesize: .*\npositions: teacher: a prompt of one of the first pairs .* takes [\d,]+ tokens"
    with pytest.raises(LoreError, match=told):
        run_recipe(recipe("short", teacher=teacher, photos="none"))


def test_steps_are_tasks_that_can_be_trained_beside_the_judging(recipe, tiny, train, tmp_path):
    folder = run_recipe(recipe(tasks=["knowledge", "multimodal", "rules"]))
    traces = traces_of(folder)
    rows = {step: pq.read_table(folder / "tasks" / f"{step}.parquet").to_pylist() for step in ("knowledge", "multimodal", "rules")}
    assert [len(rows[step]) for step in rows] == [len({t.query for t in traces}), 96, 96]
    first = json.loads(rows["rules"][0]["completion"])
    assert first["verdict"] == traces[0].tier and len(first["rulings"]) == len(traces[0].demands)
    assert "= kettle" not in json.dumps(rows["knowledge"][0]["messages"])  # no facts
    assert sum(row["image"] is not None for row in rows["multimodal"]) == sum(t.image is not None for t in traces)
    for model, photo in (("vision", True), ("text", False)):
        files = [str(folder / "tasks" / f"{step}.parquet") for step in rows]
        # The tasks' prompts hold the rule book, which is longer than the tiny models' own context.
        long = with_positions(getattr(tiny, model), 4096, tmp_path / model)
        more = (f"auxiliary={json.dumps(files)}", f"model.name={long}")
        run = train(f"with-tasks-{model}", *more, model=model, prompt={"photo": photo}, max_tokens=4096, steps=2)
        assert run.summary["rows"] == 96 + sum(map(len, rows.values()))


def test_one_prompt_that_an_engine_refuses_fails_alone():
    import asyncio

    from lore.engines.batching import Batched
    from lore.engines.engine import Completion, EngineUsage, RequestRefused, Sampling

    class Choosy:
        def __init__(self, bad="bad"):
            self.bad, self.usage = bad, EngineUsage()

        def generate(self, prompts, sampling):
            if any(self.bad in prompt[0]["content"] for prompt in prompts):
                raise ValueError("too long")
            return [[Completion("fine", 1, "stop", 1)] for _ in prompts]

    class Open:
        async def admit(self, bound):
            return bound

        def settle(self, ticket, used):
            pass

    async def ask(texts, engine):
        batched = Batched(engine)
        prompts = [[{"role": "user", "content": text}] for text in texts]
        return await asyncio.gather(*(batched.complete(p, Sampling(), Open()) for p in prompts), return_exceptions=True)

    answers = asyncio.run(ask(["a", "bad", "c", "d", "e"], Choosy()))
    assert [isinstance(answer, RequestRefused) for answer in answers] == [False, True, False, False, False]
    # What is left for a second start is not the engine's fault; an engine that also fails on a harmless prompt is broken.
    assert all(isinstance(answer, RequestRefused) for answer in asyncio.run(ask(["bad", "bad too"], Choosy())))
    assert all(isinstance(answer, ValueError) for answer in asyncio.run(ask(["bad", "bad too"], Choosy(bad=""))))
    assert isinstance(asyncio.run(ask(["bad"], Choosy(bad="")))[0], ValueError)


def test_a_model_without_eyes_is_not_asked_about_photos(recipe, tiny, tmp_path):
    long = with_positions(tiny.text, 8192, tmp_path / "long")
    model = {"kind": "transformers", "model": {"name": str(long)}, "max_tokens": 16, "temperature": 0.0}
    knows = {"demands": [{"dimension": "category", "words": "", "wanted": "thing"}]}
    with serve(lambda request: reply(json.dumps(knows), model=MODEL)) as server:
        path = recipe("blind", teacher=endpoint(server, endpoint={"tokenizer": str(tiny.text)}))
        with pytest.raises(LoreError, match=r"has a photo, but the model of teacher does not accept images(.|\n)*photos: none"):
            run_recipe(path)
    folder = run_recipe(recipe("texts", teacher=model, photos="none", unanswered=UNBOUNDED, unexplained="keep"))
    assert folder.is_done


def test_no_pair_selected_is_an_error(recipe, shop):
    with pytest.raises(LoreError, match="selects no labeled pair"):
        run_recipe(recipe(data={"path": str(shop / "pairs"), "rubric": "shop", "split": "dev"}))


def test_what_a_server_cannot_answer_is_asked_again_once(recipe):
    """A passing trouble loses no pair; a prompt that fails in two starts is rejected, and the run ends."""
    teacher = ShopServer()
    bad = set()

    def sick(request):
        if not bad:
            bad.add(request.text)
        return error(500, "boom") if request.text in bad else teacher.answer(request)

    with serve(sick) as server:
        path = recipe("sick", teacher=endpoint(server, endpoint={"max_attempts": 2, "max_concurrency": 2}))
        with pytest.raises(LoreError, match=r"pairs got no usable answer(.|\n)*repeats them"):
            run_recipe(path)
        known = len(teacher.asked)
        folder = run_recipe(path)
    assert known and folder.is_done
    lost = [trace for trace in traces_of(folder) if not trace.accepted]
    assert lost and all("no usable answer in two starts" in trace.failure for trace in lost)
    assert len({trace.query for trace in lost}) == 1
