"""Judges of every kind through the evaluation stage: a server without scores, tiny checkpoints, resumed and sampled."""

import json
import re
from dataclasses import replace

import pyarrow.parquet as pq
import pytest
from openai_server import MODEL, Answer, error, reply, serve

from lore.config.stages import load_recipe
from lore.config.yaml_text import RecipeError
from lore.data.pair import Pair
from lore.data.parquet import PairWriter
from lore.data_synth.shop.world import World
from lore.judge.foreign_predictions import read_predictions
from lore.rubric.rubric import load_rubric
from lore.run.run_folder import RunFolder
from lore.run.runner import run_recipe
from lore.support.errors import LoreError

TIERS = ["L1", "L2", "L3", "L4"]


@pytest.fixture
def pairs(tmp_path):
    """24 pairs of 8 queries; the query names the tier that the server will answer, which is the label but for one in three."""
    path = tmp_path / "pairs.parquet"
    with PairWriter(path) as writer:
        for i in range(24):
            told = TIERS[i % 4]
            label = told if i % 3 else TIERS[(i + 1) % 4]
            query = f"lamp {i % 8} says {told}"
            writer.write(Pair(pair_id=f"p{i}", query=query, title=f"lamp {i}", label=label, split="test"))
    return path


def recipe_of(tmp_path, pairs, judges: dict, **more):
    body = {
        "stage": "evaluate",
        "run": "judged",
        "data": {"path": str(pairs), "rubric": "rair"},
        "prompt": {"order": "reason_first", "detail": "name"},
        "metrics": {"bootstrap_samples": 50, "calibrate_on": None},
        "baselines": [],
        "judges": judges,
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(body | more))
    return path


def told(request) -> str:
    return re.search(r"says (L\d)", request.text)[1]


def endpoint(url: str, **more) -> dict:
    return {"kind": "endpoint", "endpoint": {"url": url, "model": MODEL}, "scores": False} | more


def judge_of(runs, name: str = "server", run: str = "judged") -> dict:
    return json.loads((runs / run / "metrics.json").read_text())["judges"][name]


def test_a_server_without_scores_is_judged_by_what_it_writes_outside_its_reasoning(tmp_path, runs, pairs):
    def answer(request):
        return reply(f"<reason>L1 at first sight, then again L4</reason>\n<verdict>{told(request)}</verdict>")

    with serve(answer) as server:
        run_recipe(recipe_of(tmp_path, pairs, {"server": endpoint(server.url)}))
        assert len(server.requests) == 24 and not any("logprobs" in request.body for request in server.requests)
    judge = judge_of(runs)
    assert judge["metrics"]["acc_k"]["value"] == pytest.approx(2 / 3)
    assert judge["metrics"]["ece"]["value"] is None and judge["failures"] == {}
    rows = pq.read_table(runs / "judged" / "predictions.parquet").to_pylist()
    assert all(row["tier"] == row["query"][-2:] and row["rationale"].startswith("L1 at first") for row in rows)
    assert {row["judge_id"].split(":")[0] for row in rows} == {MODEL} and all(row["tokens"] > 0 for row in rows)
    assert {(row["source"], row["seconds"]) for row in rows} == {("judge", None)}  # times would differ from run to run


def test_no_verdict_and_a_refused_prompt_are_wrong_and_failures_never_dropped(tmp_path, runs, pairs):
    def answer(request):
        if told(request) == "L1":
            return reply("The item is irrelevant: L1.")
        if told(request) == "L2":
            return error(400, "the prompt was withheld by the content filter")
        return reply(f"<verdict>{told(request)}</verdict>")

    with serve(answer) as server:
        run_recipe(recipe_of(tmp_path, pairs, {"server": endpoint(server.url)}))
    judge = judge_of(runs)
    assert judge["pairs"] == 24 and judge["failures"] == {"no_verdict": 6, "refused": 6}
    assert judge["metrics"]["failure_rate"]["value"] == 0.5
    assert judge["metrics"]["acc_k"]["value"] == pytest.approx(8 / 24)


@pytest.mark.parametrize("odd", [error(500, "on fire"), Answer(body=b"[" * 100_000)], ids=["500", "deep"])
def test_a_pair_that_a_server_cannot_answer_is_a_failure_in_every_measure_and_the_rest_is_stored(
    tmp_path, runs, pairs, odd, monkeypatch
):
    monkeypatch.setattr("lore.engines.http.throttle.FIRST_WAIT_SECONDS", 0.01)

    def answer(request):
        if "lamp 5" in str(request.body["messages"]):
            return odd
        made = reply(f"<reason>r \ud83d</reason><verdict>{told(request)}</verdict>" if "logprobs" not in request.body else "1")
        entries = [{"token": str(tier), "logprob": -float(tier)} for tier in range(1, 5)]
        made.body["choices"][0]["logprobs"] = {"content": [entries[0] | {"top_logprobs": entries}]}
        return made

    def told(request):
        return re.search(r"says (L\d)", str(request.body["messages"]) + "says L1")[1]

    with serve(answer) as server:
        section = {"url": server.url, "model": MODEL, "max_attempts": 2, "max_down_seconds": 0.5}
        judges = {"written": endpoint("", endpoint=section), "scored": endpoint("", endpoint=section, scores=True)}
        judges["first"] = judges["scored"] | {"order": "answer_only"}
        more = {"sampling": {"samples": 2, "sample_pairs": 24}, "robustness": {"pairs": 24, "perturbations": ["order-in-title"]}}
        path = recipe_of(tmp_path, pairs, judges, chunk_pairs=5, **more)
        run_recipe(path)
        before = len(server.requests)
        run_recipe(path)
        assert len(server.requests) == before
    for name in judges:
        assert judge_of(runs, name)["failures"] == {"refused": 3}
    rows = pq.read_table(runs / "judged" / "predictions.parquet").to_pylist()
    failed = [row for row in rows if row["failure"]]
    assert {row["query"] for row in failed} == {"lamp 5 says L2"} and len(failed) == 9 and all(row["detail"] for row in failed)
    assert all(row["p_L1"] is not None for row in rows if row["judge"] != "written" and not row["failure"])


def test_pairs_that_failed_are_asked_again_at_the_next_start_of_an_unfinished_run(tmp_path, runs, pairs):
    state = "odd"

    def answer(request):
        if state == "odd" and request.number > 14:
            return error(401, "the key was revoked")
        if state == "odd" and "lamp 5" in request.text:
            return error(500, "on fire")
        return reply(f"<verdict>{told(request)}</verdict>" if "says" in request.text else "no")

    with serve(answer) as server:
        judge = endpoint("", endpoint={"url": server.url, "model": MODEL, "max_attempts": 1, "max_concurrency": 1})
        path = recipe_of(tmp_path, pairs, {"server": judge}, chunk_pairs=6)
        with pytest.raises(LoreError, match="denies access"):
            run_recipe(path)
        assert len(list((runs / "judged" / "verdicts" / "server").rglob("*.parquet"))) == 2
        state, before = "good", len(server.requests)
        run_recipe(path)
        asked = [request.text for request in server.requests[before:]]
    assert judge_of(runs)["failures"] == {} and len(asked) == 13 and sum("lamp 5" in text for text in asked) == 3


def test_in_every_order_a_server_without_scores_writes_its_verdict(tmp_path, runs, pairs):
    judges = {}
    with serve(lambda request: reply(f"<verdict>{told(request)}</verdict>")) as server:
        for order in ("answer_only", "answer_first"):
            judges[order] = endpoint(server.url, order=order)
        run_recipe(recipe_of(tmp_path, pairs, judges))
        assert len(server.requests) == 48
    for order in judges:
        assert judge_of(runs, order)["metrics"]["acc_k"]["value"] == pytest.approx(2 / 3, abs=1e-6)


def test_what_a_judge_needs_is_asked_for_and_what_it_has_not_is_refused(tmp_path, pairs):
    def problems(judge: dict) -> str:
        with pytest.raises(RecipeError) as caught:
            load_recipe(recipe_of(tmp_path, pairs, {"server": judge}))
        return str(caught.value)

    assert "kind is endpoint" in problems({"kind": "endpoint"})
    assert "vllm for kind endpoint" in problems(endpoint("http://127.0.0.1:1/v1") | {"vllm": {}})
    judges = {"server": endpoint("http://127.0.0.1:1/v1")}
    for name, kinds in (("robustness", "model, endpoint or student"), ("capability", "model or endpoint")):
        with pytest.raises(RecipeError, match=f"a judge of kind {kinds}: server"):
            load_recipe(recipe_of(tmp_path, pairs, judges, **{name: {"judges": ["sever"]}}))
    with pytest.raises(RecipeError, match="order-in-titel(.|\n)*nearest: *order-in-title"):
        load_recipe(recipe_of(tmp_path, pairs, judges, robustness={"perturbations": ["order-in-titel"]}))


def test_how_a_server_is_asked_may_change_between_two_starts_and_which_model_may_not(tmp_path, pairs):
    def recipe(judge: dict):
        return load_recipe(recipe_of(tmp_path, pairs, {"a.b": judge}))

    folder = RunFolder(tmp_path / "run").open(recipe(endpoint("http://127.0.0.1:1/v1")))
    folder.record({"step": 1})
    moved = endpoint("http://127.0.0.1:2/v1")
    moved["endpoint"] |= {"max_concurrency": 2, "max_attempts": 9}
    folder.check(recipe(moved))
    moved["endpoint"] |= {"model": "another"}
    with pytest.raises(LoreError, match="judges.a.b.endpoint.model: was"):
        folder.check(recipe(moved))


def test_everything_is_asked_in_one_run_and_a_stopped_one_asks_little_twice(tmp_path, runs):
    """Tested pairs of a split with an awkward name, samples, perturbations and capabilities, through a server that goes away."""
    path = tmp_path / "shop.parquet"
    with PairWriter(path) as writer:
        for pair in World(seed=5).pairs("test", 24):
            writer.write(replace(pair, split="../samples", image=None))
    down = {"after": 30}

    def answer(request):
        if request.number >= down["after"]:
            return error(401, "the key is not valid any more")
        return reply(*["<verdict>L4</verdict>"] * request.body.get("n", 1))

    more = {
        "data": {"path": str(path), "rubric": "shop", "split": "../samples"},
        "sampling": {"samples": 4, "sample_pairs": 8},
        "robustness": {"pairs": 8, "perturbations": ["order-in-title", "case"]},
        "capability": {"pairs": 8},
        "chunk_pairs": 4,
    }
    with serve(answer) as server:
        recipe = recipe_of(tmp_path, path, {"server": endpoint(server.url)}, **more)
        with pytest.raises(LoreError, match="key"):
            run_recipe(recipe)
        answered, down["after"] = min(30, len(server.requests)), 10**6
        run_recipe(recipe)
        good = answered + sum(request.number > 30 for request in server.requests)
        prompts = [json.dumps(request.body, sort_keys=True) for request in server.requests if request.number != 30]
    judge = judge_of(runs)
    flips = {flip["name"]: flip for flip in judge["robustness"]}
    assert judge["pairs"] == 24 and judge["samples"]["n"] == 4 and set(judge["samples"]["pass_at"]) == {"1", "2", "4"}
    assert set(flips) == {"order-in-title", "all injections", "case"} and flips["case"]["up"]["value"] is None  # all are L4
    assert {row["capability"] for row in judge["capability"]} >= {"rules"}
    assert good - len(set(prompts)) <= 4 + 2  # at most one unsaved chunk, and requests that were under way
    assert not (runs / "judged" / "verdicts" / "samples.parquet").exists() and not (runs / "judged" / "samples").exists()


PAUSED = "this deployment is paused until the invoice is paid"


@pytest.mark.parametrize("how", [{}, {"scores": True, "order": "answer_only"}])
@pytest.mark.parametrize("limit", [None, 3])
def test_a_server_that_refuses_every_request_is_no_accuracy(tmp_path, runs, pairs, how, limit):
    works = []

    def answer(request):
        if not works:
            return error(400, PAUSED)
        return reply(f"<verdict>{told(request)}</verdict>")

    with serve(answer) as server:
        recipe = recipe_of(tmp_path, pairs, {"server": endpoint(server.url, **how)}, **({"test_limit": limit} if limit else {}))
        for _ in range(2):  # the next start asks again and says the same
            with pytest.raises(LoreError, match=rf"judge server, split-test: .*no answer|none of(.|\n)*400 Bad Request: {PAUSED}"):
                run_recipe(recipe)
        assert not (runs / "judged" / "done").exists() and not list((runs / "judged").rglob("part-*"))
        if how:
            return
        works.append(True)
        run_recipe(recipe)
    assert judge_of(runs)["failures"] == {}


def test_a_chunk_without_answers_stops_and_finished_chunks_are_kept(tmp_path, runs, pairs):
    works = []

    def answer(request):
        item = int(re.search(r"<title>lamp (\d+)", request.text)[1])
        if item >= 8 and not works:
            return error(400, PAUSED)
        return reply(f"<verdict>{told(request)}</verdict>")

    with serve(answer) as server:
        recipe = recipe_of(tmp_path, pairs, {"server": endpoint(server.url)}, chunk_pairs=8)
        with pytest.raises(LoreError, match=rf"8 of 8 requests of a chunk got no answer(.|\n)*8 x refused: .*{PAUSED}"):
            run_recipe(recipe)
        assert [path.name for path in (runs / "judged").rglob("part-*")] == ["part-000000.parquet"]
        works.append(True)
        before = len(server.requests)
        run_recipe(recipe)
        assert len(server.requests) - before == 16
    assert judge_of(runs)["metrics"]["acc_k"]["value"] == pytest.approx(2 / 3)


def test_the_bound_can_be_switched_off_and_the_results_say_what_got_no_answer(tmp_path, runs, pairs, capsys):
    off = {"unanswered": {"max_in_a_row": None, "max_share": None}}
    with serve(lambda request: error(400, PAUSED)) as server:
        folder = run_recipe(recipe_of(tmp_path, pairs, {"server": endpoint(server.url)}, **off))
    assert judge_of(runs)["no_answer"] == {f"refused: 400 Bad Request: {PAUSED}": 24}
    said = f"24 of 24 pairs got no answer and count as wrong: 24 x refused: 400 Bad Request: {PAUSED}"
    assert folder.summary["server"]["no answer"] == said and said in capsys.readouterr().out
    assert said in (folder / "report.html").read_text(encoding="utf-8")
    rows = pq.read_table(folder / "predictions.parquet").to_pylist()
    assert {(row["failure"], row["detail"]) for row in rows} == {("refused", f"400 Bad Request: {PAUSED}")}


def test_format_failures_are_a_result_however_many(tmp_path, runs, pairs):
    with serve(lambda request: reply("I would rather not say.")) as server:
        folder = run_recipe(recipe_of(tmp_path, pairs, {"server": endpoint(server.url)}))
    assert judge_of(runs)["metrics"]["failure_rate"]["value"] == 1.0 and judge_of(runs)["no_answer"] == {}
    assert "no answer" not in folder.summary["server"]


def lamps(tmp_path, count: int):
    path = tmp_path / "lamps.parquet"
    with PairWriter(path) as writer:
        for i in range(count):
            tier = TIERS[i % 4]
            writer.write(Pair(pair_id=f"p{i}", query=f"lamp {i:02} says {tier}", title=f"lamp {i}", label=tier, split="test"))
    return path


@pytest.mark.parametrize("sampled", [0, 4])
def test_an_outage_leaves_no_wrong_pairs_behind_once_the_run_went_on(tmp_path, runs, sampled):
    """The chunk in which it begins is stored; its refused pairs are asked again."""
    path, down = lamps(tmp_path, 40), {"after": 9}
    more = {"chunk_pairs": 16, "sampling": {"samples": sampled, "sample_pairs": 40}}

    def answer(request):
        if request.number >= down["after"]:
            return error(400, "quota exceeded")
        return reply(*[f"<verdict>{told(request)}</verdict>"] * request.body.get("n", 1))

    with serve(answer) as server:
        judge = endpoint(server.url)
        judge["endpoint"] |= {"max_concurrency": 1}
        recipe = recipe_of(tmp_path, path, {"server": judge}, **more)
        with pytest.raises(LoreError, match="quota exceeded"):
            run_recipe(recipe)
        down["after"] = len(server.requests) + (31 + 9 if sampled else 10**6)
        if sampled:  # the outage begins again, in the first chunk of the samples
            with pytest.raises(LoreError, match="samples(.|\n)*quota exceeded"):
                run_recipe(recipe)
            down["after"] = 10**6
        before = len(server.requests)
        run_recipe(recipe)
        assert len(server.requests) - before == 31
    found = judge_of(runs)
    assert found["no_answer"] == {} and found["failures"] == {} and found["metrics"]["acc_k"]["value"] == 1.0
    if sampled:
        assert found["samples"]["pass_at"]["1"]["value"] == 1.0


def test_prompts_that_stay_refused_do_not_stop_the_next_start(tmp_path, runs):
    """Ten of 40 pairs are always refused. Asked again together, they are no sign of an outage."""
    path, stopped = lamps(tmp_path, 40), {"after": 32}

    def answer(request):
        if request.number >= stopped["after"]:
            return error(401, "the key is not valid any more")
        if told(request) == "L2":
            return error(400, "withheld by the content filter")
        return reply(f"<verdict>{told(request)}</verdict>")

    with serve(answer) as server:
        judge = endpoint(server.url)
        judge["endpoint"] |= {"max_concurrency": 1}
        recipe = recipe_of(tmp_path, path, {"server": judge}, chunk_pairs=8, unanswered={"max_in_a_row": 3})
        with pytest.raises(LoreError, match="key"):
            run_recipe(recipe)
        stopped["after"] = 10**6
        run_recipe(recipe)
    assert judge_of(runs)["no_answer"] == {"refused: 400 Bad Request: withheld by the content filter": 10}


def served(choice: dict):
    answer = reply("")
    answer.body["choices"] = [{"index": 0, **choice}]
    return answer


EMPTY = {
    "nothing": ({"finish_reason": "stop", "message": {"role": "assistant", "content": ""}}, "empty answer, finish_reason stop"),
    "blank": ({"finish_reason": "stop", "message": {"role": "assistant", "content": " \n"}}, "empty answer, finish_reason stop"),
    "null": ({"finish_reason": "stop", "message": {"role": "assistant", "content": None}}, "empty answer, finish_reason stop"),
    "reasoned": (
        {"finish_reason": "stop", "message": {"role": "assistant", "content": None, "reasoning_content": "Hm. L4."}},
        "empty answer after its reasoning, finish_reason stop",
    ),
    "tools": (
        {"finish_reason": "tool_calls", "message": {"role": "assistant", "tool_calls": [{"id": "1"}]}},
        "empty answer, finish_reason tool_calls",
    ),
}


@pytest.mark.parametrize("kind", EMPTY)
def test_answers_that_hold_nothing_are_no_accuracy(tmp_path, runs, pairs, kind):
    choice, words = EMPTY[kind]
    with serve(lambda request: served(choice)) as server:
        with pytest.raises(LoreError, match=rf"judge server, split-test: .*no answer(.|\n)*{words}"):
            run_recipe(recipe_of(tmp_path, pairs, {"server": endpoint(server.url)}))
    assert not (runs / "judged" / "done").exists()


def test_one_empty_answer_among_samples_is_a_format_failure_of_that_sample(tmp_path, runs, pairs):
    def answer(request):
        texts = [f"<verdict>{told(request)}</verdict>"] * request.body.get("n", 1)
        return reply(*([""] + texts[1:] if len(texts) > 1 else texts))

    with serve(answer) as server:
        run_recipe(recipe_of(tmp_path, pairs, {"server": endpoint(server.url)}, sampling={"samples": 4, "sample_pairs": 24}))
    assert judge_of(runs)["samples"]["pass_at"]["1"]["value"] == pytest.approx(2 / 3 * 3 / 4)


@pytest.mark.parametrize(("text", "reason", "why"), [("", "length", "cut_at_max_tokens"), ("I cannot help.", "stop", "no_verdict")])
def test_a_run_whose_answers_hold_no_verdict_says_so_loudly(tmp_path, runs, pairs, capsys, text, reason, why):
    with serve(lambda request: reply(text, reason=reason)) as server:
        folder = run_recipe(recipe_of(tmp_path, pairs, {"server": endpoint(server.url)}))
    said = f"24 of 24 answers hold no verdict that can be read and count as wrong: 24 x {why}."
    said += " Raise sampling.max_tokens." * (reason == "length")
    assert f"server: {said}" in capsys.readouterr().out and folder.summary["server"]["unreadable"] == said
    assert said in (folder / "report.html").read_text(encoding="utf-8")


def scoring(refuses):
    """A server that writes and scores; it refuses the n-th scoring request where `refuses(n)`."""
    asked = []

    def answer(request):
        if "logprobs" not in request.body:
            return reply(f"<reason>because</reason>\n<verdict>{told(request)}</verdict>")
        asked.append(request)
        if refuses(len(asked)):
            return error(400, "no more scores today")
        query = json.dumps(request.body["messages"])
        tier = re.search(r"says (L\d)", query)[1]
        found = reply("L")
        listed = [{"token": name[1:], "logprob": -0.2 if name == tier else -3.0} for name in TIERS]
        found.body["choices"][0]["logprobs"] = {"content": [{**listed[0], "top_logprobs": listed}]}
        return found

    return answer


def test_one_refused_score_leaves_the_written_verdict_and_the_other_scores(tmp_path, runs, pairs, capsys):
    with serve(scoring(lambda number: number == 5)) as server:
        run_recipe(recipe_of(tmp_path, pairs, {"server": endpoint(server.url, scores=True)}))
    judge = judge_of(runs)
    assert judge["metrics"]["acc_k"]["value"] == pytest.approx(2 / 3) and judge["failures"] == judge["no_answer"] == {}
    assert judge["unscored"] == {"scores refused: 400 Bad Request: no more scores today": 1}
    assert judge["metrics"]["ece"]["value"] is not None
    assert "1 of 24 verdicts have no tier probabilities and count with even ones: 1 x scores refused" in capsys.readouterr().out
    rows = pq.read_table(runs / "judged" / "predictions.parquet").to_pylist()
    assert all(row["tier"] == row["query"][-2:] for row in rows) and sum(row["p_L1"] is None for row in rows) == 1
    found = read_predictions(runs / "judged" / "predictions.parquet", load_rubric("rair"), [row["pair_id"] for row in rows])
    assert sum(verdict.probabilities is None for verdict in found.values()) == 1


@pytest.mark.parametrize("limit", [None, 3])
def test_a_server_that_scores_nothing_stops_with_the_key_to_change(tmp_path, runs, pairs, limit):
    more = {"test_limit": limit} if limit else {}
    with serve(scoring(lambda number: True)) as server:
        recipe = recipe_of(tmp_path, pairs, {"server": endpoint(server.url, scores=True)}, **more)
        said = r"judge server(.|\n)*scores refused: 400 Bad Request: no more scores today(.|\n)*judges\.server\.scores: false"
        with pytest.raises(LoreError, match=said):
            run_recipe(recipe)
    assert not list((runs / "judged").rglob("part-*"))


def test_a_server_that_fails_again_and_again_is_named_with_its_judge(tmp_path, runs, pairs):
    with serve(lambda request: error(500, "boom")) as server:
        judge = endpoint(server.url)
        judge["endpoint"] |= {"max_attempts": 2, "max_concurrency": 1, "max_down_seconds": 2.0}
        with pytest.raises(LoreError, match=r"^judge server, split-test: http(.|\n)*500 Internal Server Error: boom"):
            run_recipe(recipe_of(tmp_path, pairs, {"server": judge}))
