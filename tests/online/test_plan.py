"""`lore plan`: the log, the model behind the expectations, the choice, the files."""

import json
import math
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from typer.testing import CliRunner

from lore.cli.main import app
from lore.data.pair import Pair
from lore.data.tables.parquet_files import write_table
from lore.label.config import InputSection, UbiSection
from lore.label.ledger import STAMP
from lore.label.schema import label_schema
from lore.online.cache import load_folders
from lore.online.config import CacheSection, RouteSection
from lore.online.frequencies import Frequencies
from lore.online.plan.inputs import (
    Input,
    Judge,
    Latency,
    Price,
    Student,
    cached_share,
    judge_price,
    probe_cache,
    probe_student,
    stored_share,
)
from lore.online.plan.make import unseen
from lore.online.plan.plan import Prices, Setting, make_plan, pareto
from lore.online.plan.quality import Quality, read_quality, stratified
from lore.online.plan.traffic import Traffic, read_traffic
from lore.support.errors import LoreError

TIERS = ["L1", "L2", "L3", "L4"]


def given(value):
    return Input(value, "given", "a test")


def traffic_of(tmp_path, columns, **options):
    path = tmp_path / "log.parquet"
    pq.write_table(pa.table(columns), path)
    return read_traffic(InputSection(path=str(path), **options), work=tmp_path / "work", table=tmp_path / "f.arrow", days=10)


def test_searches_and_items_of_a_log_are_counted_by_what_it_has(tmp_path):
    rows = {"query": ["mug", "Mug", "mug ", "cup"], "item_id": ["1", "2", "1", "1"]}
    for number, (more, searches) in enumerate(
        [
            ({}, {"mug": 3.0, "cup": 1.0}),
            ({"search_id": ["a", "a", "b", "c"]}, {"mug": 2.0, "cup": 1.0}),
            ({"impressions": [5, 7, 4, 2]}, {"mug": 9.0, "cup": 2.0}),
            ({"query_frequency": [9.0, 8.0, 9.0, 1.5]}, {"mug": 9.0, "cup": 1.5}),
        ]
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        traffic, found = traffic_of(folder, rows | more)
        assert {name: found.of(name) for name in searches} == searches
        assert traffic.searches.sum() == sum(searches.values()) and traffic.queries.sum() == 2
        assert traffic.items.tolist() == [1.0, 2.0]
        assert (np.diff(traffic.least) > 0).all()


def test_a_table_of_queries_has_no_items_and_spellings_add_up(tmp_path):
    traffic, found = traffic_of(
        tmp_path, {"text": ["mug", "MUG", "cup"], "n": [5, 2, 1]}, map={"query": "text", "query_frequency": "n"}
    )
    assert (found.of("mug"), found.of("cup"), traffic.items) == (7.0, 1.0, None)
    assert unseen(traffic) == 1 / 8


def test_user_behavior_insights_are_a_log_too(tmp_path):
    rows = [
        {"query_id": str(n), "user_query": "mug" if n < 3 else "cup", "query_response_hit_ids": ["1", str(n)]} for n in range(4)
    ]
    (tmp_path / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    section = InputSection(ubi=UbiSection(queries=str(tmp_path / "queries.jsonl")))
    traffic, found = read_traffic(section, work=tmp_path / "work", table=tmp_path / "f.arrow", days=1)
    assert (found.of("mug"), found.of("cup"), traffic.items.sum()) == (3.0, 1.0, 5.0)


def test_a_log_without_searches_is_an_error(tmp_path):
    with pytest.raises(LoreError, match="no searches"):
        traffic_of(tmp_path, {"query": ["", None], "item_id": ["1", "2"]})


def test_shares_of_the_cache_are_those_of_a_simulation():
    """Searches at random times, items replaced after a random time; the cache starts empty, or full at the labelling."""
    rng, days = np.random.default_rng(0), 30.0
    for new in (0.0, 0.02, 0.2):
        life = math.inf if new == 0 else -1 / math.log(1 - new)
        found = [cached_share(new, days)]
        seen = [np.mean(rng.exponential(1.0, 40_000) * life > rng.random(40_000) * days) if new else 1.0]
        for rate in (0.02, 0.3, 4.0):
            hits = requests = 0
            for _ in range(3000):
                times = np.sort(rng.random(rng.poisson(rate * days)) * days)
                item = (
                    np.cumsum(rng.random(len(times)) > np.exp(-np.diff(times, prepend=0.0) / life)) if new else np.zeros(len(times))
                )
                hits += len(times) - len(np.unique(item))
                requests += len(times)
            found.append(float(stored_share(rate, new, days)))
            seen.append(hits / requests)
        assert np.allclose(found, seen, atol=0.02), (new, found, seen)


def test_test_queries_weigh_as_much_as_the_traffic_of_their_frequencies():
    frequency = np.repeat([1.0, 10.0, 100.0], 20)
    traffic = Traffic(np.asarray([1.0, 10.0, 100.0]), np.asarray([300.0, 20, 5]), np.asarray([300.0, 200, 500]), None, 10, "a row")
    pairs = np.tile([1, 3], 30)
    weight, remarks = stratified(frequency, pairs, traffic)
    mass = (weight * pairs).reshape(3, 20).sum(axis=1)
    assert np.allclose(mass, [0.3, 0.2, 0.5]) and not remarks
    weight, remarks = stratified(np.zeros(60), pairs, traffic)
    assert np.allclose((weight * pairs).sum(), 1) and "No test query is in the log" in remarks[0]


def quality_of(judge_right, student_right, frequency=None, queries=200, seed=0):
    """Verdicts that are right in these shares."""
    rng = np.random.default_rng(seed)
    frequency = np.sort(rng.pareto(1.0, queries) * 10 + 1) if frequency is None else frequency
    weight = frequency / frequency.sum() / 4
    tables = []
    for right in (judge_right, student_right):
        gold = np.tile(np.arange(4), (queries, 1))
        said = np.where(rng.random((queries, 4)) < right, gold, (gold + 1) % 4)
        table = np.zeros((queries, 4, 5))
        np.add.at(table, (np.arange(queries)[:, None], gold, said), weight[:, None])
        tables.append(table)
    ones = np.stack([4 * weight, 2 * weight], axis=1)
    return Quality(TIERS, [False, False, True, True], frequency, weight, *tables, ones, np.full(queries, 4), "a test")


EXACT = {ms: Latency(given(ms), given(ms)) for ms in (1.0, 10.0)}
STUDENT = Student(EXACT[10.0], 0.0, given(1000.0))
PRICES = Prices(Price(given(0.01)), Price(given(0.02)), Price(given(0.0001)), given(0.0))


def planned(quality, *, late_ms=1.0, new_items=0.0, new_queries=0.0, **limits):
    edges = np.asarray([1.0, 10.0, 100.0, 1000.0])
    bins = np.searchsorted(edges, quality.frequency, side="right") - 1
    counts, mass = np.bincount(bins, minlength=4), np.bincount(bins, quality.frequency, 4)
    kept = counts > 0
    traffic = Traffic(edges[kept], counts[kept].astype(float), mass[kept], 4.0 * counts[kept], 30.0, "a row")
    judge = Judge(given(0.1), Latency(given(late_ms), given(late_ms)), None)
    setting = Setting(given(4), given(new_items), given(new_queries), 7.0, 30.0, 100.0, 2.0, 0.5)
    return make_plan(traffic, quality, STUDENT, judge, EXACT[1.0], PRICES, setting, **limits)


def test_more_of_the_judge_costs_more_and_is_better_and_the_choice_keeps_its_limits():
    quality = quality_of(0.95, 0.75)
    best = planned(quality, new_items=0.3)
    top, student = max(point.quality for point in best.points), quality.values(np.zeros((200, 1)), "macro_f1")[0]
    assert best.chosen.quality > top - 0.011
    cheap = planned(quality, new_items=0.3, target_quality=student + 0.03)
    assert student + 0.03 <= cheap.chosen.quality < best.chosen.quality
    assert cheap.chosen.usd_per_day < best.chosen.usd_per_day
    poor = planned(quality, new_items=0.3, max_usd_per_day=cheap.chosen.usd_per_day)
    assert poor.chosen.usd_per_day <= cheap.chosen.usd_per_day and poor.chosen.quality >= cheap.chosen.quality - 0.011
    fast = planned(quality, new_items=0.3, late_ms=80.0, new_queries=0.1, max_p99_ms=20.0)
    assert fast.chosen.p99_ms <= 20 and fast.chosen.torso_from == 0
    with pytest.raises(LoreError, match=r"--target-quality 0.999.*\nThe best one reaches 0\.9"):
        planned(quality, target_quality=0.999)


def test_a_judge_that_is_always_late_is_the_student():
    quality = quality_of(0.95, 0.75)
    plan = planned(quality, late_ms=1000.0, new_queries=0.2)
    point = max(plan.points, key=lambda one: one.torso_from)  # everything is in the tail, which the late judge fills all the same
    assert point.by_judge == 0 and point.late > 0.1 and point.p99_ms == pytest.approx(101.0)
    assert point.coverage + point.by_judge + point.by_student == pytest.approx(1)


def test_only_the_first_search_of_a_query_waits_for_the_judge():
    """Every search shows the same items and nothing is new, so the judge is asked once a query."""
    for searches, p99 in ((10.0, 51.0), (1000.0, 1.0)):
        plan = planned(quality_of(0.9, 0.8, np.full(200, searches)), late_ms=50.0)
        point = max(plan.points, key=lambda one: one.torso_from)
        assert point.tail == 1 and 1 - point.coverage == pytest.approx(1 / searches, rel=0.01)
        assert (point.p50_ms, point.p99_ms) == pytest.approx((1.0, p99))


def test_shares_and_costs_of_a_choice_add_up():
    quality = quality_of(0.9, 0.8)
    plan = planned(quality, new_items=0.05, new_queries=0.1)
    for point in plan.points:
        assert point.head + point.torso + point.tail == pytest.approx(1)
        assert point.coverage + point.by_judge + point.by_student == pytest.approx(1)
        assert point.usd_per_day == pytest.approx(point.usd_labels + point.usd_live + point.usd_student)
        assert (point.torso_from == 0) == (point.tail == 0)
    nothing = next(one for one in plan.points if one.torso_from == 0 and one.head_from > 1000)
    assert (nothing.coverage, nothing.by_student) == (0, 1) and nothing.usd_labels == nothing.usd_live == 0
    searches = plan.traffic.searches_per_day
    assert nothing.usd_student == pytest.approx(4 * searches * 0.0001)
    everything = next(one for one in plan.points if one.torso_from == 0 and one.head_from == 1)
    assert everything.label_pairs == 800 and everything.coverage == pytest.approx(0.9 * cached_share(0.05, 7.0))


def test_where_no_test_query_is_in_the_log_the_mix_is_that_of_all_requests():
    known = quality_of(0.95, 0.75)
    plan = planned(known, new_items=0.1)
    unknown = replace(known, frequency=np.zeros(200), weight=np.full(200, 1 / 800))
    value = {}
    for name, of in (("judge", 1.0), ("student", 0.0)):
        value[name] = unknown.values(np.full((200, 1), of), "acc_k")[0]
    found = make_plan(
        plan.traffic,
        unknown,
        STUDENT,
        Judge(given(0.1), EXACT[1.0], None),
        EXACT[1.0],
        PRICES,
        replace(plan.setting, metric="acc_k"),
    )
    for point in found.points:
        share = point.coverage + point.by_judge
        assert point.quality == pytest.approx(share * value["judge"] + (1 - share) * value["student"])


def test_the_frontier_holds_what_no_other_choice_beats():
    plan = planned(quality_of(0.95, 0.75), late_ms=80.0, new_items=0.05, new_queries=0.1)
    assert len(plan.frontier) > 3
    for point in plan.points:
        assert any(
            one.quality >= point.quality - 0.001
            and one.usd_per_day <= 1.01 * point.usd_per_day
            and one.p99_ms <= 1.01 * point.p99_ms
            for one in plan.frontier
        )
    again = pareto(plan.frontier)
    assert again == plan.frontier


def test_quality_of_a_mix_has_an_interval_that_holds_the_truth():
    truth = quality_of(0.9, 0.7, np.full(20_000, 5.0), queries=20_000)
    half = np.full(20_000, 0.5)
    value = truth.values(half[:, None], "acc_k")[0]
    assert value == pytest.approx(0.8, abs=0.01)
    inside = 0
    for seed in range(40):
        found = quality_of(0.9, 0.7, np.full(100, 5.0), queries=100, seed=seed + 1).estimate(np.full(100, 0.5), "acc_k")
        inside += found.low <= value <= found.high
    assert inside >= 33


def test_money_by_the_hour_and_by_tokens():
    judge = Judge(Input(0.5, "measured", "labels"), Latency(given(1.0), given(1.0)), (1000.0, 100.0))
    batches, live = judge_price(judge, 3.6, (None, None), 0.5)
    assert batches.pair.value == pytest.approx(0.0005) and live.pair.value == pytest.approx(0.001) and live.machine_day == 86.4
    batches, live = judge_price(judge, None, (2.0, 10.0), 0.5)
    assert batches.pair.value == live.pair.value == pytest.approx(0.003) and live.machine_day == 0
    with pytest.raises(LoreError, match="--labels"):
        judge_price(replace(judge, tokens=None), None, (2.0, None), 0.5)


def run_folder(tmp_path, queries=60):
    """A finished run with verdicts of judge and student."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "run"
    folder.mkdir(exist_ok=True)
    rows = []
    for name, right in (("judge", 0.95), ("student", 0.7)):
        for number in range(4 * queries):
            label = TIERS[number % 4]
            tier = label if rng.random() < right else "L1"
            rows.append(
                {"judge": name, "pair_id": str(number), "query": f"q{number // 4}", "label": label, "slices": [], "tier": tier}
            )
    pq.write_table(pa.Table.from_pylist(rows), folder / "predictions.parquet")
    rubric = {"name": "r", "tiers": TIERS, "relevant": [False, False, True, True]}
    row = {"milliseconds per pair": 2.0, "milliseconds for 50 candidates": 60.0}
    (folder / "table.json").write_text(json.dumps({"rubric": rubric, "rows": {"student": row}}))
    return folder


def log_of(tmp_path, queries=60):
    path = tmp_path / "log.csv"
    path.write_text("query,item_id,frequency\n" + "".join(f"q{n // 4},{n},{3 + 4 * (n // 4) ** 2}\n" for n in range(4 * queries)))
    return path


def test_the_command_writes_frequencies_plan_page_and_recipe(tmp_path, monkeypatch):
    run, log, out = run_folder(tmp_path), log_of(tmp_path), tmp_path / "plan"
    words = ["plan", str(log), "--quality", str(run), "-o", str(out), "--candidates", "4", "--judge-usd-per-hour", "2"]
    words += ["--student-usd-per-hour", "0.2", "--judge-ms", "30,60"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, (done.output, done.exception)
    found = json.loads((out / "plan.json").read_text())
    assert found["lore"] == "plan" and found["log"]["queries"] == 60 and found["log"]["pairs"] == 240
    assert {one["basis"] for one in found["inputs"].values()} == {"measured", "given", "estimated"}
    assert found["inputs"]["judge p99, ms"] == {"value": 60.0, "basis": "given", "source": "--judge-ms"}
    assert all(band["student"]["agreement"]["value"] < 0.9 for band in found["chosen"]["bands"].values())
    quality = found["chosen"]["quality"]["macro_f1"]
    assert quality["low"] < quality["value"] < quality["high"]
    section = yaml.safe_load((out / "online.yaml").read_text())["route"]
    route = RouteSection.model_validate(section)
    assert Frequencies.open(route.frequencies).of("Q5 ") == 3 + 4 * 25
    assert (route.head_from, route.torso_from) == (found["chosen"]["head_from"], found["chosen"]["torso_from"])
    page = (out / "plan.html").read_text()
    assert "<svg" in page and "estimated" in page and "measured" in page and "Proposed" in page
    for line in ("Proposed", "estimated", "USD a day"):
        assert line in done.output
    again = CliRunner().invoke(app, [*words, "--target-quality", "0.999"])
    assert again.exit_code == 1 and "nothing to propose" in str(again.exception)
    (out / "plan.html").write_text("mine")
    again = CliRunner().invoke(app, words)
    assert again.exit_code == 1 and "--force" in str(again.exception) and (out / "plan.html").read_text() == "mine"


@pytest.mark.parametrize(
    "words, said",
    [
        ([], "Name one log"),
        (["LOG", "--judge-name", "gpt"], "--judge-name"),
        (["LOG", "--judge-ms", "9,3"], "p50,p99"),
        (["LOG", "--judge-ms", "fast"], "p50,p99"),
        (["LOG", "--labels", "RUN"], "summary.json"),
        (["LOG", "--student", "RUN"], "student"),
        (["LOG", "--usd-per-million-prompt-tokens", "3"], "--labels"),
        (["missing.parquet"], "missing.parquet"),
        (["LOG", "--cache", "verdicts.sqlite"], "--labels"),
    ],
)
def test_errors_name_the_option(tmp_path, words, said):
    run, log = run_folder(tmp_path), log_of(tmp_path)
    words = [{"LOG": str(log), "RUN": str(run)}.get(word, word) for word in words]
    done = CliRunner().invoke(app, ["plan", *words, "--quality", str(run), "-o", str(tmp_path / "plan")])
    assert done.exit_code == 1 and isinstance(done.exception, LoreError) and said in str(done.exception), done.exception


def test_verdicts_on_different_pairs_are_refused(tmp_path):
    run = run_folder(tmp_path)
    rows = pq.read_table(run / "predictions.parquet").to_pylist()
    pq.write_table(pa.Table.from_pylist(rows[1:]), run / "predictions.parquet")
    traffic, found = traffic_of(tmp_path, {"query": ["q1"], "item_id": ["1"]})
    with pytest.raises(LoreError, match="different pairs"):
        read_quality(run, "judge", "student", found, traffic)


def test_a_student_is_timed_here(tmp_path):
    from students_for_tests import write_student  # loads torch

    folder = write_student(tmp_path / "student")
    pairs = [Pair(pair_id=str(number), query="red mug", title="blue mug") for number in range(2)]
    found = probe_student(folder, 5, pairs)
    assert found.ms.p50.basis == found.pairs_per_second.basis == "measured"
    assert 0 < found.ms.p50.value <= found.ms.p99.value and 0 < found.fixed <= 1 and len(found.ms.samples) == 40
    assert found.pairs_per_second.value == pytest.approx(5000 / found.ms.p50.value)
    with pytest.raises(LoreError, match="--pairs"):
        probe_student(folder, 5)


def test_a_cache_is_timed_with_verdicts_that_it_holds(tmp_path):
    folder = tmp_path / "labels"
    rows = [
        {"pair_id": str(n), "query": "q", "tier": "L3", "judge_id": "judge:rubric:prompt", "slices": [], "content": n.to_bytes(16)}
        for n in range(9)
    ]
    schema = label_schema(TIERS).with_metadata({STAMP: b"judge:rubric:prompt verdict"})
    write_table(folder / "verdicts" / f"00-0000-{'0' * 20}.parquet", rows, schema)
    store = str(tmp_path / "verdicts.sqlite")
    with pytest.raises(LoreError, match="has no verdict of"):
        probe_cache(store, folder, 4)
    assert load_folders(CacheSection(store=store), [folder]) == 9
    found = probe_cache(store, folder, 4)
    assert 0 < found.p50.value <= found.p99.value and found.p50.basis == "measured" and len(found.samples) == 40
